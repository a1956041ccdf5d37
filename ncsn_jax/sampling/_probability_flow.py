"""The probability flow: an ODE with the marginals of an SDE (Song et al., 2021, section 4.3).

`probability_flow` carries x_1 to data, or data to x_1, without noise. `integrate` is the adaptive solver of
this module and `ncsn_jax.likelihood`; it imports diffrax when it is called. Every example has its own step
sizes, so it does not depend on its batch. A batch takes as long as its slowest example.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ncsn_jax import _checks as check
from ncsn_jax.sampling._predictor_corrector import SamplerInfo
from ncsn_jax.sde import SDE
from ncsn_jax.types import TimeScoreFn

_FIRST_STEP = 0.01

MAX_STEPS = 4096
"""The default limit of steps, accepted or rejected, for an example."""


def probability_flow(
    sde: SDE,
    score_fn: TimeScoreFn,
    x: ArrayLike,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    start: ArrayLike = 1.0,
    end: ArrayLike = 1e-5,
    max_steps: int = MAX_STEPS,
) -> tuple[jax.Array, SamplerInfo]:
    """Solves the probability flow ODE (equation 13) from one time to another, in either direction.

        dx = (f(x, t) - g(t)^2 s(x, t) / 2) dt

    With the exact score, x_start from the SDE's distribution at `start` becomes x_end from that at `end`.
    Starting from the prior at 1 it samples; taking data from 1e-5 to 1 it encodes. Nothing is random. The
    score function is called under `jax.vmap` on batches of one example, so it cannot close over an array with
    a row per example. To pass rows, `jax.vmap` this function; see docs/conditioning.md.

    Times and the SDE's parameters may be traced. diffrax checks the order of traced times on the host.

    Args:
      sde: the SDE.
      score_fn: `score_fn(x, t)`.
      x: `[B, ...]`, at time `start`, floating point. Solved in float32, or float64 for float64 x; the result
        has the type of x.
      rtol: relative tolerance of a step, >= 0.
      atol: absolute tolerance of a step, > 0, in units of x. The root mean square over an example's
        elements of error / (atol + rtol |x|) is kept below 1. Tolerances below 1e-6 need float64.
      start: the time of x, in (0, 1].
      end: the target time, in (0, 1], other than `start`.
      max_steps: the limit of accepted and rejected steps of an example, >= 1.

    Returns:
      `[B, ...]` at time `end`, and each example's exact NFE, 1 plus 6 for every accepted or rejected step.
      An example that ran out of steps or met non-finite values is NaN.

    Raises:
      ValueError: if an argument is out of range, or the score is not shaped like x.
      ImportError: if diffrax is not installed.
    """
    check.sde(sde)
    x, dtype = check.state("x", x, elements=True)
    start, end = check.times(start, end)
    tolerances = check.tolerances(rtol, atol, max_steps)

    def field(t, x, _):
        return velocity(sde, x, t, score_of_one(score_fn, x, t))

    x, info = integrate(field, x, start, end, **tolerances)
    return x.astype(dtype), info


def velocity(sde: SDE, x: jax.Array, t: jax.Array, score: jax.Array) -> jax.Array:
    """Returns dx/dt of the probability flow for one example x `[...]`, at a time t `[]`."""
    batch, time = x[None], t[None]
    found = sde.drift(batch, time)[0] - 0.5 * sde.diffusion(time)[0] ** 2 * score
    return found.astype(x.dtype)


def score_of_one(score_fn: TimeScoreFn, x: jax.Array, t: jax.Array) -> jax.Array:
    """Returns the score of one example x `[...]`, after checking its shape."""
    return check.score(x[None], score_fn(x[None], t[None]))[0]


def integrate(
    field: Callable,
    state,
    start: ArrayLike,
    end: ArrayLike,
    *,
    rtol: float,
    atol: float,
    max_steps: int,
    args=None,
):
    """Solves dy/dt = field(t, y, args) for each example separately, with Tsitouras' 5(4) Runge-Kutta pair.

    Args:
      field: a function of a time `[]` and one example's state and arguments, without the axis B.
      state: arrays `[B, ...]` at `start`; a step's error is the largest of their root mean squares.
      start, end, rtol, atol, max_steps: as in `probability_flow`.
      args: arrays `[B, ...]`, constant in time.

    Returns:
      The state at `end`, NaN where an example failed, and a `SamplerInfo`.
    """
    try:
        import diffrax
    except ModuleNotFoundError as error:
        raise ImportError(
            "the probability flow needs diffrax: pip install 'diffrax>=0.7'"
        ) from error
    # diffrax checks the order of Python numbers, which have JAX's default type, while tracing, and that of
    # arrays on the host.
    dtype = jax.tree.leaves(state)[0].dtype
    traced = check.is_traced(end - start) or dtype != jnp.result_type(float)
    start, end = (jnp.asarray(t, dtype) if traced else float(t) for t in (start, end))
    first_step = (jnp if traced else math).copysign(_FIRST_STEP, end - start)
    solver = diffrax.Tsit5()
    # Without this limit of a tenth of the time, long steps have skipped what happens near t = 0.
    controller = diffrax.PIDController(
        rtol, atol, norm=_largest_rms, pcoeff=0.4, icoeff=0.3, dtmax=0.1
    )

    def solve(state, args):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            solver,
            start,
            end,
            first_step,
            state,
            args,
            stepsize_controller=controller,
            max_steps=max_steps,
            # Each step's last stage is the next one's first. Without the very first given here, diffrax would
            # evaluate it again after every rejection of the first step, and it could not be counted.
            solver_state=(False, field(jnp.asarray(start, dtype), state, args)),
            throw=False,
        )
        valid = solution.result == diffrax.RESULTS.successful
        last = jax.tree.map(lambda y: y[0], solution.ys)
        for y in jax.tree.leaves(last):
            valid &= jnp.all(jnp.isfinite(y))
        last = jax.tree.map(lambda y: jnp.where(valid, y, jnp.nan), last)
        stages = solver.tableau.num_stages - 1
        return last, SamplerInfo((1 + stages * solution.stats["num_steps"]).astype(jnp.int32))

    return jax.vmap(solve)(state, args)


def _largest_rms(state) -> jax.Array:
    means = [jnp.mean(jnp.square(y)) for y in jax.tree.leaves(state)]
    # The root has no finite derivative at 0; no error is this small.
    return jnp.sqrt(jnp.maximum(jnp.max(jnp.stack(means)), jnp.finfo(means[0].dtype).tiny))
