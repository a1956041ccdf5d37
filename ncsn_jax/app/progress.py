"""Shows the progress of long tasks, and formats durations and sizes for people."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import jax
import tqdm.auto

# The time between two lines of progress in a log.
_SECONDS = 20.0


@contextlib.contextmanager
def progress(what: str, total: int, unit: str = "steps") -> Iterator[Callable[[int], None]]:
    """Shows progress and the time left on standard error.

    Terminals and notebooks show a bar. Elsewhere, as in a job's log, it is a line every 20 seconds. Only the
    first process shows it.

    Args:
      what: what is done.
      total: number of steps.
      unit: what a step is called, in the plural.

    Yields:
      A function to call with the number of steps just done.
    """
    if jax.process_index() > 0:
        yield lambda _: None
        return
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        with tqdm.auto.tqdm(total=total, desc=what, unit=f" {unit}", leave=False) as bar:
            yield bar.update
        return
    started = shown = time.monotonic()
    done = 0

    def advanced(steps: int) -> None:
        nonlocal done, shown
        done, now = done + steps, time.monotonic()
        if now - shown > _SECONDS and done < total:
            left = human_time((now - started) / done * (total - done))
            print(f"{what}: {done}/{total} {unit}  {left} left", file=sys.stderr, flush=True)
            shown = now

    yield advanced


def human_bytes(size: float) -> str:
    """Returns a size as text with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def human_count(number: float) -> str:
    """Returns a number as text with a decimal prefix, to which the unit is appended."""
    for prefix in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:.3g} T"


def human_time(seconds: float) -> str:
    """Returns a duration as text in a suitable unit."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
