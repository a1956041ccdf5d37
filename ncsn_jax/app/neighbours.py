"""The training images nearest to given ones: whether samples are new or copies."""

import numpy as np

# As many images at once as have so many elements together.
_ELEMENTS = 2**24

# So many more are ranked again in float64, as the first ranking is rounded.
_SPARE = 8


def nearest(queries: np.ndarray, images: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nearest images of each query in Euclidean distance, the nearest first.

    Args:
      queries: uint8 `[M, ...]`.
      images: uint8 `[N, ...]`, N >= `count`, also mapped from a file: read a block at a time.
      count: how many to find for each query, >= 1.

    Returns:
      (indices, distances), `[M, count]` each; distances in units of pixels in [0, 1]. Of images that
      are as near, the one that comes first is first.
    """
    points = queries.reshape(len(queries), -1).astype(np.float32) / 255
    squared = np.square(points).sum(axis=1)[:, None]
    best = np.full((len(points), 0), np.inf, np.float32)
    which = np.zeros((len(points), 0), int)
    size = max(1, _ELEMENTS // points.shape[1])
    for first in range(0, len(images), size):
        block = np.asarray(images[first : first + size])
        block = block.reshape(len(block), -1).astype(np.float32) / 255
        distances = squared - 2 * (points @ block.T) + np.einsum("nd,nd->n", block, block)[None]
        indices = np.broadcast_to(np.arange(first, first + len(block)), distances.shape)
        best, which = np.hstack([best, distances]), np.hstack([which, indices])
        order = np.argsort(best, axis=1, kind="stable")[:, : count + _SPARE]
        best, which = (np.take_along_axis(a, order, axis=1) for a in (best, which))
    which = np.sort(which, axis=1)
    exact = np.empty(which.shape)
    for row, (query, indices) in enumerate(zip(queries, which, strict=True)):
        difference = images[indices].astype(np.float64) - query
        exact[row] = np.linalg.norm(difference.reshape(len(indices), -1), axis=1) / 255
    order = np.argsort(exact, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(which, order, axis=1), np.take_along_axis(exact, order, axis=1)
