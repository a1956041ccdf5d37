"""What the parts of `benchmarks.accelerator` share: the time they have, programs compiled at once, timing."""

import concurrent.futures
import dataclasses
import os
import pathlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

# Seconds for which a call is timed.
TIMED = 1.5

Part = Iterator[tuple[str, dict[str, Any]]]


@dataclasses.dataclass
class Bench:
    """What the parts share.

    Attributes:
      out, scratch: directories of the results, and of everything else.
      reference: a checkout of the authors' code, or None.
      data_dir: the directory of prepared datasets, or None.
      small: whether networks and jobs are tiny.
      ends: when the running part should be over, as `time.monotonic` counts.
      grace: seconds that it may take more, to end what it has begun.
      peaks: TFLOP/s of a matrix product, by type and precision.
      originals: workers of the authors' code, by network, which start in the background.
      digits_ended: set when the main job has ended.
    """

    out: pathlib.Path
    scratch: pathlib.Path
    reference: str | None
    data_dir: str | None
    small: bool
    ends: float = 0.0
    grace: float = 10.0
    peaks: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    originals: dict[str, concurrent.futures.Future] = dataclasses.field(default_factory=dict)
    digits_ended: threading.Event = dataclasses.field(default_factory=threading.Event)


def seconds_per_call(call: Callable[[], Any], seconds: float = TIMED) -> float:
    """Returns the median over up to five rounds of asynchronous calls that take so long together.

    The first calls are to warm up. A call that takes twice as long is made once, since that matters little.
    """

    def round_of(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            result = call()
        jax.block_until_ready(result)
        return (time.perf_counter() - started) / count

    if (first := round_of(1)) > 2 * seconds:
        return first
    once = min(round_of(1) for _ in range(2))
    rounds = max(1, min(5, int(seconds / once)))
    return statistics.median(round_of(max(1, int(seconds / rounds / once))) for _ in range(rounds))


def compile_all(bench: Bench, builds: dict[str, Callable], until: float) -> dict[str, Any]:
    """Compiles in threads, in this order; returns programs, or the exceptions of those that failed.

    What has not begun in time is left out, and what has begun may take a few seconds more.
    """
    pool = concurrent.futures.ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 1) // 2)))
    futures = {name: pool.submit(make) for name, make in builds.items()}
    concurrent.futures.wait(futures.values(), max(0.0, until - time.monotonic()))
    pool.shutdown(wait=False, cancel_futures=True)
    begun = [future for future in futures.values() if not future.cancelled()]
    concurrent.futures.wait(begun, bench.grace)
    done = {name: f for name, f in futures.items() if f.done() and not f.cancelled()}
    return {name: f.exception() or f.result() for name, f in done.items()}


def options(bench: Bench) -> dict[str, int] | None:
    """Returns options to compile with: quickly, where nobody looks at the speed."""
    return {"xla_backend_optimization_level": 0} if bench.small else None


def figures_of(bench: Bench, program: Any, measure: Callable[[Any], dict]) -> dict[str, Any]:
    """Returns what `measure(program)` does, or figures that say why there are none.

    Args:
      bench: whose part has to end in time.
      program: as `compile_all` returns it; None if it was left out there.
      measure: of the program.
    """
    if program is None:
        return {"skipped": "not compiled in time"}
    if time.monotonic() > bench.ends:
        return {"skipped": "no time left"}
    try:
        if isinstance(program, Exception):
            raise program
        return measure(program)
    except Exception as error:
        return {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


class Program(NamedTuple):
    """A compiled program, the shapes of what it takes, and the seconds to make it."""

    compiled: Any
    shapes: tuple
    seconds: float
