"""Finds users' own pictures: the image files of a directory tree, or of tar and zip archives.

Images are in the order of their file names. A file counts as an image if it has an image's suffix, or if it
has no suffix and begins like an image. The others are left out, counted and named.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ncsn_jax.app import storage
from ncsn_jax.app.data import cache, files, reading, transforms
from ncsn_jax.app.data.holdout import is_held_out
from ncsn_jax.app.data.images import Damaged, Source, in_order
from ncsn_jax.app.progress import progress
from ncsn_jax.errors import UserError, one_line

# A message names at most this many files of a kind.
_NAMED = 5
# Threads that read files to list them. They mostly wait for the disk or the network.
_READERS = 16


class Folder(Source):
    """The images of a directory or an archive, decoded on demand.

    Args:
      path: the path or URL of the directory or the archive.
      size, channels, crop_size: see `ncsn_jax.app.data.transforms.fit`.
      field: where the path comes from, for messages.
      background: see `ncsn_jax.app.data.reading.decode`.
      split: "train", or "test" for the files that `is_held_out` holds out by their content.
      holdout: their share, in [0, 1). Above 0, all files are read once to find them.

    Attributes:
      shape, dtype: the images'.
      what: what the images belong to, for messages.
      identity: a digest of the images' names and sizes, which does not depend on their location.
      version: the files' version; see `files.Listing`.
      left_out: names files that are not images, or "".
      remarks: by index, whether an image is transparent and why it is almost black; see `Source`.

    Raises:
      UserError: if the directory or archive does not exist or holds no image.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        path: str,
        size: int | Sequence[int],
        channels: int,
        crop_size: int,
        field: str = "data.data_dir",
        *,
        background: int = 255,
        split: str = "train",
        holdout: float = 0.0,
    ):
        self.what = f"{field}={path!r}"
        if not storage.is_remote(path) and not os.path.exists(path):
            raise UserError(f"{self.what} does not exist")
        if not (storage.is_remote(path) or os.path.isdir(path) or files.is_archive(path)):
            raise UserError(
                f"{self.what} is neither a directory nor a .tar or .zip file; unpack other archives"
            )
        listing = files.find(path, field)
        if storage.is_remote(path) and not listing.files:
            raise UserError(f"{self.what} does not exist")
        kept, others = self._images_of(listing.files)
        self.left_out = ""
        if others:
            self.left_out = "left out " + _name(
                f"file(s) that are not {reading.KINDS}", dict.fromkeys(others, "")
            )
        self.identity = cache.digest([[file.name, file.size] for file in kept])
        self.version = listing.version
        if kept and holdout:
            held_out = self._held_out(kept, holdout, listing.version)
            kept = [f for f, out in zip(kept, held_out, strict=True) if out == (split == "test")]
        if not kept:
            reason = f" in split {split!r} with data.holdout={holdout}" if holdout else ""
            reason += f": {one_line(self.left_out)}" if self.left_out else ""
            raise UserError(f"{self.what} holds no {reading.KINDS} image{reason}")
        self.shape = (len(kept), *transforms.sides(size), channels)
        self._files, self._fit, self._background = kept, (size, channels, crop_size), background
        self.remarks = {}
        self._least = 2 * max(self.shape[1:3]) if crop_size == transforms.LARGEST_SQUARE else 0

    def name(self, index: int) -> str:
        """Returns the name of an image's file."""
        return self._files[index].name

    def image(self, index: int) -> np.ndarray:
        """Returns an image; see `ncsn_jax.app.data.images.Source`."""
        pixels, found = reading.pixels(
            self._read(self._files[index]),
            *self._fit,
            background=self._background,
            least=self._least,
        )
        if self.remarks is not None and (found.transparent or found.dark):
            self.remarks[index] = found.transparent, found.dark
        return pixels

    def note(self) -> str:
        """Returns a line on the files left out and on remarkable images among those decoded so far, or ""."""
        remarks = self.remarks or {}
        clear = sum(transparent for transparent, _ in remarks.values())
        on = f"{clear} with transparency, on data.background={self._background}" if clear else ""
        dark = {self.name(i): reason for i, (_, reason) in sorted(remarks.items()) if reason}
        return one_line("; ".join(filter(None, [self.left_out, on, _name("almost black", dark)])))

    def _read(self, file: files.File, most: int | None = None) -> bytes:
        try:
            return file.read(most)
        except OSError as error:
            raise UserError(
                f"{self.what}: {one_line(file.name)} cannot be read: {error.strerror or error}"
            ) from None
        except MemoryError:
            raise
        except Exception as error:  # from decompressing a member of an archive
            raise Damaged(str(error)) from None

    def _images_of(self, found: list[files.File]) -> tuple[list[files.File], list[str]]:
        """Returns the files that are images, and the names of the others."""
        others, unclear = [], []
        for file in found:
            if not file.name.lower().endswith(reading.SUFFIXES):
                has_suffix = os.path.splitext(file.name)[1]
                (others if has_suffix else unclear).append(file)

        def looks_like_one(file: files.File) -> bool:
            with contextlib.suppress(Damaged):
                return reading.is_image(self._read(file, reading.PREFIX))
            return False

        are_images = _in_threads(looks_like_one, unclear)
        others += [f for f, is_one in zip(unclear, are_images, strict=True) if not is_one]
        out = set(others)
        return [f for f in found if f not in out], [f.name for f in sorted(out)]

    def _held_out(self, kept: list[files.File], holdout: float, version: str) -> np.ndarray:
        """Returns which files are held out, bool `[N]`, and caches it."""

        def digest(file: files.File) -> bytes:
            content = b""  # a damaged file is found and counted when it is decoded
            with contextlib.suppress(Damaged):
                content = self._read(file)
            return hashlib.sha256(content).digest()

        def make() -> tuple[np.ndarray, str]:
            with progress("choosing the test split", len(kept), "files") as advanced:
                digests = _in_threads(digest, kept, advanced)
                return np.array([is_held_out(d, holdout) for d in digests], bool), ""

        return cache.array("held-out", [version, holdout], make)[0]


def first(folder: Folder, count: int) -> tuple[np.ndarray, str]:
    """Returns the first images of a folder that can be decoded.

    Args:
      folder: the folder.
      count: how many to return at most, >= 1.

    Returns:
      uint8 `[N, H, W, C]` with 1 <= N <= count, and one line on what was left out and what is remarkable,
      or "".

    Raises:
      UserError: if no image can be decoded.
    """
    images, damaged = [], {}
    with reading.pillow():
        for index in range(folder.shape[0]):
            try:
                images.append(folder.image(index))
            except Damaged as error:
                damaged[folder.name(index)] = str(error)
            if len(images) == count:
                break
    note = "; ".join(filter(None, [folder.note(), _name("unreadable", damaged)]))
    if not images:
        raise UserError(f"{folder.what} holds no readable {reading.KINDS} image: {one_line(note)}")
    return np.stack(images), one_line(note)


def _in_threads(
    function: Callable, values: Sequence, advanced: Callable = lambda _: None
) -> Iterable:
    """Yields a function's results in order, computed by several threads."""
    indices = range(len(values))
    for result in in_order(lambda i: function(values[i]), indices, _READERS, 4 * _READERS):
        yield result
        advanced(1)


def _name(what: str, named: dict[str, str]) -> str:
    """Returns how many files are `what`, with the first names and reasons, or "" if there are none."""
    some = [f"{path}: {reason}" if reason else path for path, reason in named.items()]
    more = ", ..." if len(some) > _NAMED else ""
    return f"{len(some)} {what} ({', '.join(some[:_NAMED])}{more})" if some else ""
