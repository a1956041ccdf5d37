"""Prepares the next batch while a step runs, and measures how long steps wait for their batches."""

import concurrent.futures
import time
from collections.abc import Callable, Generator
from typing import Any

import jax


class Feed:
    """Gives batches in order, always one ahead; use it as a context manager.

    Args:
      batches: yields them.
      prepare: turns a batch into what a call takes.

    Attributes:
      waited: seconds for which the devices idled for lack of a batch; the caller resets it.
    """

    def __init__(
        self,
        batches: Generator[Any, None, None],
        prepare: Callable[[Any], Any],
    ):
        self._batches, self._prepare, self.waited = batches, prepare, 0.0

    def __enter__(self) -> "Feed":
        self._maker, self._watcher = (concurrent.futures.ThreadPoolExecutor(1) for _ in range(2))
        self._next = self._maker.submit(self._make)
        return self

    def __exit__(self, *_) -> None:
        for pool in (self._maker, self._watcher):
            pool.shutdown(cancel_futures=True)
        self._batches.close()

    def take(self, computing: Any = None) -> Any:
        """Returns the next batch.

        Args:
          computing: the result of the call in flight; None if there is none.

        Raises:
          UserError: if images cannot be read.
        """
        if not self._next.done():
            if computing is not None:
                computed = self._watcher.submit(jax.block_until_ready, computing)
                first = concurrent.futures.FIRST_COMPLETED
                concurrent.futures.wait([self._next, computed], return_when=first)
            began = time.perf_counter()
            concurrent.futures.wait([self._next])
            self.waited += time.perf_counter() - began
        batch = self._next.result()
        self._next = self._maker.submit(self._make)
        return batch

    def _make(self) -> Any:
        batch = next(self._batches, None)
        return None if batch is None else self._prepare(batch)
