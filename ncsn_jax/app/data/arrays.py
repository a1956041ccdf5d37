"""People's own arrays as images: uint8 or floating point, `[N, H, W]` or `[N, H, W, C]`.

A `.npy` file is mapped into memory and only read where a batch needs it, so that it may be larger than the
memory. A member of a `.npz` file is read into memory. `ncsn_jax.app.units` says what units the values have.
"""

import hashlib
import math
import os
import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from ncsn_jax.app import storage, units
from ncsn_jax.app.data import cache
from ncsn_jax.app.data.holdout import is_held_out
from ncsn_jax.errors import UserError, show

# A file, and the member of it, if it is named.
_FILE = re.compile(r"(.+\.npy)|(.+\.npz)(?::(.*))?", re.IGNORECASE | re.DOTALL)

# A larger share of values outside the range is taken for a mistake in the range.
_MOST_OUTSIDE = 0.5

# So many elements are looked at at once.
_CHUNK = 2**20


def is_array(name: str) -> bool:
    """Returns whether a name is that of a file of arrays: `FILE.npy`, `FILE.npz` or `FILE.npz:KEY`."""
    return _FILE.fullmatch(name) is not None


class Rows:
    """Some rows of an array, which are read only when they are asked for.

    Args:
      array: `[N, ...]`; may be mapped from a file.
      rows: their places, int `[M]`.
    """

    def __init__(self, array: np.ndarray, rows: np.ndarray):
        self._array, self._rows = array, rows
        self.shape, self.dtype = (len(rows), *array.shape[1:]), array.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, which) -> np.ndarray:
        return self._array[self._rows[which]]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def load(
    source: str | np.ndarray,
    image_shape: tuple[int, int, int],
    value_range: Sequence[float],
    *,
    split: str = "train",
    holdout: float = 0.0,
    field: str = "data.dataset",
) -> np.ndarray | Rows:
    """Returns the images of an array.

    Args:
      source: a name for which `is_array` is true, or the array itself.
      image_shape: (H, W, C) that the images must have; `[N, H, W]` has one channel.
      value_range: (low, high) for floating-point values, `()` for uint8.
      split: "train" or "test", which is the fraction `holdout` of the images that `is_held_out` chooses.
      holdout: in [0, 1).
      field: where the array comes from, for messages.

    Returns:
      `[N, H, W, C]`, N >= 1, of the array's type; of a `.npy` file mapped into memory.

    Raises:
      UserError: if there is no such array, its type, shape or values do not fit, or the split is empty.
    """
    if split == "test" and not holdout:
        raise UserError(
            "data.holdout=0 must be above 0, such as 0.1, for an array to have a test split; "
            "config.inpainting.images names other images, and config.likelihood.split='train' takes those "
            "of training"
        )
    version = None
    if isinstance(source, str):
        array, version = _open(source, field)
        field = f"{field}={source!r}"
    else:
        field = "images"
        try:
            array = np.asarray(source)
        except Exception as error:  # of any class that gives arrays
            raise UserError(f"images={show(source)} is no array ({type(error).__name__})") from None
    array = _checked(array, image_shape, value_range, field)
    if array.dtype == np.uint8 and not holdout:
        return array

    def make() -> tuple[np.ndarray, str]:
        return _examine(array, value_range, holdout, field), ""

    if version:
        held_out, _ = cache.images("array", [*version, list(value_range), holdout], make)
    else:
        held_out, _ = make()
    if not holdout:
        return array
    rows = np.flatnonzero(held_out if split == "test" else ~held_out)
    if not len(rows):
        raise UserError(f"data.holdout={holdout} leaves no image of {field} for the {split} split")
    return Rows(array, rows)


def _open(name: str, field: str) -> tuple[np.ndarray, list]:
    """Returns the array that a name stands for, and what tells that its content is the same."""
    npy, npz, key = _FILE.fullmatch(name).groups()
    path = os.path.abspath(npy or npz)
    what = f"{field}={name!r}"
    if storage.is_remote(name):
        raise UserError(f"{what} must be on a disk, from which arrays are mapped")
    try:
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
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror or error}") from None
    # Damaged files raise all kinds of exceptions.
    except Exception as error:
        raise UserError(
            f"{what} cannot be read as an array ({type(error).__name__}: {error})"
        ) from None
    shown = ", ".join(names) or "none"
    if key is None:
        raise UserError(f"{what} must name one of the file's arrays, as in FILE.npz:KEY: {shown}")
    raise UserError(f"{what}: the file has no array {key!r}, only: {shown}")


def _checked(array, image_shape, value_range, field: str) -> np.ndarray:
    """Returns the array as `[N, H, W, C]`; refuses other types and shapes than those that are wanted."""
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    if array.dtype != np.uint8 and not floating:
        raise UserError(f"{field} is of type {array.dtype}, must be uint8 or floating point")
    if array.ndim not in (3, 4) or not array.size:
        raise UserError(
            f"{field} is of shape {array.shape}, must be [N, H, W] or [N, H, W, C], none of them 0"
        )
    if array.ndim == 3:
        array = array[..., None]
    (height, width, channels), found = image_shape, array.shape[1:]
    if found[2] != channels:
        raise UserError(f"data.channels={channels}, but {field} has {found[2]} channels")
    if found[:2] != (height, width):
        raise UserError(
            f"data.image_size={(height, width)}, but {field} has images of {found[:2]} (height, width), and "
            "arrays are not resized"
        )
    if value_range and not floating:
        raise UserError(
            f"data.value_range={tuple(value_range)} must be () for {field}, which is of type uint8"
        )
    return array


def _examine(array: np.ndarray, value_range, holdout: float, field: str) -> np.ndarray:
    """Returns which images are held out, bool `[N]`; refuses values that are not finite or have no range."""
    held_out, extremes, outside = np.zeros(len(array), bool), [], 0
    size = max(1, _CHUNK // math.prod(array.shape[1:]))
    for first in range(0, len(array), size):
        rows = array[first : first + size]
        if array.dtype != np.uint8:
            with np.errstate(all="ignore"):  # what overflows is not finite
                values = units.to_unit(rows, value_range) if value_range else rows
            finite = np.isfinite(values).reshape(len(rows), -1).all(axis=1)
            if not finite.all():
                raise UserError(
                    f"{field} holds a value that is not finite, in image {first + np.argmin(finite)}"
                )
            extremes += [float(rows.min()), float(rows.max())]
            outside += int(np.sum((values < 0) | (values > 1))) if value_range else 0
        if holdout:
            held_out[first : first + size] = [
                is_held_out(hashlib.sha256(row.tobytes()).digest(), holdout) for row in rows
            ]
    if extremes and not value_range:
        raise UserError(
            f"data.value_range=() must be (low, high) for the floating-point values of {field}, which go "
            f"from {min(extremes):g} to {max(extremes):g}"
        )
    share = outside / array.size
    if share > _MOST_OUTSIDE:
        raise UserError(
            f"data.value_range={tuple(value_range)} must hold most of the values of {field}, which go from "
            f"{min(extremes):g} to {max(extremes):g}: {100 * share:.0f} % lie outside"
        )
    return held_out
