"""Batches as a function of (seed, step): shuffled by epoch, sharded by process, without state."""

import contextlib
import functools
from collections.abc import Iterator

import numpy as np

from ncsn_jax.app.data import reading
from ncsn_jax.app.data.images import Images


class Batches:
    """The training batches of one process.

    The examples form one endless sequence in which each epoch is a permutation of the dataset drawn
    from (seed, epoch); batch k is elements [k B, (k + 1) B) of it. A batch may straddle two epochs, so
    that no example is left out and the dataset may be smaller than a batch.

    Args:
      images: `[N, H, W, C]`, N >= 1.
      seed: the seed of the run, >= 0.
      batch_size: global batch size B, over all processes.
      process_index, process_count: which contiguous part of every batch is this process's; the count
        must divide B.
    """

    def __init__(
        self,
        images: np.ndarray | Images,
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

    def between(
        self, first: int, last: int, num_steps: int, *, threads: int = 1, ahead: int = 1
    ) -> Iterator[np.ndarray]:
        """Yields the batches of steps `first` to `last - 1`, of `num_steps` steps at a time.

        Images that are decoded when asked for are decoded by grain, in threads, in advance.

        Args:
          first, last: a multiple of `num_steps` apart.
          num_steps: of what is yielded at a time, >= 1.
          threads: that decode images; 0 to decode when a batch is asked for.
          ahead: how many batches of `num_steps` steps may be decoded in advance, >= 1.

        Yields:
          `[num_steps, b, H, W, C]`.
        """
        if getattr(self._images, "source", None) is None:
            yield from (self(step, num_steps) for step in range(first, last, num_steps))
            return
        import grain

        size = num_steps * len(self._mine)
        buffer = ahead * size if threads else 0
        options = grain.ReadOptions(min(threads, buffer), buffer)
        sequence = grain.MapDataset.source(_Sequence(self, first, last))
        stream = iter(sequence.to_iter_dataset(options).batch(size))
        # Pillow's state belongs to the process, and decoding goes on while nothing is asked for.
        with reading.pillow(), contextlib.closing(stream):
            for batch in stream:
                yield batch.reshape(num_steps, -1, *batch.shape[1:])


class _Sequence:
    """The images of this process in the batches of some steps, one after another, as grain reads them."""

    def __init__(self, batches: Batches, first: int, last: int):
        self._batches, self._first = batches, first
        self._share = len(batches._mine)
        self._length = (last - first) * self._share
        self._indices = functools.lru_cache(maxsize=64)(batches.indices)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> np.ndarray:
        step, place = divmod(int(position), self._share)
        return self._batches._images.image(int(self._indices(self._first + step)[place]))
