"""People's own pictures: a directory tree of PNG and JPEG files as one array.

Files named .png, .jpg or .jpeg are taken in the order of their path below the directory; links are
followed, to every directory once. All other files, and whatever cannot be decoded, are left out, counted
and named.
"""

import collections
import concurrent.futures
import os
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

from ncsn_jax.app.data import transforms
from ncsn_jax.errors import UserError, one_line

_SUFFIXES = (".png", ".jpg", ".jpeg")
# So many files that are left out are named.
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


def find(directory: str) -> tuple[list[str], list[str]]:
    """Returns the sorted relative paths of images and of all other files; hidden ones are ignored."""
    images, other = [], []
    for folder, names in walk(directory):
        for name in names:
            if not name.startswith("."):
                path = os.path.relpath(os.path.join(folder, name), directory)
                (images if name.lower().endswith(_SUFFIXES) else other).append(path)
    return sorted(images), sorted(other)


def read(
    directory: str, size: int, channels: int, crop_size: int, field: str = "data.data_dir"
) -> tuple[np.ndarray, str]:
    """Decodes a directory tree of images.

    Args:
      directory: its path.
      size, channels, crop_size: see `ncsn_jax.app.data.transforms.fit`.
      field: where the path comes from, for messages.

    Returns:
      uint8 `[N, size, size, channels]` with N >= 1, and one line that names what was left out, or "".

    Raises:
      UserError: if there is no such directory or no image that can be read.
    """
    if not os.path.isdir(directory):
        raise UserError(f"{field}={directory!r} is not a directory of images")
    paths, other = find(directory)

    def decode(name: str) -> np.ndarray | str:
        try:
            with Image.open(os.path.join(directory, name), formats=("PNG", "JPEG")) as image:
                if crop_size == transforms.LARGEST_SQUARE:
                    image.draft("RGB", (2 * size, 2 * size))
                return transforms.fit(image, size, channels, crop_size)
        # Pillow raises whatever its decoders run into; the file is named, with the reason.
        except Exception as error:
            return str(error).splitlines()[0] if str(error) else type(error).__name__

    # The filters are the process's, so they are set once, around all threads.
    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # of Pillow, about what it can read all the same
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        results = list(pool.map(decode, paths))
    images = [r for r in results if not isinstance(r, str)]
    pairs = zip(paths, results, strict=True)
    corrupt = [f"{path}: {result}" for path, result in pairs if isinstance(result, str)]
    parts = [
        f"{len(names)} {what} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
        for names, what in ((other, "not PNG or JPEG"), (corrupt, "unreadable"))
        if names
    ]
    left_out = one_line("left out " + " and ".join(parts)) if parts else ""
    if not images:
        reason = f": {left_out}" if left_out else ""
        raise UserError(f"{field}={directory!r} holds no readable PNG or JPEG image{reason}")
    return np.stack(images), left_out
