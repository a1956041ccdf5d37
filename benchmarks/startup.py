"""Measures how long `python main.py` takes to the log line of its first step, and its memory.

It starts the process in a fresh work directory, with images made for it, and then stops it.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np

from benchmarks import machine
from benchmarks.workers import LARGE_PAGES, ROOT, MeasurementError, last_line
from ncsn_jax.app.signals import STATUS

# Seconds for a run to end, which it does as soon as its state is saved.
_PATIENCE = 120


class FirstSteps(NamedTuple):
    """How a training run began.

    Attributes:
      seconds: the seconds from its start to the end of the first step.
      after_compiling: how many of these came after the step was compiled.
      memory_before: the peak resident memory when compiling began, in bytes; 0 if unknown.
      peak_memory: the same until the last step.
      line: the log's line for the last step.
    """

    seconds: float
    after_compiling: float
    memory_before: int
    peak_memory: int
    line: str


def seconds_to_first_step(flags: list[str], cache: str) -> float:
    """Returns the seconds from a training run's start to its first step; see `first_steps`."""
    return first_steps(flags, cache).seconds


def first_steps(flags: list[str], cache: str, count: int = 1) -> FirstSteps:
    """Trains for some steps and returns what it measured.

    Args:
      flags: the flags of `main.py`, without the work directory.
      cache: the directory for decoded images and compiled programs, which the run fills.
      count: the number of steps, >= 1.

    Raises:
      MeasurementError: if the run ends early, or does not end properly when told to.
    """
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= LARGE_PAGES | {"NCSN_JAX_CACHE": cache}
    with tempfile.TemporaryDirectory() as workdir, tempfile.TemporaryFile() as log:
        flags = [*flags, f"--workdir={workdir}/run", "--config.training.log_every=1"]
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "main.py", *flags],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        compiled = first = before = 0
        try:
            for line in process.stdout:
                now = time.perf_counter() - started
                if line.startswith("compiling the training step"):
                    before = machine.peak_memory(process.pid)
                elif line.startswith("training step compiled"):
                    compiled = now
                elif line.startswith("step 1/"):
                    first = now
                if line.startswith(f"step {count}/"):
                    peak = machine.peak_memory(process.pid)
                    process.terminate()  # the run saves its state before it ends
                    process.communicate(timeout=_PATIENCE)
                    if process.returncode != STATUS[signal.SIGTERM]:
                        break
                    return FirstSteps(first, first - compiled, before, peak, line.strip())
            raise MeasurementError(f"main.py ended with {process.wait()}: {last_line(log)}")
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"main.py did not end within {_PATIENCE} s of SIGTERM") from None
        finally:
            _kill(process)


def _kill(process: subprocess.Popen) -> None:
    """Kills a process and everything it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def write_images(directory: str, side: int, count: int = 64) -> None:
    """Writes random grey images as PNG files."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(pathlib.Path(directory) / f"{i:03d}.png")
