"""Reads all users' images: those of training, those to complete, and masks.

A file's content decides what it is, not its name. An image comes out upright, with 8 bits, and on the
background where it is transparent.
"""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ncsn_jax.app.data import transforms

KINDS = "PNG, JPEG, WebP, BMP, TIFF or GIF"
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
# The first bytes of a file that show whether it is one of these.
PREFIX = 16
# Larger images are refused. Only one image beyond Pillow's own limit is in memory at a time.
_MAX_PIXELS, _LARGE = 2**29, 2**27
_one_large = threading.Lock()
# How many blocks of `pillow` are active, and Pillow's own limit outside them.
_blocks, _limit, _lock = 0, None, threading.Lock()
# An image with no value this large, of 255, is almost black. In 16 bits it is 4096 of 65535.
_DARK = 16


class Damaged(Exception):
    """An image that cannot be decoded, with the reason."""


class Found(NamedTuple):
    """A decoded image.

    Attributes:
      image: upright, of mode "L" or "RGB".
      transparent: whether the background shows.
      dark: why the image is almost black, in words, or "".
    """

    image: Image.Image
    transparent: bool
    dark: str


def is_image(prefix: bytes) -> bool:
    """Returns whether a file with these first `PREFIX` bytes is one of `KINDS`."""
    Image.init()
    return any(Image.OPEN[kind][1](prefix) for kind in _FORMATS)


@contextlib.contextmanager
def pillow() -> Iterator[None]:
    """Leaves the size limit to `opened`, and keeps Pillow's warnings out of the output.

    Both settings are global to the process, so this must surround all threads. Blocks may overlap.
    """
    global _blocks, _limit
    # The warnings concern files that Pillow reads all the same.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with _lock:
        if not _blocks:
            _limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                Image.MAX_IMAGE_PIXELS = _limit


@contextlib.contextmanager
def opened(file: str | io.BytesIO, least: int = 0) -> Iterator[Image.Image]:
    """Opens the first image in a file for `decode`; use it inside `pillow`.

    Args:
      file: its path, or its content.
      least: if not 0, a JPEG file may be decoded smaller, to no less than this many pixels a side.

    Raises:
      PIL.UnidentifiedImageError: if the file is not one of `KINDS`.
      Exception: whatever else Pillow raises.
    """
    with contextlib.ExitStack() as stack:
        image = stack.enter_context(Image.open(file, formats=_FORMATS))
        if least:
            image.draft("RGB", (least, least))
        pixels = image.width * image.height
        if pixels > _MAX_PIXELS:
            raise ValueError(f"is {image.width}x{image.height}, more than {_MAX_PIXELS} pixels")
        if pixels > _LARGE:
            stack.enter_context(_one_large)
        yield image


def decode(image: Image.Image, background: int) -> Found:
    """Turns an image upright, takes the upper 8 of 16 bits, and puts a background behind it.

    Args:
      image: as `opened` gives it.
      background: grey value behind transparent pixels, from 0 to 255.

    Raises:
      Exception: whatever Pillow's decoders raise.
    """
    image = ImageOps.exif_transpose(image)
    is_deep = image.mode.startswith("I")  # Pillow itself takes the upper 8 bits of colours
    if is_deep:
        values = np.clip(np.asarray(image), 0, 2**16 - 1)
        clear = image.info.get("transparency")
        image = Image.fromarray((values >> 8).astype(np.uint8))
        if clear is not None:
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    transparent = False
    if image.has_transparency_data:
        image = image.convert("RGBA")
        transparent = image.getextrema()[3][0] < 255
        behind = Image.new("RGBA", image.size, (background, background, background, 255))
        image = Image.alpha_composite(behind, image)
    if image.mode != "L":
        image = image.convert("RGB")
    dark = ""
    if np.max(image.getextrema()) < _DARK:
        dark = "12-bit data in a 16-bit file" if is_deep else "largest value below 16 of 255"
    return Found(image, transparent, dark)


def pixels(
    content: bytes,
    size: int | Sequence[int],
    channels: int,
    crop_size: int,
    *,
    background: int = 255,
    least: int = 0,
) -> tuple[np.ndarray, Found]:
    """Returns a file's image as an array, `[height, width, channels]`, and what is remarkable in it.

    Args:
      content: the file's content.
      size, channels, crop_size: see `ncsn_jax.app.data.transforms.fit`.
      background: see `decode`.
      least: see `opened`.

    Raises:
      Damaged: if it cannot be decoded.
    """
    try:
        with opened(io.BytesIO(content), least) as file:
            found = decode(file, background)
            return transforms.fit(found.image, size, channels, crop_size), found
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise Damaged(f"not {KINDS}") from None
    # Pillow's decoders can raise any exception.
    except Exception as error:
        raise Damaged(str(error).partition("\n")[0] or type(error).__name__) from None
