"""Compares samples with the training images nearest to them, which reveals copies."""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from ncsn_jax.app import pictures, units
from ncsn_jax.app.data import Images
from ncsn_jax.app.progress import progress

# How many elements of images, and how many distances, are in memory at once.
_ELEMENTS, _DISTANCES = 2**24, 2**24

# The first ranking is rounded, so this many extra images are ranked again in float64.
_SPARE = 8

# Samples whose nearest training images are looked for.
_MAX_SEARCHED = 1000
# A sample counts as a copy if its nearest training image is much nearer than the next one: more so than for
# all but this share of unseen images, if these are enough. Above the last number, a share, the log warns.
_LONELY, _MIN_UNSEEN, _MAX_COPIES = 0.01, 100, 0.1
# Rows of the picture of the closest samples, and training images in each.
_ROWS, _NEIGHBOURS = 10, 3

_log = logging.getLogger("ncsn_jax")


def look_for_copies(
    samples: np.ndarray, dataset: Images, unseen: np.ndarray | None, value_range
) -> tuple[dict, np.ndarray]:
    """Compares samples, and unseen images if there are any, with the nearest training images.

    Returns:
      The figures by name, and a picture of the closest samples beside their nearest training images.
    """
    samples = spread(samples, _MAX_SEARCHED)
    count, total = min(_NEIGHBOURS, len(dataset)), len(dataset) * (1 if unseen is None else 2)
    with progress("comparing", total, "images") as advanced:
        indices, distances = find_nearest(samples, dataset, count, value_range, advanced)
        if unseen is not None:
            real = find_nearest(unseen, dataset, 2, value_range, advanced)[1]
    closest = np.argsort(distances[:, 0])[:_ROWS]
    rows = [np.concatenate([samples[i][None], dataset[indices[i]]]) for i in closest]
    picture = pictures.grid(units.to_picture(np.concatenate(rows), value_range), columns=count + 1)
    figures = {"nearest_median": float(np.median(distances[:, 0]))}
    if unseen is None:
        return figures, picture
    figures["nearest_median_real"] = float(np.median(real[:, 0]))
    if len(real) < _MIN_UNSEEN:
        return figures, picture
    ratio, real_ratio = (d[:, 0] / np.maximum(d[:, 1], 1e-12) for d in (distances, real))
    share = float((ratio < np.quantile(real_ratio, _LONELY)).mean())
    if share > _MAX_COPIES:
        _log.warning(
            "%.0f %% of the samples look like copies: one training image is much nearer than the next, as "
            "for %g %% of unseen images",
            100 * share,
            100 * _LONELY,
        )
    return figures | {f"copies_{len(samples)}": share}, picture


def spread(array: np.ndarray, most: int) -> np.ndarray:
    """Returns evenly spaced rows, at most as many: files may hold one class after the other."""
    return array[:: -(-len(array) // most)]


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
