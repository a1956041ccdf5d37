"""The worker that reads images as training does, and counts them.

    python -m benchmarks.reader

answers the requests of `benchmarks.workers`.
"""

import contextlib
import os
import time

import numpy as np

from benchmarks import machine, workers
from configs import default
from ncsn_jax.app import build, data


class Reader:
    """Reads the batches of a run.

    Args:
      fields: the configuration's fields, by their dotted names.
      in_memory: whether to copy all images into memory first.
    """

    def __init__(self, fields: dict, in_memory: bool = False):
        self._config = default.get_config()
        self._config.update_from_flattened_dict(fields)
        self._before = machine.peak_memory(os.getpid())
        images = build.load_images(self._config)
        self._images = np.array(images) if in_memory else images

    def rate(self, threads: int, seconds: float) -> tuple[float, float]:
        """Returns images per second, and processor seconds per image."""
        config, calls = self._config, 0
        options = config.training
        batches = data.Batches(self._images, config.seed, options.batch_size)
        size, per_call = options.batch_size * options.steps_per_call, options.steps_per_call
        stream = batches.between(
            0, per_call * 10**6, per_call, threads=threads, ahead=config.data.prefetch
        )
        with contextlib.closing(stream):
            next(stream)  # starts the threads
            began, used = time.perf_counter(), time.process_time()
            while (elapsed := time.perf_counter() - began) < seconds or not calls:
                next(stream)
                calls += 1
            used = time.process_time() - used
        return calls * size / elapsed, used / (calls * size)

    def memory(self) -> tuple[int, int]:
        """Returns the peak memory before the images were opened, and so far."""
        return self._before, machine.peak_memory(os.getpid())


if __name__ == "__main__":
    workers.serve(Reader)
