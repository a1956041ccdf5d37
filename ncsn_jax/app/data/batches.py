"""Batches as a function of (seed, step): shuffled by epoch, sharded by process, without state."""

import functools

import numpy as np


class Batches:
    """The training batches of one process.

    The examples form one endless sequence in which each epoch is a permutation of the dataset drawn
    from (seed, epoch); batch k is elements [k B, (k + 1) B) of it. A batch may straddle two epochs, so
    that no example is left out and the dataset may be smaller than a batch.

    Args:
      images: `[N, H, W, C]`, N >= 1; may be mapped from a file.
      seed: the seed of the run, >= 0.
      batch_size: global batch size B, over all processes.
      process_index, process_count: which contiguous part of every batch is this process's; the count
        must divide B.
    """

    def __init__(
        self,
        images: np.ndarray,
        seed: int,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if batch_size % process_count:
            raise ValueError(f"batch_size={batch_size} must be a multiple of {process_count}")
        self._images = images
        self._batch_size = batch_size
        share = batch_size // process_count
        self._mine = np.arange(process_index * share, (process_index + 1) * share)
        self._permutation = functools.lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(len(images))
        )

    def indices(self, step: int) -> np.ndarray:
        """Returns which examples this process has in the batch of `step`, `int64[B / count]`."""
        position = step * self._batch_size + self._mine
        epoch, place = np.divmod(position, len(self._images))
        return np.array([self._permutation(e)[p] for e, p in zip(epoch, place, strict=True)])

    def __call__(self, step: int, num_steps: int = 1) -> np.ndarray:
        """Returns the batches of `num_steps` steps from `step`, `[num_steps, b, H, W, C]`."""
        return np.stack([self._images[self.indices(s)] for s in range(step, step + num_steps)])
