"""Takes users' arrays as images: uint8 or floating point, `[N, H, W]` or `[N, H, W, C]`.

A `.npy` file is mapped into memory and read only where a batch needs it, so it may be larger than memory;
in object storage it is read by ranges. A member of a `.npz` file is read into memory.
`ncsn_jax.app.units` describes the units of the values.
"""

import hashlib
import io
import math
import os
import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from ncsn_jax.app import storage, units
from ncsn_jax.app.data import cache
from ncsn_jax.app.data.holdout import is_held_out
from ncsn_jax.app.data.images import Images, Source
from ncsn_jax.errors import UserError, show

# A file, and optionally a member of it.
_FILE = re.compile(r"(.+\.npy)|(.+\.npz)(?::(.*))?", re.IGNORECASE | re.DOTALL)

# If a larger share of values lies outside the range, the range is probably wrong.
_MAX_OUTSIDE = 0.5

# How many elements are examined at once, and how many images of a large array.
_CHUNK, _EXAMINED = 2**20, 1000
# A .npy header is shorter than this.
_HEADER = 2**16


def is_array(name: str) -> bool:
    """Returns whether a name is a file of arrays: `FILE.npy`, `FILE.npz` or `FILE.npz:KEY`."""
    return _FILE.fullmatch(name) is not None


class RemoteArray:
    """A `.npy` file in object storage, which reads a row or a range of rows on demand.

    Args:
      url: the file's URL.

    Raises:
      OSError: if it cannot be read.
      ValueError: if it is not a `.npy` file, or not in C order.
    """

    def __init__(self, url: str):
        file = io.BytesIO(storage.read_part(url, 0, _HEADER))
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in read:
            raise ValueError(f"its format {version} is unknown")
        self.shape, is_fortran, self.dtype = read[version](file)
        if is_fortran or self.dtype.hasobject:
            raise ValueError("it must hold numbers in C order")
        self.ndim, self.size = len(self.shape), math.prod(self.shape)
        self.nbytes = self.size * self.dtype.itemsize
        self._url, self._start = url, file.tell()
        self._row = self.size // max(self.shape[0], 1) * self.dtype.itemsize if self.shape else 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: int | slice) -> np.ndarray:
        first, last, step = (
            (which, which + 1, 1) if isinstance(which, int) else which.indices(len(self))
        )
        count = max(last - first, 0)
        try:
            data = storage.read_part(self._url, self._start + first * self._row, count * self._row)
        except OSError as error:
            raise UserError(f"{self._url} cannot be read: {error.strerror}") from None
        rows = np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])[::step]
        return rows[0] if isinstance(which, int) else rows


class Rows(Source):
    """Some images of an array, as a source; see `ncsn_jax.app.data.images.Source`.

    Args:
      array: `[N, H, W]` or `[N, H, W, C]`; may be mapped from a file.
      rows: their indices, int `[M]`.
      what: what the images belong to, for messages.
    """

    def __init__(self, array: np.ndarray | RemoteArray, rows: np.ndarray, what: str):
        self._array, self._rows, self.what = array, rows, what
        self._image_shape = (*array.shape[1:], 1)[:3]
        self.shape, self.dtype = (len(rows), *self._image_shape), array.dtype

    def name(self, index: int) -> str:
        """Returns an image's name."""
        return f"image {self._rows[index]}"

    def image(self, index: int) -> np.ndarray:
        """Returns an image, which must be finite."""
        try:
            image = np.array(self._array[int(self._rows[index])])
        except (OSError, ValueError) as error:  # ValueError: the file has become shorter
            raise UserError(f"{self.what}: {self.name(index)} cannot be read: {error}") from None
        if self.dtype != np.uint8 and not np.isfinite(image).all():
            raise UserError(f"{self.what} holds a non-finite value in {self.name(index)}")
        return image.reshape(self._image_shape)


def load(
    source: str | np.ndarray,
    image_shape: tuple[int, int, int],
    value_range: Sequence[float],
    *,
    split: str = "train",
    holdout: float = 0.0,
    field: str = "data.dataset",
    cache_bytes: int = cache.CACHE_BYTES,
) -> Images:
    """Returns the images of an array.

    Args:
      source: a name for which `is_array` is true, or the array itself.
      image_shape: (H, W, C) that the images must have; `[N, H, W]` has one channel.
      value_range: (low, high) for floating-point values, `()` for uint8.
      split: "train" or "test"; `is_held_out` chooses the fraction `holdout` of the images for "test".
      holdout: in [0, 1). Above 0, the whole array is read once.
      field: where the array comes from, for messages.
      cache_bytes: a larger array has a thousand images checked now, and each when it is read.

    Returns:
      `[N, H, W, C]`, N >= 1, of the array's type; a `.npy` file is mapped into memory.

    Raises:
      UserError: if the array does not exist, its type, shape or values do not fit, or the split is empty.
    """
    if split == "test" and not holdout:
        raise UserError(
            "data.holdout=0 must be above 0, such as 0.1, for an array to have a test split; "
            "or name other images in config.inpainting.images or config.restore.images, or set "
            "config.likelihood.split='train'"
        )
    version = None
    if isinstance(source, str):
        array, version = _open(source, field)
        field = f"{field}={source!r}"
    else:
        field = "images"
        try:
            array = np.asarray(source)
        except Exception as error:  # `source` may be of any class
            raise UserError(
                f"images={show(source)} is not an array ({type(error).__name__})"
            ) from None
    _check(array, image_shape, value_range, field)
    is_large = array.size * array.dtype.itemsize >= cache_bytes and source is not array
    if isinstance(array, RemoteArray) and not is_large:
        array = cache.array("array", version, lambda: (array[:], ""))[0]
    rows = np.arange(len(array))
    if array.dtype != np.uint8 or holdout:
        stride = -(-len(array) // _EXAMINED) if is_large and not holdout else 1

        def make() -> tuple[np.ndarray, str]:
            return _examine(array, value_range, holdout, field, stride), ""

        if version:
            held_out, _ = cache.array("array", [*version, list(value_range), holdout, stride], make)
        else:
            held_out, _ = make()
        if holdout:
            rows = np.flatnonzero(held_out if split == "test" else ~held_out)
    if not len(rows):
        raise UserError(f"data.holdout={holdout} leaves no image of {field} for the {split} split")
    if is_large:
        return Images(Rows(array, rows, field))
    return Images(array if array.ndim == 4 else array[..., None], rows=rows if holdout else None)


def read(name: str, field: str, count: int | None = None) -> np.ndarray:
    """Returns an array, or its first `count` rows, in memory.

    Args:
      name: a name for which `is_array` is true.
      field: where it comes from, for messages.
      count: how many rows at most; None for all.

    Raises:
      UserError: if it cannot be read.
    """
    array, _ = _open(name, field)
    return np.array(array[:count] if array.ndim else array)


@np.errstate(all="ignore")  # NumPy warns of impossible shapes before it refuses them.
def _open(name: str, field: str) -> tuple[np.ndarray | RemoteArray, list]:
    """Returns the array that a name stands for, and a version that changes with its content."""
    npy, npz, key = _FILE.fullmatch(name).groups()
    path = npy or npz
    what = f"{field}={name!r}"
    try:
        if storage.is_remote(path):
            storage.check(path, field)
            if npz:
                raise UserError(f"{what} must be a .npy file: a .npz file cannot be read in parts")
            array, (_, size, version) = RemoteArray(path), storage.find_objects(path)[0]
            if size < array.nbytes:
                raise ValueError("it is truncated")
            return array, [path, size, version]
        path = os.path.abspath(path)
        status = os.stat(path)
        version = [path, key, status.st_size, status.st_mtime_ns]
        if npy:
            return np.load(path, mmap_mode="r", allow_pickle=False), version
        with np.load(path, allow_pickle=False) as file:
            names = list(file.files)
            if key is None and len(names) == 1:
                (key,) = names
            if key in names:
                return file[key], version
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror or error}") from None
    # Damaged files can raise any exception.
    except Exception as error:
        raise UserError(
            f"{what} cannot be read as an array ({type(error).__name__}: {error})"
        ) from None
    shown = ", ".join(names) or "none"
    if key is None:
        raise UserError(f"{what} must name one of the file's arrays, as in FILE.npz:KEY: {shown}")
    raise UserError(f"{what}: the file has no array {key!r}, only: {shown}")


def _check(array, image_shape, value_range, field: str) -> None:
    """Refuses an array of the wrong type or shape."""
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    if array.dtype != np.uint8 and not floating:
        raise UserError(f"{field} has type {array.dtype}, but must be uint8 or floating point")
    if array.ndim not in (3, 4) or not array.size:
        raise UserError(
            f"{field} has shape {array.shape}, but must be [N, H, W] or [N, H, W, C] and not empty"
        )
    (height, width, channels), found = image_shape, (*array.shape[1:], 1)[:3]
    if found[2] != channels:
        raise UserError(f"data.channels={channels}, but {field} has {found[2]} channels")
    if found[:2] != (height, width):
        raise UserError(
            f"data.image_size={(height, width)}, but {field} has images of {found[:2]} (height, width), and "
            "arrays are not resized"
        )
    if value_range and not floating:
        raise UserError(
            f"data.value_range={tuple(value_range)} must be () for {field}, which has type uint8"
        )


def _examine(array, value_range, holdout: float, field: str, stride: int) -> np.ndarray:
    """Returns which images are held out, bool `[N]`; refuses non-finite values and a wrong range.

    It examines only every `stride`-th image.
    """
    held_out, extremes, outside, examined = np.zeros(len(array), bool), [], 0, 0
    size = max(1, _CHUNK // math.prod(array.shape[1:])) if stride == 1 else 1
    for first in range(0, len(array), size * stride):
        rows = array[first : first + size]
        examined += rows.size
        if array.dtype != np.uint8:
            with np.errstate(all="ignore"):  # an overflow is found as not finite
                values = units.to_unit(rows, value_range) if value_range else rows
            finite = np.isfinite(values).reshape(len(rows), -1).all(axis=1)
            if not finite.all():
                raise UserError(
                    f"{field} holds a non-finite value in image {first + np.argmin(finite)}"
                )
            extremes += [float(rows.min()), float(rows.max())]
            outside += int(np.sum((values < 0) | (values > 1))) if value_range else 0
        if holdout:
            held_out[first : first + size] = [
                is_held_out(hashlib.sha256(row.tobytes()).digest(), holdout) for row in rows
            ]
    if extremes and not value_range:
        raise UserError(
            f"data.value_range=() must be (low, high) for the floating-point values of {field}, which "
            f"range from {min(extremes):g} to {max(extremes):g}"
        )
    share = outside / max(examined, 1)
    if share > _MAX_OUTSIDE:
        raise UserError(
            f"data.value_range={tuple(value_range)} must contain most of the values of {field}, which range "
            f"from {min(extremes):g} to {max(extremes):g}: {100 * share:.0f} % lie outside"
        )
    return held_out
