"""The images of a dataset by their number: from memory, mapped from a file, or decoded when asked for.

`Images` is one face of all three. What it returns does not depend on which of them it is.
"""

import concurrent.futures
import math
import threading
import zlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from ncsn_jax.app.data import reading
from ncsn_jax.errors import UserError, one_line

# If more of the images that were looked at are damaged, the dataset is refused.
_MOST_DAMAGED = 0.1
# Of fewer images than these no share is taken.
_FEWEST = 100
# So many damaged images are named.
_NAMED = 5


class Damaged(Exception):
    """An image that cannot be decoded, with the reason."""


class Source(Protocol):
    """What decodes images one by one, from several threads at once.

    Attributes:
      shape: `(N, H, W, C)`.
      dtype: of the images.
      what: the images belong to, for messages, such as a field with its value.
      block: how many images a thread asks for at a time, where many are wanted.
      threads: how many threads then ask; None for a few more than there are cores.
    """

    shape: tuple[int, int, int, int]
    dtype: np.dtype
    what: str
    block: int = 1
    threads: int | None = None

    def name(self, index: int) -> str:
        """Returns what an image is called in messages."""

    def image(self, index: int) -> np.ndarray:
        """Returns an image, `[H, W, C]`.

        Raises:
          Damaged: if its content cannot be decoded, always.
          UserError: if it cannot be read, or does not belong into the dataset.
        """

    def images(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Returns several images, as `image` does, which may be faster."""
        return [self.image(row) for row in rows]


class Images:
    """Images `[N, H, W, C]`, as an array that is read where it is indexed.

    A damaged image is replaced by the next sound one, on every host by the same.

    Args:
      images: the images, which may be mapped from a file; or a source of them.
      rows: of an array, which of its images these are; all by default.
      damaged: why images cannot be decoded, by their numbers, as far as that is known.
      identity: what tells these images from others; by default a checksum of a thousand of them.

    Attributes:
      shape, dtype, identity: as above.
      source: of images that are decoded when asked for, or None.
      damaged: grows while images are decoded.
      told: those of them that the log has named.
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
        self._looked, self.told, self._lock = 0, set(self.damaged), threading.Lock()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """What all images take when they are decoded."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, which) -> np.ndarray:
        if self.source is None:
            which = which if self._rows is None else self._rows[which]
            return np.asarray(self._array[which])
        rows = np.arange(len(self))[which]
        if rows.ndim == 0:
            return self.image(int(rows))
        found = [image for block in self.blocks(rows.tolist()) for image in block]
        return np.stack(found) if found else np.empty((0, *self.shape[1:]), self.dtype)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        found = np.asarray(self[:], dtype)
        return found.copy() if copy else found  # NumPy leaves it to this method.

    def blocks(self, rows: Sequence[int]) -> Iterator[list[np.ndarray]]:
        """Yields the images of a source with these numbers in order, several at a time."""
        size, threads = self.source.block, self.source.threads
        blocks = [rows[first : first + size] for first in range(0, len(rows), size)]
        with reading.pillow(), concurrent.futures.ThreadPoolExecutor(threads) as pool:
            try:
                yield from pool.map(self._block, blocks)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _block(self, rows: Sequence[int]) -> list[np.ndarray]:
        if self.damaged.keys().isdisjoint(rows):
            try:
                found = self.source.images(rows)
            except Damaged:
                pass
            else:
                self._looked += len(rows)
                return found
        return [self.image(row) for row in rows]

    def image(self, index: int) -> np.ndarray:
        """Returns one image, or in the place of a damaged one the next that is sound.

        Raises:
          UserError: if too many are damaged, or one cannot be read.
        """
        if self.source is None:
            return self[index]
        for row in self._from(index):
            if row in self.damaged:
                continue
            try:
                image = self.source.image(row)
            except Damaged as error:
                self._count(row, str(error))
            else:
                self._looked += 1
                return image
        raise UserError(f"{self.source.what} holds no image that can be decoded")

    def sound(self, rows: np.ndarray) -> np.ndarray:
        """Returns which images stand for those of some numbers, after they were asked for."""
        return np.array([next(r for r in self._from(row) if r not in self.damaged) for row in rows])

    def news(self, most: int) -> list[int]:
        """Returns which images were found damaged and are not in `told` yet, and adds them to it."""
        found = sorted(set(self.damaged) - self.told)[:most]
        self.told.update(found)
        return found

    def describe(self) -> dict:
        """Returns the shape, and what tells these images from others."""
        if self.identity:
            return {"shape": list(self.shape), "files": self.identity}
        checksum, stride = 0, max(1, len(self) // 1000)
        for first in range(0, len(self), 100 * stride):  # They may be larger than the memory.
            some = self[first : first + 100 * stride : stride]
            checksum = zlib.crc32(np.ascontiguousarray(some), checksum)
        return {"shape": list(self.shape), "crc32_of_a_thousand": checksum}

    def _from(self, index: int) -> Iterator[int]:
        yield from range(index, len(self))
        yield from range(index)

    def _count(self, row: int, reason: str) -> None:
        with self._lock:
            self.damaged[row] = reason
            looked = self._looked + len(self.damaged)
        if len(self.damaged) > _MOST_DAMAGED * min(len(self), max(looked, _FEWEST)):
            raise UserError(
                f"{self.source.what}: more than a tenth of the images cannot be used: "
                f"{describe_damaged(self.source, self.damaged)}"
            )


def describe_damaged(source: Source, damaged: dict[int, str]) -> str:
    """Returns how many images are damaged, and names the first of them by their reasons."""
    names: dict[str, list[str]] = {}
    for row in sorted(damaged)[:_NAMED]:
        names.setdefault(damaged[row], []).append(source.name(row))
    named = [", ".join(some) + (f": {reason}" if reason else "") for reason, some in names.items()]
    more = "; ..." if len(damaged) > _NAMED else ""
    return one_line(f"{len(damaged)} damaged ({'; '.join(named)}{more})")
