"""How long `python main.py` takes from its start to the log line of its first step.

Starts the process in a work directory of its own, with images made for it, and stops it at that line.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.workers import LARGE_PAGES, ROOT, MeasurementError, last_line
from ncsn_jax.app.signals import STATUS

# Seconds for a run to end, which it does at once when its state is saved.
_PATIENCE = 120


def seconds_to_first_step(flags: list[str], cache: str) -> float:
    """Returns the seconds from the start of a training run to its first step.

    Args:
      flags: of `main.py`, without the work directory.
      cache: the directory for decoded images and compiled programs, which is filled.

    Raises:
      MeasurementError: if the run ends before, or does not end as it should when it is told to.
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
        try:
            for line in process.stdout:
                if line.startswith("step 1/"):
                    seconds = time.perf_counter() - started
                    process.terminate()  # It saves its state before it ends.
                    process.communicate(timeout=_PATIENCE)
                    if process.returncode != STATUS[signal.SIGTERM]:
                        break
                    return seconds
            raise MeasurementError(f"main.py ended with {process.wait()}: {last_line(log)}")
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"main.py did not end within {_PATIENCE} s of SIGTERM") from None
        finally:
            _kill(process)


def _kill(process: subprocess.Popen) -> None:
    """Kills a process with all that it started."""
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
