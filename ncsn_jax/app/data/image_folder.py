"""People's own pictures: a directory tree of image files as one array.

Files are taken in the order of their path below the directory; links are followed, to every directory once.
What is no image or cannot be decoded is left out, counted and named.
"""

import collections
import concurrent.futures
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import UnidentifiedImageError

from ncsn_jax.app.data import reading, transforms
from ncsn_jax.app.data.holdout import is_held_out
from ncsn_jax.errors import UserError, one_line

# So many files of a kind are named.
_NAMED = 5


def walk(directory: str, ignored: tuple[str, ...] = (".",)) -> Iterator[tuple[str, list[str]]]:
    """Yields every directory of a tree with the sorted names of what is no directory in it.

    Links are followed and every directory is visited once, so that links upwards end; directories that
    cannot be read, and those whose names begin with one of `ignored`, are left out.
    """
    waiting, seen = collections.deque([directory]), set()
    while waiting:
        folder = waiting.popleft()  # by depth, so that of two ways the shorter is taken
        try:
            status = os.stat(folder)
            names = sorted(os.listdir(folder))
        except (OSError, ValueError):  # ValueError: a name that no file system has
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        is_folder = {name: os.path.isdir(os.path.join(folder, name)) for name in names}
        yield folder, [name for name in names if not is_folder[name]]
        below = [name for name in names if is_folder[name] and not name.startswith(ignored)]
        waiting += [os.path.join(folder, name) for name in below]


def find(directory: str) -> list[str]:
    """Returns the sorted relative paths of all files; hidden ones are ignored."""
    return sorted(
        os.path.relpath(os.path.join(folder, name), directory)
        for folder, names in walk(directory)
        for name in names
        if not name.startswith(".")
    )


class _Picture(NamedTuple):
    """A picture that is taken, `[size, size, channels]`, and what `reading.Found` says of it."""

    pixels: np.ndarray
    transparent: bool
    dark: str


def read(
    directory: str,
    size: int | Sequence[int],
    channels: int,
    crop_size: int,
    field: str = "data.data_dir",
    *,
    background: int = 255,
    split: str = "train",
    holdout: float = 0.0,
) -> tuple[np.ndarray, str]:
    """Decodes a directory tree of images.

    Args:
      directory: its path.
      size, channels, crop_size: see `ncsn_jax.app.data.transforms.fit`.
      field: where the path comes from, for messages.
      background: see `ncsn_jax.app.data.reading.decode`.
      split: "train", or "test" for the files that `is_held_out` holds out by their content.
      holdout: the share of them, in [0, 1).

    Returns:
      uint8 `[N, H, W, channels]` with N >= 1, and one line that names what was left out and what is
      remarkable, or "".

    Raises:
      UserError: if there is no such directory or no image that can be read.
    """
    if not os.path.isdir(directory):
        raise UserError(f"{field}={directory!r} is not a directory of images")
    paths = find(directory)
    least = 2 * max(transforms.sides(size)) if crop_size == transforms.LARGEST_SQUARE else 0

    def decode(name: str) -> _Picture | str | None:
        """Returns a picture of the split, or why it is none, "" for a file of another kind."""
        path = os.path.join(directory, name)
        try:
            with reading.opened(path, least) as image:
                if holdout and is_held_out(_digest(path), holdout) != (split == "test"):
                    return None
                found = reading.decode(image, background)
                pixels = transforms.fit(found.image, size, channels, crop_size)
                return _Picture(pixels, found.transparent, found.dark)
        except UnidentifiedImageError:
            return ""
        # Pillow raises whatever its decoders run into; the file is named, with the reason.
        except Exception as error:
            return str(error).splitlines()[0] if str(error) else type(error).__name__

    with reading.pillow(), concurrent.futures.ThreadPoolExecutor() as pool:
        results = dict(zip(paths, pool.map(decode, paths), strict=True))
    taken = {path: r for path, r in results.items() if isinstance(r, _Picture)}
    left_out = [
        _name(f"not {reading.KINDS}", {path: r for path, r in results.items() if r == ""}),
        _name("unreadable", {path: r for path, r in results.items() if r and path not in taken}),
    ]
    left_out = "left out " + " and ".join(filter(None, left_out)) if any(left_out) else ""
    if not taken:
        reason = f": {one_line(left_out)}" if left_out else ""
        if holdout and None in results.values():
            reason = f" in split {split!r} with data.holdout={holdout}{reason}"
        raise UserError(f"{field}={directory!r} holds no readable {reading.KINDS} image{reason}")
    clear = sum(picture.transparent for picture in taken.values())
    notes = [
        left_out,
        f"{clear} with transparency, on data.background={background}" if clear else "",
        _name("almost black", {path: r.dark for path, r in taken.items() if r.dark}),
    ]
    return np.stack([r.pixels for r in taken.values()]), one_line("; ".join(filter(None, notes)))


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _name(what: str, files: dict[str, str]) -> str:
    """Returns how many files are `what`, with the first of them and the reasons, or "" for none."""
    named = [f"{path}: {reason}" if reason else path for path, reason in files.items()]
    more = ", ..." if len(named) > _NAMED else ""
    return f"{len(named)} {what} ({', '.join(named[:_NAMED])}{more})" if named else ""
