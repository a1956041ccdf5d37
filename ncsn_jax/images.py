"""Pictures: grids of samples as arrays and as PNG files."""

import io
import math
import os

import numpy as np


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Rounds images in [0, 1] to 8 bits, clipping what lies outside: `[...]` to uint8 `[...]`."""
    return np.floor(np.clip(np.asarray(x), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def grid(images: np.ndarray, columns: int | None = None, padding: int = 1) -> np.ndarray:
    """Lays images out row by row on a grey ground.

    Args:
      images: uint8 `[N, H, W, C]`, C of 1 or 3.
      columns: images per row; by default such that the grid is about square.
      padding: pixels between images and around them.

    Returns:
      uint8 `[height, width, C]`.
    """
    count, height, width, channels = images.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    high, wide = height + padding, width + padding
    canvas = np.full((rows * high + padding, columns * wide + padding, channels), 128, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * high + padding, i % columns * wide + padding
        canvas[top : top + height, left : left + width] = image
    return canvas


def encode_png(image: np.ndarray, *, min_side: int = 0) -> bytes:
    """Encodes uint8 `[H, W, C]` as PNG.

    Args:
      image: the picture, C of 1 or 3.
      min_side: enlarge by a whole factor until the smaller side has this many pixels, so that small
        images can be seen.
    """
    from PIL import Image

    factor = max(1, math.ceil(min_side / min(image.shape[:2])))
    image = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def write_atomically(path: str, payload: bytes) -> None:
    """Writes a file under a temporary name and renames it: it is complete or not there."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        file.write(payload)
    os.replace(temporary, path)
