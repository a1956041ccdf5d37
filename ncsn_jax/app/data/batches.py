"""Batches as a function of (seed, step): shuffled by epoch, sharded by process, without state."""

import numpy as np


class Batches:
    """The training batches of one process.

    The examples form one endless sequence in which each epoch is a permutation of the dataset drawn
    from (seed, epoch); batch k is elements [k B, (k + 1) B) of it. A batch may straddle two epochs, so
    that no example is left out and the dataset may be smaller than a batch.

    Args:
      images: uint8 `[N, H, W, C]`, N >= 1; may be mapped from a file.
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
        self._seed = seed
        self._batch_size = batch_size
        share = batch_size // process_count
        self._mine = np.arange(process_index * share, (process_index + 1) * share)
        self._permutations: dict[int, np.ndarray] = {}

    def indices(self, step: int) -> np.ndarray:
        """Returns which examples this process has in the batch of `step`, `int64[B / count]`."""
        position = step * self._batch_size + self._mine
        epoch, place = np.divmod(position, len(self._images))
        order = {e: self._permutation(e) for e in range(epoch[0], epoch[-1] + 1)}
        self._permutations = order
        return np.array([order[e][p] for e, p in zip(epoch, place, strict=True)])

    def __call__(self, step: int, num_steps: int = 1) -> np.ndarray:
        """Returns the batches of `num_steps` steps from `step`, uint8 `[num_steps, b, H, W, C]`."""
        return np.stack([self._images[self.indices(s)] for s in range(step, step + num_steps)])

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch in self._permutations:
            return self._permutations[epoch]
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._images))
