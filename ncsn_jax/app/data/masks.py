"""Makes the masks of inpainting and restoration, which say what is observed."""

import logging
import os

import numpy as np
from PIL import Image

from ncsn_jax.app import storage
from ncsn_jax.app.data import arrays, reading
from ncsn_jax.errors import UserError, one_line

_log = logging.getLogger(__name__)


def make_masks(
    mask: str,
    shape: tuple[int, int, int],
    count: int,
    seed: int,
    background: int = 255,
    field: str = "config.inpainting.mask",
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
      field: where `mask` comes from, for messages.

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
        masks = _read_mask(storage.path(mask), height, width, background, field)
    return np.broadcast_to(masks[..., None], (count, *shape))


def random_masks(
    shape: tuple[int, int], count: int, seed: int, factor: float, *, fourier: bool = False
) -> np.ndarray:
    """Returns which pixels or Fourier coefficients of each image are measured: one of `factor`, at least one.

    Of Fourier coefficients a third are those of the lowest frequencies. Those of k and -k of a real image
    are conjugates, so they count as one value, and only one of them is measured.

    Args:
      shape: (H, W) of the images.
      count: the number of images.
      seed: the mask of image i depends on the seed and i alone.
      factor: >= 1.
      fourier: whether to draw Fourier coefficients, in the order of `np.fft.fft2`, and not pixels.

    Returns:
      bool `[count, H, W]`.
    """
    values = np.arange(shape[0] * shape[1])
    if fourier:
        high, wide = (np.arange(n) for n in shape)
        conjugate = values.reshape(shape)[np.ix_(-high, -wide)].ravel()
        frequency = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")).ravel()
        values = values[values <= conjugate]
        values = values[np.argsort(frequency[values], kind="stable")]
    measured = max(1, round(len(values) / factor))
    always = -(-measured // 3) if fourier else 0
    masks = np.zeros((count, shape[0] * shape[1]), bool)
    for i, mask in enumerate(masks):
        rng = np.random.default_rng([seed, i])
        mask[values[:always]] = True
        mask[rng.choice(values[always:], measured - always, replace=False)] = True
    return masks.reshape(count, *shape)


def read_masks(name: str, shape: tuple[int, int], count: int, field: str) -> np.ndarray:
    """Returns the masks in a file of an array, bool `[count, H, W]`.

    Args:
      name: the file, as `arrays.is_array` takes it; its array is boolean, or 0 and 1, `[H, W]` for all images
        or `[N, H, W]`.
      shape: (H, W) of the images.
      count: the number of images, at most N.
      field: where `name` comes from, for messages.

    Raises:
      UserError: if the array cannot be read or does not fit.
    """
    masks, what = arrays.read(name, field), f"{field}={name!r}"
    if masks.shape[-2:] != shape or masks.ndim not in (2, 3):
        high, wide = shape
        raise UserError(
            f"{what} has shape {masks.shape}, but must be [{high}, {wide}] or [N, {high}, {wide}]"
        )
    if masks.dtype.kind not in "biuf" or not np.isin(masks, (0, 1)).all():
        raise UserError(f"{what} must hold True or False, or 1 or 0, alone")
    if masks.ndim == 3 and len(masks) < count:
        raise UserError(f"{what} has {len(masks)} masks, but there are {count} images")
    masks = masks if masks.ndim == 3 else masks[None]
    return np.broadcast_to(masks[:count] != 0, (count, *shape))


def _box(height: int, width: int, seed: int, index: int) -> np.ndarray:
    rng = np.random.default_rng([seed, index])
    observed = np.ones((height, width), bool)
    thirds = ((-(-n // 3), max(1, 2 * n // 3)) for n in (height, width))
    high, wide = (int(rng.integers(low, most + 1)) for low, most in thirds)
    top, left = int(rng.integers(0, height - high + 1)), int(rng.integers(0, width - wide + 1))
    observed[top : top + high, left : left + wide] = False
    return observed


def _read_mask(path: str, height: int, width: int, background: int, field: str) -> np.ndarray:
    field = f"{field}={path!r}"
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
