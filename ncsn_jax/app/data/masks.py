"""The masks of inpainting, which say what pixels are observed."""

import os
import warnings

import numpy as np

from ncsn_jax.errors import UserError


def make_masks(mask: str, shape: tuple[int, int, int], count: int, seed: int) -> np.ndarray:
    """Returns which pixels of each image are observed.

    Args:
      mask: 'left': the left half is observed, as in NCSN's figure 6; 'box': all but a box at random,
        with sides from a third to two thirds of the image's; else the path of a grey PNG or JPEG image,
        in which white is observed and black is filled in.
      shape: (H, W, C) of the images.
      count: the number of images.
      seed: of the boxes; the box of image i depends on the seed and i alone.

    Returns:
      bool `[count, H, W, C]`.

    Raises:
      UserError: if there is no such file, or it is no image of this size.
    """
    height, width, _ = shape
    if mask == "left":
        masks = np.arange(width) < (width + 1) // 2
    elif mask == "box":
        masks = np.stack([_box(height, width, seed, i) for i in range(count)])
    else:
        masks = _read_mask(mask, height, width)
    return np.broadcast_to(masks[..., None], (count, *shape))


def _box(height: int, width: int, seed: int, index: int) -> np.ndarray:
    rng = np.random.default_rng([seed, index])
    observed = np.ones((height, width), bool)
    thirds = ((-(-n // 3), max(1, 2 * n // 3)) for n in (height, width))
    high, wide = (int(rng.integers(low, most + 1)) for low, most in thirds)
    top, left = int(rng.integers(0, height - high + 1)), int(rng.integers(0, width - wide + 1))
    observed[top : top + high, left : left + wide] = False
    return observed


def _read_mask(path: str, height: int, width: int) -> np.ndarray:
    from PIL import Image

    field = f"config.inpainting.mask={path!r}"
    if not os.path.isfile(path):
        raise UserError(f"{field} is neither 'left' nor 'box' nor an image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow; what is too large has another size
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                size = image.size
                if size == (width, height):
                    return np.asarray(image.convert("L")) >= 128
    # Pillow raises whatever its decoders run into.
    except Exception as error:
        raise UserError(f"{field} is no PNG or JPEG image ({type(error).__name__})") from None
    raise UserError(f"{field} is {size[0]}x{size[1]} pixels, but the images have {width}x{height}")
