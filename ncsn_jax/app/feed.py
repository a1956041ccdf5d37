"""Makes the next batch while a step is computed, and measures how long steps wait for their batches."""

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np

# How often it is asked whether a call still computes, in seconds.
_RESOLUTION = 0.002


class Feed:
    """Batches in order, of which one is always made in advance; use it as a context manager.

    Args:
      batches: yields them.
      prepare: makes of a batch what a call takes.

    Attributes:
      waited: seconds in which nothing was computed because a batch was not ready; may be set to 0.
    """

    def __init__(self, batches: Iterator[np.ndarray], prepare: Callable[[np.ndarray], np.ndarray]):
        self._batches, self._prepare, self.waited = batches, prepare, 0.0

    def __enter__(self) -> "Feed":
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._next = self._pool.submit(self._make)
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)
        with contextlib.suppress(AttributeError):  # not every iterator has it
            self._batches.close()

    def take(self, is_computing: Callable[[], bool]) -> np.ndarray:
        """Returns the next batch; `is_computing` says whether a call is computed meanwhile.

        Raises:
          UserError: if images cannot be read.
        """
        while not self._next.done():
            computes, began = is_computing(), time.perf_counter()
            concurrent.futures.wait([self._next], _RESOLUTION)
            if not computes:
                self.waited += time.perf_counter() - began
        batch = self._next.result()
        self._next = self._pool.submit(self._make)
        return batch

    def _make(self) -> np.ndarray | None:
        batch = next(self._batches, None)
        return None if batch is None else self._prepare(batch)
