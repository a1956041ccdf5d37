"""Computes batches as a function of (seed, step): shuffled by epoch, sharded by process, stateless."""

import contextlib
import functools
import itertools
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np

from ncsn_jax.app.data.images import Images, in_order

if TYPE_CHECKING:
    from ncsn_jax.app.data.sources import Labels

# Images, or images and labels.
Batch = np.ndarray | tuple[np.ndarray, np.ndarray]


class Batches:
    """The training batches of one process.

    The examples form one endless sequence in which each epoch is a permutation of the dataset drawn
    from (seed, epoch); batch k is its elements [k B, (k + 1) B). A batch may straddle two epochs, so no
    example is left out, and the dataset may be smaller than a batch.

    Args:
      images: `[N, H, W, C]`, N >= 1.
      seed: the run's seed, >= 0.
      batch_size: global batch size B, over all processes.
      process_index, process_count: which contiguous shard of every batch this process has; the count
        must divide B.
      labels: the classes of the images `[N]`, if a batch has them; `images` are then `Images`.
    """

    def __init__(
        self,
        images: np.ndarray | Images,
        seed: int,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
        labels: "np.ndarray | Labels | None" = None,
    ):
        if batch_size % process_count:
            raise ValueError(f"batch_size={batch_size} must be a multiple of {process_count}")
        self._images, self._labels = images, labels
        self._batch_size = batch_size
        share = batch_size // process_count
        self._mine = np.arange(process_index * share, (process_index + 1) * share)
        self._lock = threading.Lock()
        self._permutation = functools.lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(len(images))
        )

    def _row(self, position: int) -> int:
        """Returns the index of the example at a position of the endless sequence."""
        epoch, place = divmod(int(position), len(self._images))
        with self._lock:  # all threads need a new permutation at the same time
            return int(self._permutation(epoch)[place])

    def indices(self, step: int) -> np.ndarray:
        """Returns the indices of this process's examples in the batch of `step`, `int64[B / count]`."""
        return np.array([self._row(position) for position in step * self._batch_size + self._mine])

    def __call__(self, step: int, num_steps: int = 1) -> Batch:
        """Returns the batches of `num_steps` steps from `step`, `[num_steps, b, H, W, C]`."""
        images = [self._images[self.indices(s)] for s in range(step, step + num_steps)]
        return self._labelled(step, np.stack(images))

    def _labelled(self, step: int, images: np.ndarray) -> Batch:
        """Returns the batches of the steps from `step` on, with their labels if there are any."""
        if self._labels is None:
            return images
        # A damaged image has the label of the one that was read in its place.
        labels = [
            self._labels[self._images.replacements(self.indices(s))]
            for s in range(step, step + len(images))
        ]
        return images, np.stack(labels)

    def between(
        self, first: int, last: int, num_steps: int, *, threads: int = 1, ahead: int = 1
    ) -> Generator[Batch, None, None]:
        """Yields the batches of steps `first` to `last - 1`, `num_steps` steps at a time.

        If images are decoded on demand, grain's threads decode them in advance.

        Args:
          first, last: `last - first` is a multiple of `num_steps`.
          num_steps: how many steps to yield at a time, >= 1.
          threads: how many threads decode images; 0 decodes when a batch is asked for.
          ahead: how many batches of `num_steps` steps to decode in advance at most, >= 1.

        Yields:
          `[num_steps, b, H, W, C]`, or with labels a pair of this and `[num_steps, b]`.
        """
        if getattr(self._images, "source", None) is None:
            yield from (self(step, num_steps) for step in range(first, last, num_steps))
            return
        share = len(self._mine)
        size = num_steps * share
        positions = range(first * share, last * share)
        images = in_order(self._image, positions, threads, ahead * size)
        with contextlib.closing(images):
            for step in itertools.count(first, num_steps):
                if not (some := list(itertools.islice(images, size))):
                    break
                found = np.stack(some).reshape(num_steps, share, *self._images.shape[1:])
                yield self._labelled(step, found)

    def _image(self, position: int) -> np.ndarray:
        """Returns the image at a position in the sequence of this process's images."""
        step, place = divmod(int(position), len(self._mine))
        return self._images.image(self._row(step * self._batch_size + self._mine[place]))
