"""A table of steps, run whole or in part by one compiled loop: what all samplers here share.

A sampler hands over its update of the state and a table with one row per step. Hidden here is which loop
runs them: a scan, which can be differentiated in reverse, unless the part to run is known only at run time.
"""

import operator
from collections.abc import Callable

import jax

from ncsn_jax.errors import show


def run_steps(update: Callable, state, table, part: tuple | None = None):
    """Runs `state = update(state, row)` over the rows of a table.

    Args:
      update: `update(state, row) -> state`, traced once.
      state: any pytree of arrays.
      table: a pytree of arrays `[number of steps, ...]`.
      part: `(start, stop)` from `check_part`, to run the rows from start to stop only, or None.

    Returns:
      The last state.
    """
    if part is None or all(isinstance(bound, int) for bound in part):
        if part is not None:
            table = jax.tree.map(lambda column: column[slice(*part)], table)
        return jax.lax.scan(lambda state, row: (update(state, row), None), state, table)[0]

    def single(k, state):
        return update(state, jax.tree.map(lambda column: column[k], table))

    return jax.lax.fori_loop(*part, single, state)


def check_score(x: jax.Array, score: jax.Array) -> jax.Array:
    """Returns a score, and raises ValueError unless it is shaped like x."""
    if score.shape != x.shape:
        raise ValueError(f"score_fn must return the shape of x, {x.shape}, got {score.shape}")
    return score


def check_part(part, total: int) -> tuple:
    """Returns the argument `steps` of a sampler, (start, stop), as integers where they are known, checked."""
    try:
        bounds = tuple(part)
        if len(bounds) == 2 and any(isinstance(bound, jax.core.Tracer) for bound in bounds):
            return bounds
        start, stop = map(operator.index, bounds)
        sound = 0 <= start <= stop <= total
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(
            f"steps must be (start, stop), 0 <= start <= stop <= {total}, got {show(part)}"
        )
    return start, stop
