"""`--mode=inpaint` and `--mode=colorize` complete partly known images, several times each."""

import os
import zlib
from typing import NamedTuple

import numpy as np

from ncsn_jax._random import Stream
from ncsn_jax.app import (
    build,
    devices,
    distributed,
    pictures,
    run_samplers,
    samplers,
    storage,
    units,
)
from ncsn_jax.app.data.masks import make_masks
from ncsn_jax.app.modes import shared


@devices.jax_defaults()
def inpaint(config, workdir: str, images: np.ndarray | None = None) -> None:
    """Fills in the pixels that a mask hides, and writes to `inpainting/step_<step>/`.

    Args:
      config, workdir: the run's.
      images: the array the run began with, if any.
    """
    shared.begin(config, workdir, "inpaint", Stream.INPAINTING)
    options, value_range = config.inpainting, config.data.value_range
    originals = shared.load_originals(config, workdir, options.num_images, images)
    shape, background = build.image_shape(config), config.data.background
    masks = make_masks(options.mask, shape, len(originals), config.seed, background)
    settings = {
        "inpainting.keep_observed": options.keep_observed,
        "images and masks": zlib.crc32(masks.tobytes(), zlib.crc32(originals.tobytes())),
    }
    if config.sampling.method == "annealed_langevin":
        settings["inpainting.scheme"] = options.scheme
    known = _Known(
        for_sampler=(units.to_unit(originals, value_range), masks),
        shown=np.where(masks, units.to_picture(originals, value_range), np.uint8(192)),
        settings=settings,
        written={"masks": masks},
    )
    _complete(config, workdir, Stream.INPAINTING, originals, known)


@devices.jax_defaults()
def colorize(config, workdir: str, images: np.ndarray | None = None) -> None:
    """Colours images whose channel mean is known, and writes to `colorization/step_<step>/`.

    Args:
      config, workdir: the run's.
      images: the array the run began with, if any.
    """
    shared.begin(config, workdir, "colorize", Stream.COLORIZATION)
    value_range = config.data.value_range
    originals = shared.load_originals(config, workdir, config.inpainting.num_images, images)
    grey = np.mean(units.to_unit(originals, value_range), axis=-1, keepdims=True)
    known = _Known(
        for_sampler=(grey,),
        shown=np.broadcast_to(pictures.to_uint8(grey), originals.shape),
        settings={"images": zlib.crc32(originals.tobytes())},
        written={"grey": units.from_unit(grey, value_range)},
    )
    _complete(config, workdir, Stream.COLORIZATION, originals, known)


class _Known(NamedTuple):
    """What is known of n images.

    Attributes:
      for_sampler: arrays `[n, ...]`; see `samplers.Sampler`.
      shown: a picture of it, uint8 `[n, H, W, C]`.
      settings: what determines the completions, besides the sampler's settings.
      written: more arrays for the completions' file.
    """

    for_sampler: tuple[np.ndarray, ...]
    shown: np.ndarray
    settings: dict
    written: dict[str, np.ndarray]


def _complete(config, workdir: str, task: Stream, originals: np.ndarray, known: _Known) -> None:
    """Completes each original several times, and writes the results beside what was known."""
    loaded, each = shared.load(config, workdir), config.inpainting.num_completions
    count, shape = len(originals), build.image_shape(config)
    shared.log.info("completing %d images, %d times each, from step %d", count, each, loaded.step)
    settings = known.settings | {"inpainting.num_completions": each}
    directory, completions = draw(loaded, task, settings, known.for_sampler, each)
    if completions is None:
        return
    path = os.path.join(directory, "completions")
    arrays = {"originals": originals, "completions": completions} | known.written
    pictures.write_npz(f"{path}.npz", **arrays)
    first, last = (
        units.to_picture(a, config.data.value_range) for a in (originals[:, None], completions)
    )
    rows = np.concatenate([first, known.shown[:, None], last], axis=1)
    pictures.write_png(f"{path}.png", pictures.grid(rows.reshape(-1, *shape), columns=each + 2))
    shared.log.info("wrote completions.npz and completions.png to %s", directory)


def draw(
    loaded: shared.Loaded, task: Stream, settings: dict, known: tuple[np.ndarray, ...], each: int
) -> tuple[str, np.ndarray | None]:
    """Draws those of several samples of each image that are missing.

    Args:
      loaded: the run.
      task: what the samples are made for.
      settings: what determines them, besides the sampler's settings.
      known: what the sampler knows of n images, `[n, ...]` each; see `samplers.Sampler`.
      each: how many samples of each image.

    Returns:
      The task's directory, whose `samples/` has the samples one after another; and the samples
      `[n, each, H, W, C]` in process 0, None in the others.
    """
    name, count = samplers.NAMES[task], len(known[0])
    directory = loaded.directory(name)
    settings = loaded.sampler_settings() | settings
    distributed.agree("what it completes", settings)
    if distributed.is_first():
        storage.remove_leftovers(directory)
    samples = shared.make_samples(
        name,
        loaded,
        run_samplers.Chains(loaded.config, task),
        os.path.join(directory, "samples"),
        settings,
        count * each,
        lambda indices: tuple(a[indices // each] for a in known),
    )
    return directory, None if samples is None else samples.reshape(count, each, *samples.shape[1:])
