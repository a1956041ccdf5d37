"""Crops and resizes 8-bit images with Pillow."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

LARGEST_SQUARE = -1


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Returns (height, width) for a size that is the side of a square, or already such a pair."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def fit(image: Image.Image, size: int | Sequence[int], channels: int, crop_size: int) -> np.ndarray:
    """Returns the image as an array of the wanted shape, uint8 `[height, width, channels]`.

    Resizing is bilinear: a pixel's weight falls linearly with its distance, to zero at the spacing of the
    coarser of the two grids (Pillow's BILINEAR, which smooths as it shrinks).

    Args:
      image: upright, 8-bit; see `ncsn_jax.app.data.reading`.
      size: side of the result in pixels, or (height, width).
      channels: 1 for grey, 3 for RGB.
      crop_size: side of the centre crop that is resized to `size`, or the shorter side if `size` is a
        rectangle; -1 for the largest crop of that shape; 0 for no change, which requires the right size.

    Raises:
      ValueError: if the image is smaller than the crop, or has the wrong size and must not be changed.
    """
    image = image.convert("L" if channels == 1 else "RGB")
    height, width = sides(size)
    if crop_size == 0:
        if image.size != (width, height):
            raise ValueError(
                f"is {image.width}x{image.height}, not {width}x{height}; "
                "set data.crop_size to crop and resize (-1 for the largest square)"
            )
    else:
        largest = min(image.width / width, image.height / height)
        scale = largest if crop_size == LARGEST_SQUARE else crop_size / min(width, height)
        if scale > largest:
            raise ValueError(
                f"is {image.width}x{image.height}, smaller than data.crop_size={crop_size}"
            )
        across, down = round(scale * width), round(scale * height)
        left, top = (image.width - across) // 2, (image.height - down) // 2
        image = image.crop((left, top, left + across, top + down))
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(image, np.uint8).reshape(height, width, channels)
