"""`--mode=nearest` shows samples beside the training images nearest to them, which reveals copies."""

import os

import numpy as np

from ncsn_jax._random import Stream
from ncsn_jax.app import copies, devices, pictures, run_samplers, units, workdirs
from ncsn_jax.app.modes import shared
from ncsn_jax.app.modes.sample import write_samples
from ncsn_jax.app.progress import progress

# Training images shown beside a sample.
_NEIGHBOURS = 6


@devices.jax_defaults()
def nearest(config, workdir: str, images: np.ndarray | None = None) -> None:
    """Samples as `sample` does, and writes the nearest training images to the same directory.

    Args:
      config, workdir: the run's.
      images: the array the run began with, if any.
    """
    shared.begin(config, workdir, "nearest", Stream.SAMPLES)
    loaded = shared.load(config, workdir)
    dataset = shared.load_images(config, workdir, images=images)
    value_range = config.data.value_range
    workdirs.claim_images(dataset, workdir, read_only=True)
    samples = write_samples(loaded, run_samplers.Chains(config))
    if samples is None:
        return
    samples = samples[: config.sampling.num_samples]
    count = min(_NEIGHBOURS, len(dataset))
    with progress("comparing", len(dataset), "images") as advanced:
        indices, distances = copies.find_nearest(samples, dataset, count, value_range, advanced)
    directory = loaded.directory("samples")
    pictures.write_npz(os.path.join(directory, "nearest.npz"), indices=indices, distances=distances)
    shown = samples[: config.sampling.preview_samples]
    rows = [np.concatenate([s[None], dataset[i]]) for s, i in zip(shown, indices, strict=False)]
    picture = pictures.grid(units.to_picture(np.concatenate(rows), value_range), columns=count + 1)
    pictures.write_png(os.path.join(directory, "nearest.png"), picture)
    shared.log.info(
        "distance to the nearest of %d training images: smallest %.3g, median %.3g; wrote nearest.png and "
        "nearest.npz to %s",
        len(dataset),
        distances[:, 0].min(),
        np.median(distances[:, 0]),
        directory,
    )
