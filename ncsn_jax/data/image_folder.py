"""People's own pictures: a directory tree of PNG and JPEG files as one array.

Files named .png, .jpg or .jpeg are taken in the order of their path below the directory; links are
followed. All other files, and whatever cannot be decoded, are left out, counted and named.
"""

import concurrent.futures
import dataclasses
import os
import warnings

import numpy as np
from PIL import Image

from ncsn_jax.data import transforms
from ncsn_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")
NAMED = 5


@dataclasses.dataclass
class Skipped:
    """Files that were left out: paths of other kinds, and paths with the reason why not."""

    other: list[str] = dataclasses.field(default_factory=list)
    corrupt: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def describe(self) -> str:
        """Returns one line with the counts and the first few names, or "" if nothing was left out."""
        parts = []
        if self.other:
            parts.append(f"{len(self.other)} not PNG or JPEG ({_some(self.other)})")
        if self.corrupt:
            named = [f"{path}: {reason}" for path, reason in self.corrupt]
            parts.append(f"{len(self.corrupt)} unreadable ({_some(named)})")
        return "left out " + " and ".join(parts) if parts else ""


def find(directory: str) -> tuple[list[str], list[str]]:
    """Returns the sorted relative paths of images and of all other files; hidden ones are ignored."""
    images, other = [], []
    for root, folders, files in os.walk(directory, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in files:
            if not name.startswith("."):
                path = os.path.relpath(os.path.join(root, name), directory)
                (images if name.lower().endswith(SUFFIXES) else other).append(path)
    return sorted(images), sorted(other)


def read(directory: str, size: int, channels: int, crop_size: int) -> tuple[np.ndarray, Skipped]:
    """Decodes a directory tree of images.

    Args:
      directory: its path.
      size, channels, crop_size: see `ncsn_jax.data.transforms.fit`.

    Returns:
      uint8 `[N, size, size, channels]` with N >= 1, and what was left out.

    Raises:
      UserError: if there is no such directory or no image that can be read.
    """
    if not os.path.isdir(directory):
        raise UserError(f"data.data_dir={directory!r} is not a directory of images")
    paths, other = find(directory)
    skipped = Skipped(other=other)

    def decode(path: str) -> np.ndarray | str:
        try:
            with Image.open(os.path.join(directory, path), formats=("PNG", "JPEG")) as image:
                if crop_size == transforms.LARGEST_SQUARE:
                    image.draft("RGB", (2 * size, 2 * size))
                return transforms.fit(image, size, channels, crop_size)
        # Pillow raises whatever its decoders run into; the file is named, with the reason.
        except Exception as error:
            return str(error).splitlines()[0] if str(error) else type(error).__name__

    # The filters are the process's, so they are set once, around all threads.
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor() as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        results = list(pool.map(decode, paths))
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, str):
            skipped.corrupt.append((path, result))
    images = [r for r in results if not isinstance(r, str)]
    if not images:
        raise UserError(
            f"data.data_dir={directory!r} holds no readable PNG or JPEG image"
            + (f": {skipped.describe()}" if skipped.describe() else "")
        )
    return np.stack(images), skipped


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
