"""Centre crop and resize of 8-bit images, by Pillow."""

import numpy as np
from PIL import Image

LARGEST_SQUARE = -1


def fit(image: Image.Image, size: int, channels: int, crop_size: int) -> np.ndarray:
    """Returns the image as an array of the wanted shape, uint8 `[size, size, channels]`.

    Resizing is bilinear: the weight of a pixel falls linearly with its distance, to zero at the
    spacing of the coarser of the two grids (Pillow's BILINEAR, which smooths what it makes smaller).

    Args:
      image: upright, of 8 bits; see `ncsn_jax.app.data.reading`.
      size: side of the result in pixels.
      channels: 1 for grey, 3 for RGB.
      crop_size: side of the centre crop that is resized to `size`; -1 for the largest square; 0 for
        no change, where the image must have the right size already.

    Raises:
      ValueError: if the image is smaller than the crop, or has another size and must not be changed.
    """
    image = image.convert("L" if channels == 1 else "RGB")
    if crop_size == 0:
        if image.size != (size, size):
            raise ValueError(
                f"is {image.width}x{image.height}, not {size}x{size}; "
                "set data.crop_size to crop and resize (-1 for the largest square)"
            )
    else:
        side = min(image.size) if crop_size == LARGEST_SQUARE else crop_size
        if side > min(image.size):
            raise ValueError(f"is {image.width}x{image.height}, smaller than data.crop_size={side}")
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        if side != size:
            image = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(image, np.uint8).reshape(size, size, channels)
