"""Gives a dataset's images by index: from memory, from a mapped file, or decoded on demand.

The results do not depend on which of these it is.
"""

import abc
import contextlib
import math
import threading
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np

from ncsn_jax.app import cpu
from ncsn_jax.app.data import reading
from ncsn_jax.app.data.reading import Damaged
from ncsn_jax.errors import UserError, one_line

# A dataset is refused if a larger share of it is damaged.
_MAX_DAMAGED = 0.1
# A message names at most this many damaged images.
_NAMED = 5
# How many blocks per thread are decoded in advance.
_AHEAD = 2


class Source(abc.ABC):
    """Decodes the images of a dataset, for several threads at once.

    Attributes:
      shape: `(N, H, W, C)`.
      dtype: the images' type.
      what: what the images belong to, for messages, such as a field with its value.
      block: how many images a thread decodes at a time if many are wanted.
      threads: how many threads then decode.
      remarks: what is remarkable in the images decoded so far, by index; None to record nothing.
    """

    shape: tuple[int, int, int, int]
    dtype: np.dtype
    what: str
    block: int = 1
    threads: int = cpu.cores() + 4
    remarks: dict[int, Any] | None = None

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Returns an image's name for messages."""

    @abc.abstractmethod
    def image(self, index: int) -> np.ndarray:
        """Returns an image, `[H, W, C]`.

        Raises:
          Damaged: if its content cannot be decoded, on any host, ever.
          UserError: if it cannot be read, or does not belong in the dataset.
        """

    def images(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Returns several images, which may be faster."""
        return [self.image(row) for row in rows]

    def note(self) -> str:
        """Returns a line on `remarks`, or ""."""
        return ""


class Images:
    """Images `[N, H, W, C]`, as an array that is read where it is indexed.

    The next good image replaces a damaged one, the same on every host.

    Args:
      images: the images, which may be mapped from a file; or a source of them.
      rows: which images of an array these are; all by default.
      damaged: why images cannot be decoded, by their indices, as far as known.
      identity: tells these images from others; by default a checksum of a thousand of them.

    Attributes:
      shape, dtype, identity: as above.
      source: the source of images decoded on demand, or None.
      damaged: grows while images are decoded.
      reported: the damaged images that the log has named.
    """

    def __init__(
        self,
        images: np.ndarray | Source,
        *,
        rows: np.ndarray | None = None,
        damaged: dict[int, str] | None = None,
        identity: str = "",
    ):
        is_array = hasattr(images, "__getitem__")
        self._array, self.source = (images, None) if is_array else (None, images)
        self.shape = (images.shape[0] if rows is None else len(rows), *images.shape[1:])
        self._rows, self.dtype, self.identity = rows, images.dtype, identity
        self.damaged = dict(damaged or {})
        self.reported, self._lock = set(self.damaged), threading.Lock()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """The size of all images when decoded."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, which) -> np.ndarray:
        if self.source is None:
            which = which if self._rows is None else self._rows[which]
            return np.asarray(self._array[which])
        rows = np.arange(len(self))[which]
        if rows.ndim == 0:
            with reading.pillow():
                return self.image(int(rows))
        found = [image for block in self.blocks(rows.tolist()) for image in block]
        return np.stack(found) if found else np.empty((0, *self.shape[1:]), self.dtype)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        found = np.asarray(self[:], dtype)
        return found.copy() if copy else found  # NumPy leaves the copy to this method

    def blocks(self, rows: Sequence[int]) -> Iterator[list[np.ndarray]]:
        """Yields a source's images with these indices in order, several at a time."""
        size, threads = self.source.block, self.source.threads
        yield from in_order(
            lambda block: self._block(rows[block * size : (block + 1) * size]),
            range(-(-len(rows) // size)),
            threads,
            _AHEAD * threads,
        )

    def _block(self, rows: Sequence[int]) -> list[np.ndarray]:
        if self.damaged.keys().isdisjoint(rows):
            with contextlib.suppress(Damaged):
                return self.source.images(rows)
        return [self.image(row) for row in rows]

    def image(self, index: int) -> np.ndarray:
        """Returns one image of a source, or the next good one if it is damaged.

        Raises:
          UserError: if too many are damaged, or one cannot be read.
        """
        for row in self._from(index):
            if row in self.damaged:
                continue
            try:
                image = self.source.image(row)
            except Damaged as error:
                self._count(row, str(error))
            else:
                return image
        raise UserError(f"{self.source.what} holds no image that can be decoded")

    def replacements(self, rows: np.ndarray) -> np.ndarray:
        """Returns the indices of the images that were read in place of `rows`."""
        return np.array([next(r for r in self._from(row) if r not in self.damaged) for row in rows])

    def newly_damaged(self, most: int) -> list[int]:
        """Returns the damaged images that are not in `reported` yet, and adds them to it."""
        found = sorted(set(self.damaged) - self.reported)[:most]
        self.reported.update(found)
        return found

    def describe(self) -> dict:
        """Returns the shape and what tells these images from others."""
        if self.identity:
            return {"shape": list(self.shape), "files": self.identity}
        checksum, stride = 0, max(1, len(self) // 1000)
        for first in range(0, len(self), 100 * stride):  # they may be larger than memory
            some = self[first : first + 100 * stride : stride]
            checksum = zlib.crc32(np.ascontiguousarray(some), checksum)
        return {"shape": list(self.shape), "crc32_of_a_thousand": checksum}

    def _from(self, index: int) -> Iterator[int]:
        yield from range(index, len(self))
        yield from range(index)

    def _count(self, row: int, reason: str) -> None:
        with self._lock:
            self.damaged[row] = reason
        if len(self.damaged) > _MAX_DAMAGED * len(self):
            self.refuse(f"more than a tenth of {len(self)}")

    def refuse(self, share: str) -> None:
        """Raises a UserError that says what share of the images is damaged, and names some."""
        raise UserError(
            f"{self.source.what}: {share} images cannot be used: "
            f"{describe_damaged(self.source, self.damaged)}"
        )


def in_order(
    function: Callable[[int], Any], values: range, threads: int, ahead: int
) -> Generator[Any, None, None]:
    """Yields a function's results in order; grain's threads compute some in advance.

    Args:
      function: takes one value; called inside `reading.pillow`.
      values: consecutive numbers.
      threads: how many; 0 calls the function when a result is asked for.
      ahead: how many results to compute in advance, >= 1.
    """
    import grain

    ahead = ahead if threads else 0
    results = grain.MapDataset.range(values.start, values.stop).map(function)
    stream = iter(results.to_iter_dataset(grain.ReadOptions(min(threads, ahead), ahead)))
    # Threads compute results between the calls of `next`, too.
    with reading.pillow(), contextlib.closing(stream):
        yield from stream


def describe_damaged(source: Source, damaged: dict[int, str]) -> str:
    """Returns how many images are damaged, and the first of them with the reasons."""
    names: dict[str, list[str]] = {}
    for row in sorted(damaged)[:_NAMED]:
        names.setdefault(damaged[row], []).append(source.name(row))
    named = [", ".join(some) + (f": {reason}" if reason else "") for reason, some in names.items()]
    more = "; ..." if len(damaged) > _NAMED else ""
    return one_line(f"{len(damaged)} damaged ({'; '.join(named)}{more})")
