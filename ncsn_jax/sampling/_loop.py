"""Loops that run a sampler over a table with one row per step: all rows, some, or while recording.

Each function traces its update once, so the compiled program contains the score network once for any
number of steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def run_steps(update: Callable, state, table, part: tuple):
    """Runs `state = update(state, row)` over some rows of a table, and returns the last state.

    If a bound is traced, this uses a `fori_loop`, which has no reverse-mode derivative. Otherwise it uses
    a `scan`, which has one.

    Args:
      update: `update(state, row) -> state`.
      state: any pytree of arrays.
      table: a pytree of arrays `[number of steps, ...]`.
      part: `(start, stop)`, the rows to run.
    """

    def rows(index):
        return jax.tree.map(lambda column: column[index], table)

    if all(isinstance(bound, int) for bound in part):
        return jax.lax.scan(lambda s, row: (update(s, row), None), state, rows(slice(*part)))[0]
    return jax.lax.fori_loop(*part, lambda k, s: update(s, rows(k)), state)


def record_steps(update: Callable, x: jax.Array, table, kept: np.ndarray) -> tuple:
    """Runs `x, seen = update(x, row)` over the rows of a table, and keeps x after some of them.

    Args:
      update: `update(x, row) -> (x, seen)`, with any pytree of arrays as `seen`.
      x: `[B, ...]`.
      table: a pytree of arrays `[number of steps, ...]`.
      kept: ascending step counts after which x is kept.

    Returns:
      The last x, the kept ones `[len(kept), B, ...]`, and every step's `seen` `[number of steps, ...]`.
    """
    rows = jax.tree.leaves(table)[0].shape[0]
    slots = np.full(rows, len(kept))  # beyond the end, where writes are dropped
    slots[kept - 1] = np.arange(len(kept))

    def step(carry, row):
        x, samples = carry
        row, slot = row
        x, seen = update(x, row)
        return (x, samples.at[slot].set(x, mode="drop")), seen

    samples = jnp.zeros((len(kept), *x.shape), x.dtype)
    (x, samples), seen = jax.lax.scan(step, (x, samples), (table, jnp.asarray(slots)))
    return x, samples, seen


def frame_stops(total: int, count: int) -> np.ndarray:
    """Returns the step counts, up to `total`, after which to take `count` evenly spaced frames."""
    return -(-total * np.arange(1, count + 1) // count)
