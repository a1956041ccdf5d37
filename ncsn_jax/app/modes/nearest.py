"""`--mode=nearest` shows samples beside the training images nearest to them, which reveals copies."""

import os
from collections.abc import Callable, Sequence

import numpy as np

from ncsn_jax._random import Stream
from ncsn_jax.app import devices, pictures, run_samplers, units, workdirs
from ncsn_jax.app.data import Images
from ncsn_jax.app.modes import shared
from ncsn_jax.app.modes.sample import write_samples
from ncsn_jax.app.progress import progress

# Training images shown beside a sample.
_NEIGHBOURS = 6

# How many elements of images, and how many distances, are in memory at once.
_ELEMENTS, _DISTANCES = 2**24, 2**24

# The first ranking is rounded, so this many extra images are ranked again in float64.
_SPARE = 8


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
        indices, distances = find_nearest(samples, dataset, count, value_range, advanced)
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


def find_nearest(
    queries: np.ndarray,
    images: np.ndarray | Images,
    count: int,
    value_range: Sequence[float] = (),
    advanced: Callable[[int], None] = lambda _: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nearest images of each query in Euclidean distance, nearest first.

    Args:
      queries: `[M, ...]`, in the data's units.
      images: `[N, ...]` likewise, N >= `count`. They may be larger than memory: each is read once, a block
        at a time, and once more if it is near.
      count: how many to find for each query, >= 1.
      value_range: the data's (low, high), `()` for bytes; see `ncsn_jax.app.units`.
      advanced: called with the number of images just compared.

    Returns:
      (indices, distances), `[M, count]` each; distances in units of high - low, which is 255 for bytes.
      Ties are in the order of the images.
    """
    low, high = value_range or (0, 255)
    points = units.to_unit(queries.reshape(len(queries), -1), value_range)
    squared = np.square(points).sum(axis=1)[:, None]
    best = np.full((len(points), 0), np.inf, np.float32)
    which = np.zeros((len(points), 0), int)
    size = max(1, min(_ELEMENTS // points.shape[1], _DISTANCES // len(points)))
    for first in range(0, len(images), size):
        block = units.to_unit(images[first : first + size], value_range)
        block = block.reshape(len(block), -1)
        distances = squared - 2 * (points @ block.T) + np.einsum("nd,nd->n", block, block)[None]
        indices = np.broadcast_to(np.arange(first, first + len(block)), distances.shape)
        best, which = np.hstack([best, distances]), np.hstack([which, indices])
        order = np.argsort(best, axis=1, kind="stable")[:, : count + _SPARE]
        best, which = (np.take_along_axis(a, order, axis=1) for a in (best, which))
        advanced(len(block))
    which = np.sort(which, axis=1)
    exact = np.empty(which.shape)
    for row, (query, indices) in enumerate(zip(queries, which, strict=True)):
        difference = images[indices].astype(np.float64) - query
        exact[row] = np.linalg.norm(difference.reshape(len(indices), -1), axis=1) / (high - low)
    order = np.argsort(exact, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(which, order, axis=1), np.take_along_axis(exact, order, axis=1)
