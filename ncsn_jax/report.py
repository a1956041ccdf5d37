"""What a run tells: the network, its cost, the devices, the memory, and how far it has come."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm.auto
from jax.extend import core as jex

# Between two lines of progress in a log.
_SECONDS = 20.0


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows how far it has come and the time left on standard error; yields what is called with steps.

    A bar on a terminal and in a notebook; elsewhere, as in the log of a job, a line every 20 seconds. Of
    several processes only the first shows it.
    """
    if jax.process_index() > 0:
        yield lambda steps: None
        return
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        with tqdm.auto.tqdm(total=total, desc=what, unit=" steps", leave=False) as bar:
            yield bar.update
        return
    started = shown = time.monotonic()
    done = 0

    def advanced(steps: int) -> None:
        nonlocal done, shown
        done, now = done + steps, time.monotonic()
        if now - shown > _SECONDS and done < total:
            left = human_time((now - started) / done * (total - done))
            print(f"{what}: {done}/{total} steps  {left} left", file=sys.stderr, flush=True)
            shown = now

    yield advanced


def count_multiply_adds(function, *args) -> int:
    """Counts the multiply-adds of all convolutions and matrix products in `function(*args)`.

    Only shapes matter, so that the arguments may be `jax.ShapeDtypeStruct`s. Products with the zeros
    of a convolution's padding count, as is the custom.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: jex.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        size = int(np.prod(equation.outvars[0].aval.shape)) if equation.outvars else 0
        if name == "conv_general_dilated":
            numbers = equation.params["dimension_numbers"]
            kernel = equation.invars[1].aval.shape
            total += size * int(np.prod(kernel)) // kernel[numbers.rhs_spec[0]]
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += size * int(np.prod([shape[i] for i in contracted]))
        else:
            repeats = equation.params.get("length", 1) if name == "scan" else 1
            inner = [
                _count(j)
                for j in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr)
                if _is_jaxpr(j)
            ]
            total += repeats * sum(inner)
    return total


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (jex.Jaxpr, jex.ClosedJaxpr))


def describe_devices() -> str:
    """Returns one line: how many devices of what kind on how many hosts."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind} on {jax.process_count()} host(s)"


def human_bytes(size: float) -> str:
    """Returns a size as text with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def human_time(seconds: float) -> str:
    """Returns a duration as text with the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
