"""The second-order sampler of Karras et al. (2022), "Elucidating the design space ...", algorithms 1 and 2.

It applies Heun's method to the probability flow dx/dsigma = -sigma s(x, sigma), along any ladder and then to
sigma = 0. Optional churn adds noise at every level and removes it again. One loop runs over a table of
score evaluations, two per step and one for the last, so the compiled program contains the score once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ncsn_jax import _checks as check
from ncsn_jax._random import fold_in, normal_like
from ncsn_jax.errors import show
from ncsn_jax.sampling._loop import run_steps
from ncsn_jax.sampling._predictor_corrector import SamplerInfo
from ncsn_jax.types import ScoreFn

_MAX_CHURN = 1e9  # far more than anyone uses


class _Evaluation(NamedTuple):
    """The table of evaluations: every field is `[number of evaluations]`.

    Attributes:
      step: the index of the step.
      first: True for the step's first evaluation, at its start; False for the second, at its end.
      sigma: where the score is evaluated.
      change: the step's change of sigma, < 0.
      noise: the standard deviation of the noise added beforehand.
    """

    step: jax.Array
    first: jax.Array
    sigma: jax.Array
    change: jax.Array
    noise: jax.Array


def heun(
    key: jax.Array,
    score_fn: ScoreFn,
    x: ArrayLike,
    sigmas: ArrayLike,
    *,
    churn: ArrayLike = 0.0,
    churn_range: tuple[float, float] = (0.0, math.inf),
    churn_noise: ArrayLike = 1.0,
    second_order: bool = True,
    steps: tuple[int, int] | None = None,
) -> tuple[jax.Array, SamplerInfo]:
    """Samples by Heun's method along a ladder, deterministic or with churn (algorithms 1 and 2).

    With d(x, sigma) = -sigma s(x, sigma), step i goes from sigma_i to sigma_{i+1}, with sigma_{L+1} = 0:

        sigma^ = (1 + gamma_i) sigma_i,    x^ = x + churn_noise sqrt(sigma^^2 - sigma_i^2) z,
        x' = x^ + (sigma_{i+1} - sigma^) d(x^, sigma^),
        x  = x^ + (sigma_{i+1} - sigma^) (d(x^, sigma^) + d(x', sigma_{i+1})) / 2,

    The last step omits the last line, as sigma = 0 has no score, and is an Euler step. gamma_i is
    min(churn / L, sqrt(2) - 1) for sigma_i in `churn_range`, and 0 elsewhere.

    Args:
      key: one key, or one per example `[B]`. Unused without churn.
      score_fn: `score_fn(x, sigma) -> score`.
      x: `[B, ...]`, data plus N(0, sigmas[0]^2), where the samples start; the result has its type, as in
        `annealed_langevin`.
      sigmas: `[L]`, decreasing, the last one above 0; see `ncsn_jax.sigmas.karras`.
      churn: S_churn >= 0, in units of steps; 0 for the deterministic sampler.
      churn_range: (S_min, S_max), the sigmas with churn, inclusive.
      churn_noise: S_noise >= 0, the scale of the noise added; 1, or slightly more to restore detail.
      second_order: False for Euler's method, which omits the last line in every step.
      steps: `(start, stop)`, to run only some of the L steps, as in `annealed_langevin`.

    Returns:
      `[B, ...]`, and the NFE, 2 L - 1, or L for Euler's method.

    Raises:
      ValueError: if an argument is out of range or the ladder does not decrease. Traced values are not
        checked.

    Example:
      >>> import jax
      >>> from ncsn_jax.sampling import heun
      >>> from ncsn_jax.sigmas import karras
      >>> score_fn = lambda x, sigma: -x / (1 + sigma[:, None] ** 2)  # the data are N(0, 1)
      >>> sigmas = karras(80.0, 0.002, 64)
      >>> x, info = heun(jax.random.key(0), score_fn, 80.0 * jax.numpy.ones((1, 1)), sigmas)
      >>> round(float(x[0, 0]), 2), int(info.evaluations[0])
      (1.0, 127)
    """
    key, x, dtype = check.chains(key, x)
    batch, sigmas = x.shape[0], check.ladder(sigmas, x.dtype)
    churn, churn_noise = _check_churn("churn", churn), _check_churn("churn_noise", churn_noise)
    churn_range = check.interval("churn_range", churn_range, least=0, equal=True)
    levels = sigmas.shape[0]
    start, stop = check.part(steps, levels)
    table = _evaluations(sigmas, churn, churn_range, churn_noise)
    if second_order:
        # The last step has no second evaluation.
        start, stop = (2 * bound - (bound == levels) for bound in (start, stop))
    else:
        table = jax.tree.map(lambda column: column[::2], table)

    def evaluate(state, row):
        x, base, slope = state
        row = row._replace(**{n: getattr(row, n).astype(x.dtype) for n in ("change", "noise")})
        if check.is_traced(churn) or churn > 0:
            x = x + row.noise * normal_like(fold_in(key, row.step), x)
        score = check.score(x, score_fn(x, jnp.broadcast_to(row.sigma, (batch,))))
        found = -row.sigma.astype(x.dtype) * score
        base = jnp.where(row.first, x, base)
        slope = jnp.where(row.first, found, 0.5 * (slope + found))
        return base + row.change * slope, base, slope

    x = run_steps(evaluate, (x, x, x), table, (start, stop))[0]
    return x.astype(dtype), SamplerInfo(jnp.full(batch, stop - start, jnp.int32))


def euler(
    key: jax.Array,
    score_fn: ScoreFn,
    x: ArrayLike,
    sigmas: ArrayLike,
    *,
    churn: ArrayLike = 0.0,
    steps: tuple[int, int] | None = None,
) -> tuple[jax.Array, SamplerInfo]:
    """Samples by Euler's method along a ladder: `heun` without its second evaluation, with L evaluations."""
    return heun(key, score_fn, x, sigmas, churn=churn, second_order=False, steps=steps)


def _evaluations(sigmas, churn, churn_range, churn_noise) -> _Evaluation:
    """Returns the table of evaluations, two per step."""
    levels = sigmas.shape[0]
    low, high = churn_range
    gamma = jnp.minimum(churn / levels, math.sqrt(2) - 1)
    gamma = jnp.where((low <= sigmas) & (sigmas <= high), gamma, 0.0)
    raised = (1 + gamma) * sigmas
    after = jnp.append(sigmas[1:], jnp.zeros_like(sigmas[:1]))

    def pair(one, other):
        return jnp.stack([one, other], axis=1).reshape(-1)

    return _Evaluation(
        step=jnp.repeat(jnp.arange(levels), 2),
        first=jnp.tile(jnp.asarray([True, False]), levels),
        sigma=pair(raised, after),
        change=jnp.repeat(after - raised, 2),
        # This form of sqrt(sigma^^2 - sigma^2) avoids cancellation.
        noise=pair(churn_noise * sigmas * jnp.sqrt(gamma * (2 + gamma)), jnp.zeros_like(sigmas)),
    )


def _check_churn(name: str, value):
    number = check.as_float(name, value)
    if not (check.is_traced(number) or 0 <= number <= _MAX_CHURN):
        raise ValueError(f"{name} must be in [0, {_MAX_CHURN:g}], got {show(value)}")
    return number
