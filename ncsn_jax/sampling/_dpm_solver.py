"""DPM-Solver++ (Lu et al., 2022), the multistep solver of few evaluations, of the ODE and of the SDE.

It solves the probability flow, or the reverse SDE, exactly but for the denoised image D(x, sigma), which it
extrapolates from the last steps by a polynomial in lambda = -ln sigma. A step is then linear in x, the last
images D and the noise; one loop runs over a table of their coefficients.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ncsn_jax import _checks as check
from ncsn_jax._random import fold_in, normal_like
from ncsn_jax.sampling._loop import run_steps
from ncsn_jax.types import ScoreFn

_MAX_ORDER = 3


class DPMSolverInfo(NamedTuple):
    """How a chain went, and what continues it.

    Attributes:
      evaluations: int32 `[B]`, each example's network evaluations (NFE).
      denoised: `[order - 1, B, ...]`, the last images D, the newest first: the `denoised` of the next part.
    """

    evaluations: jax.Array
    denoised: jax.Array


class _Step(NamedTuple):
    """The table of steps: every field is `[L, ...]`.

    Attributes:
      step: the index of the step.
      sigma: where it starts.
      keep: the factor of x.
      weights: `[L, order]`, the factors of the images D, the newest first.
      noise: the factor of the noise.
    """

    step: jax.Array
    sigma: jax.Array
    keep: jax.Array
    weights: jax.Array
    noise: jax.Array


def dpm_solver(
    key: jax.Array,
    score_fn: ScoreFn,
    x: ArrayLike,
    sigmas: ArrayLike,
    *,
    order: int = 2,
    stochastic: bool = False,
    steps: tuple[int, int] | None = None,
    denoised: ArrayLike | None = None,
) -> tuple[jax.Array, DPMSolverInfo]:
    """Samples by DPM-Solver++ of order 1, 2 or 3, which takes one evaluation a step.

    With D_i = x_i + sigma_i^2 s(x_i, sigma_i), h_i = ln(sigma_i / sigma_{i+1}), sigma_{L+1} = 0 and c = 1, or
    c = 2 if `stochastic`, step i is

        x_{i+1} = e^(-c h_i) x_i + phi_1 D_i + phi_2 D' + phi_3 D'' + sigma_{i+1} sqrt(1 - e^(-2 h_i)) z,

    where phi_1 = 1 - e^(-c h_i). Only `stochastic` has the noise z. Order 1 (DDIM; Euler's method in sigma)
    has neither D' nor D''. Order 2 is the paper's algorithm 2 (2M), with r = h_{i-1} / h_i:

        D' = (D_i - D_{i-1}) / r,    phi_2 = phi_1 / 2

    Order 3 takes D' and D'' from the parabola through the last three D, as the authors' code does:

        phi_2 = 1 - phi_1 / (c h_i),    phi_3 = 1/2 - phi_2 / (c h_i)

    The last step gives D_L. The first step has order 1; the second, and the last but one, at most 2.

    Args:
      key: one key, or one per example `[B]`. Unused unless `stochastic`.
      score_fn: `score_fn(x, sigma) -> score`.
      x: `[B, ...]`, data plus N(0, sigmas[0]^2), where the samples start; the result has its type, as in
        `annealed_langevin`.
      sigmas: `[L]`, decreasing, the last one above 0; see `ncsn_jax.sigmas.karras`.
      order: 1, 2 or 3. Take 2 for about 10 steps: there order 3 can be much worse, above all if `stochastic`.
      stochastic: solve the reverse SDE, which adds noise in every step, and not the flow.
      steps: `(start, stop)`, to run only some of the L steps, as in `annealed_langevin`.
      denoised: `info.denoised` of the part before, `[order - 1, B, ...]`, for the same samples as in one run.
        Without it, a part begins like a chain, with order 1.

    Returns:
      `[B, ...]`, and the NFE, L, with the images that the next part needs.

    Raises:
      ValueError: if an argument is out of range or the ladder does not decrease. Traced values are not
        checked.

    Example:
      >>> import jax
      >>> from ncsn_jax.sampling import dpm_solver
      >>> from ncsn_jax.sigmas import karras
      >>> score_fn = lambda x, sigma: -x / (1 + sigma[:, None] ** 2)  # the data are N(0, 1)
      >>> x = 80.0 * jax.numpy.ones((1, 1))
      >>> x, info = dpm_solver(jax.random.key(0), score_fn, x, karras(80.0, 0.002, 40))
      >>> round(float(x[0, 0]), 2), int(info.evaluations[0])
      (1.01, 40)

    Differs from theory: the authors' code has half of the exact phi_3 in order 3, so its error shrinks like
    that of order 2, only from a smaller value.
    """
    key, x, dtype = check.chains(key, x)
    batch, sigmas = x.shape[0], check.ladder(sigmas, x.dtype)
    order = check.count("order", order, 1, _MAX_ORDER)
    levels = sigmas.shape[0]
    start, stop = check.part(steps, levels)
    wanted = (order - 1, *x.shape)
    if denoised is None:
        known, denoised = start, jnp.zeros(wanted, x.dtype)
    else:
        known, denoised = 0, jnp.asarray(denoised, x.dtype)
        check.shape("denoised", denoised, wanted)
    table = _table(sigmas, order, stochastic, known)

    def step(state, row):
        x, past = state
        score = check.score(x, score_fn(x, jnp.broadcast_to(row.sigma, (batch,))))
        images = jnp.concatenate([(x + jnp.square(row.sigma) * score)[None], past])
        x = row.keep * x + sum(row.weights[i] * images[i] for i in range(order))
        if stochastic:
            x = x + row.noise * normal_like(fold_in(key, row.step), x)
        return x, images[: order - 1]

    x, denoised = run_steps(step, (x, denoised), table, (start, stop))
    evaluations = jnp.full(batch, stop - start, jnp.int32)
    return x.astype(dtype), DPMSolverInfo(evaluations, denoised)


def _table(sigmas: jax.Array, order: int, stochastic: bool, known: ArrayLike) -> _Step:
    """Returns the table of steps; those from index `known` on have images D of the steps from it on."""
    levels, index = sigmas.shape[0], jnp.arange(sigmas.shape[0])
    is_last = index == levels - 1
    after = jnp.append(sigmas[1:], sigmas[-1:] / 2)  # any sigma below, for the last step
    h, c = jnp.log(sigmas / after), 2 if stochastic else 1
    of_order = jax.vmap(_weights, (0, 0, 0, None))(h, jnp.roll(h, 1), jnp.roll(h, 2), c)
    possible = jnp.minimum(index - known, levels - 1 - index)
    weights = of_order[index, jnp.clip(possible, 0, order - 1), :order]
    of_last = jnp.eye(order, dtype=weights.dtype)[:1]
    return _Step(
        index,
        sigmas,
        keep=jnp.where(is_last, 0, jnp.exp(-c * h)),
        weights=jnp.where(is_last[:, None], of_last, weights),
        noise=jnp.where(is_last, 0, after * jnp.sqrt(-jnp.expm1(-2 * h))),
    )


def _weights(h: jax.Array, h_before: jax.Array, h_earlier: jax.Array, c: int) -> jax.Array:
    """Returns the weights of D_i, D_{i-1} and D_{i-2} in a step of each order, `[3, 3]`."""
    phi_1 = -jnp.expm1(-c * h)
    phi_2 = 1 - phi_1 / (c * h)
    phi_3 = 0.5 - phi_2 / (c * h)
    zero, one = jnp.zeros_like(h), jnp.ones_like(h)
    d = jnp.stack([one, zero, zero])
    # The differences between neighbours, over the ratios of the steps, and their own difference.
    r, r_earlier = h_before / h, h_earlier / h
    slope, slope_before = jnp.stack([1 / r, -1 / r, zero]), jnp.stack([zero, one, -one]) / r_earlier
    bend = (slope - slope_before) / (r + r_earlier)
    return jnp.stack(
        [
            phi_1 * d,
            phi_1 * d + phi_1 / 2 * slope,
            phi_1 * d + phi_2 * (slope + r * bend) + phi_3 * bend,
        ]
    )
