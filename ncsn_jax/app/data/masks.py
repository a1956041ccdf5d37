"""Makes the masks of inpainting, which say what pixels are observed."""

import logging
import os

import numpy as np
from PIL import Image

from ncsn_jax.app import storage
from ncsn_jax.app.data import reading
from ncsn_jax.errors import UserError, one_line

_log = logging.getLogger(__name__)


def make_masks(
    mask: str, shape: tuple[int, int, int], count: int, seed: int, background: int = 255
) -> np.ndarray:
    """Returns which pixels of each image are observed.

    Args:
      mask: 'left': the left half is observed, as in NCSN's figure 6; 'box': all but a random box is, whose
        sides are a third to two thirds of the image's; else the path of an image, in which white
        (128 and above) is observed and black is filled in. It is resized to (H, W) by nearest pixels.
      shape: (H, W, C) of the images.
      count: the number of images.
      seed: the boxes' seed; the box of image i depends on the seed and i alone.
      background: grey value of an image's transparent pixels, from 0 to 255.

    Returns:
      bool `[count, H, W, C]`.

    Raises:
      UserError: if the file does not exist, or cannot be read as an image.
    """
    height, width, _ = shape
    if mask == "left":
        masks = np.arange(width) < (width + 1) // 2
    elif mask == "box":
        masks = np.stack([_box(height, width, seed, i) for i in range(count)])
    else:
        masks = _read_mask(storage.path(mask), height, width, background)
    return np.broadcast_to(masks[..., None], (count, *shape))


def _box(height: int, width: int, seed: int, index: int) -> np.ndarray:
    rng = np.random.default_rng([seed, index])
    observed = np.ones((height, width), bool)
    thirds = ((-(-n // 3), max(1, 2 * n // 3)) for n in (height, width))
    high, wide = (int(rng.integers(low, most + 1)) for low, most in thirds)
    top, left = int(rng.integers(0, height - high + 1)), int(rng.integers(0, width - wide + 1))
    observed[top : top + high, left : left + wide] = False
    return observed


def _read_mask(path: str, height: int, width: int, background: int) -> np.ndarray:
    field = f"config.inpainting.mask={path!r}"
    if not os.path.isfile(path):
        raise UserError(f"{field} must be 'left', 'box' or an image file")
    try:
        with reading.pillow(), reading.opened(path) as file:
            found = reading.decode(file, background)
            image, size = found.image.convert("L"), found.image.size
            if size != (width, height):
                image = image.resize((width, height), Image.Resampling.NEAREST)
    # Pillow's decoders can raise any exception.
    except Exception as error:
        raise UserError(
            f"{field} is not a readable {reading.KINDS} image ({type(error).__name__})"
        ) from None
    if size != (width, height):
        _log.info("%s is resized from %dx%d to %dx%d pixels", one_line(field), *size, width, height)
    if found.dark:
        _log.warning("%s is almost black: %s", one_line(field), found.dark)
    return np.asarray(image) >= 128
