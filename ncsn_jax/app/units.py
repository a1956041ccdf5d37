"""Converts images between the user's units and [0, 1], which networks and pictures use.

`config.data.value_range` gives the units: `()` for bytes, 0 to 255, and (low, high) for floating-point data,
which may lie outside it. Samples are written in the data's units, as uint8 or float32.
"""

from collections.abc import Sequence

import numpy as np

from ncsn_jax.app import pictures


def dtype(value_range: Sequence[float]) -> np.dtype:
    """Returns the type of samples and of a training step's images: uint8 for bytes, else float32."""
    return np.dtype(np.float32 if value_range else np.uint8)


def to_unit(images: np.ndarray, value_range: Sequence[float]) -> np.ndarray:
    """Returns (images - low) / (high - low), float32; for bytes, low is 0 and high is 255."""
    if not value_range:
        return np.asarray(images, np.float32) / np.float32(255)
    low, high = value_range
    return ((np.asarray(images, np.float64) - low) / (high - low)).astype(np.float32)


def from_unit(x: np.ndarray, value_range: Sequence[float]) -> np.ndarray:
    """Returns low + (high - low) x, float32, or bytes, rounded and clipped; undoes `to_unit`."""
    if not value_range:
        return pictures.to_uint8(x)
    low, high = value_range
    return (low + (high - low) * np.asarray(x, np.float64)).astype(np.float32)


def unrounded(value_range: Sequence[float]) -> Sequence[float]:
    """Returns the range of the same units with fractions: bytes as floating-point values, 0 to 255."""
    return value_range or (0.0, 255.0)


def to_input(images: np.ndarray, value_range: Sequence[float]) -> np.ndarray:
    """Returns images as a training step takes them: bytes unchanged, others float32 by `to_unit`."""
    return to_unit(images, value_range) if value_range else images


def to_picture(images: np.ndarray, value_range: Sequence[float]) -> np.ndarray:
    """Returns images as bytes: low is black, high is white, and values outside are clipped."""
    return pictures.to_uint8(to_unit(images, value_range)) if value_range else images
