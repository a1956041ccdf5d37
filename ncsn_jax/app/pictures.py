"""Draws grids of samples, films and plots of a run; reads and writes pictures and arrays.

`python -m ncsn_jax.app.pictures losses WORKDIR` draws the loss curves of a run to `WORKDIR/losses.png`.
"""

import io
import json
import math
import os
import re
import sys
import zipfile
from collections.abc import Sequence

import numpy as np

from ncsn_jax.app import storage
from ncsn_jax.errors import one_line

# The name that the metrics give a level's loss.
_LEVEL = r"loss_by_level/\d+_sigma_[-+.e\d]+"

# matplotlib fails on larger values.
_MAX_PLOTTED = 1e300

# Pixels above a grid, which hold its column names.
_HEADING = 20
# The least number of pixels on the smaller side of a written picture, and how long a film's frames show.
_MIN_SIDE, _FRAME_MILLISECONDS, _LAST_FRAME_MILLISECONDS = 400, 60, 2000

# An array may unpack to this many bytes, or to this many times its size in the file.
_ALWAYS_UNPACKED, _MAX_RATIO = 2**28, 100


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Rounds images in [0, 1] to 8 bits and clips what lies outside: `[...]` to uint8 `[...]`."""
    return np.floor(np.clip(np.asarray(x), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Lays images out row by row on grey, with a pixel between and around them.

    Args:
      images: uint8 `[N, H, W, C]`. Channels that are neither 1 nor 3 are shown side by side, as grey.
      columns: images per row; by default the grid is about square.

    Returns:
      uint8 `[height, width, C]`, C of 1 or 3.
    """
    if images.shape[-1] not in (1, 3):
        images = np.swapaxes(images, 2, 3).reshape(*images.shape[:2], -1, 1)
    count, height, width, channels = images.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 128, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1) + 1, i % columns * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    return canvas


def encode_png(image: np.ndarray, min_side: int = _MIN_SIDE, columns: Sequence[str] = ()) -> bytes:
    """Encodes uint8 `[H, W, C]`, C of 1 or 3, as PNG.

    A whole factor enlarges the image until its smaller side has `min_side` pixels, so that small images are
    visible.

    Args:
      image: the picture.
      min_side: in pixels.
      columns: the names of a grid's columns, to be written above them.
    """
    from PIL import Image, ImageDraw, ImageOps

    picture = Image.fromarray(_enlarge(image, min_side))
    if columns:
        picture = ImageOps.pad(
            picture, (picture.width, picture.height + _HEADING), centering=(0, 1)
        )
        for i, name in enumerate(columns):
            middle = (i + 0.5) * picture.width / len(columns), _HEADING / 2
            ImageDraw.Draw(picture).text(middle, name, fill="white", anchor="mm")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def encode_gif(frames: np.ndarray) -> bytes:
    """Encodes uint8 `[F, H, W, C]`, C of 1 or 3, as an endless GIF that rests on its last frame.

    It enlarges the frames as `encode_png` does.
    """
    from PIL import Image

    pictures = [Image.fromarray(_enlarge(frame, _MIN_SIDE)) for frame in frames]
    times = [_FRAME_MILLISECONDS] * (len(pictures) - 1) + [_LAST_FRAME_MILLISECONDS]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0
    )
    return buffer.getvalue()


def _enlarge(image: np.ndarray, min_side: int) -> np.ndarray:
    """Enlarges uint8 `[H, W, C]` by a whole factor; grey images lose their channel axis."""
    factor = max(1, math.ceil(min_side / min(image.shape[:2])))
    image = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
    return image[..., 0] if image.shape[-1] == 1 else image


def filmstrip(frames: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Lays out how samples evolve: one sample per row, from its first frame to its last.

    Args:
      frames: uint8 `[F, N, H, W, C]`.
      rows: the most samples to show; the first ones are shown.
      columns: the most frames to show, evenly spread.

    Returns:
      uint8 `[height, width, C]`.
    """
    columns, rows = min(columns, len(frames)), min(rows, frames.shape[1])
    shown = np.linspace(0, len(frames) - 1, columns).round().astype(int)
    chosen = np.moveaxis(frames[shown, :rows], 1, 0)
    return grid(chosen.reshape(-1, *frames.shape[2:]), columns)


def write_png(path: str, image: np.ndarray) -> None:
    """Writes a picture as `encode_png` makes it, completely or not at all."""
    storage.write(path, encode_png(image))


def write_npz(path: str, **arrays: np.ndarray) -> None:
    """Writes arrays to a compressed `.npz` file, completely or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    storage.write(path, buffer.getvalue())


def read_npz(path: str, *names: str) -> list[np.ndarray]:
    """Reads arrays of a `.npz` file, but never pickled objects.

    Raises:
      Exception: any, if the file is not a `.npz` file, is damaged, or unpacks to far more than its size.
    """
    arrays = []
    with zipfile.ZipFile(io.BytesIO(storage.read(path))) as archive:
        for info in (archive.getinfo(f"{name}.npy") for name in names):
            if info.file_size > max(_ALWAYS_UNPACKED, _MAX_RATIO * info.compress_size):
                raise ValueError(f"{info.filename} unpacks to {info.file_size} bytes")
            # A damaged header may hold any numbers.
            with archive.open(info) as file, np.errstate(all="ignore"):
                arrays.append(np.lib.format.read_array(file, allow_pickle=False))
    return arrays


def read_metrics(path: str) -> list[dict]:
    """Returns the lines of a `metrics.jsonl`, without a last line that is still being written.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it holds no line yet, or a line that is not an object with a step and numbers.
    """
    text = storage.read(path).decode()
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    if not lines:
        raise ValueError("it holds no complete line yet")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            is_valid = type(record["step"]) is int and all(map(_can_be_drawn, record.values()))
        except (LookupError, TypeError, ValueError, RecursionError):
            is_valid = False
        if not is_valid:
            raise ValueError(f"line {number} is not a JSON object with a step and numbers")
        records.append(record)
    return records


def _can_be_drawn(value) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) < _MAX_PLOTTED)


def plot_losses(records: list[dict]) -> bytes:
    """Draws the loss, and the loss by noise level, against the step.

    Args:
      records: the lines of `metrics.jsonl` in order; the last line for a step counts.

    Returns:
      A PNG file.
    """
    import matplotlib
    from matplotlib.figure import Figure  # pyplot would change a notebook's display

    by_step = {record["step"]: record for record in records if "loss" in record}
    steps = sorted(by_step)
    levels = sorted({k for r in records for k in r if re.fullmatch(_LEVEL, k)})

    def curve(name: str) -> list[float]:
        values = (by_step[step].get(name) for step in steps)
        return [math.nan if value is None else value for value in values]

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, curve("loss"), color="black")
    left.set(xlabel="step", ylabel="loss per image", title="Training loss")
    left.set_ylim(bottom=0)
    colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, max(len(levels), 1)))
    for name, colour in zip(levels, colours, strict=False):
        right.plot(steps, curve(name), color=colour, label=name.rpartition("sigma_")[2])
    right.set(xlabel="step", ylabel="loss / loss of a zero score", ylim=(0, 1.1), title="By level")
    if levels:
        right.legend(title="sigma", fontsize="small", ncols=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def main(arguments: list[str]) -> None:
    """Runs the command line `losses WORKDIR`."""
    if len(arguments) != 2 or arguments[0] != "losses":
        sys.exit("usage: python -m ncsn_jax.app.pictures losses WORKDIR")
    path = os.path.join(arguments[1], "metrics.jsonl")
    try:
        records = read_metrics(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        sys.exit(one_line(f"error: {path} cannot be read: {reason}"))
    target = os.path.join(arguments[1], "losses.png")
    try:
        storage.write(target, plot_losses(records))
    except OSError as error:
        sys.exit(one_line(f"error: {target} cannot be written: {error.strerror}"))
    print(one_line(f"wrote {target}"))


if __name__ == "__main__":
    main(sys.argv[1:])
