"""The score of the posterior, from the score of the data and a measurement."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ncsn_jax import _checks as check
from ncsn_jax._random import expand
from ncsn_jax.errors import show
from ncsn_jax.inverse._operators import (
    LinearOperator,
    NonlinearOperator,
    Operator,
    applied,
    check_measurement,
    only_observed,
    per_example,
)
from ncsn_jax.inverse._solve import solve
from ncsn_jax.types import ScoreFn

METHODS = ("langevin", "dps", "pigdm", "mmps")


def posterior_score(
    score_fn: ScoreFn,
    operator: Operator,
    y: ArrayLike,
    noise: ArrayLike,
    *,
    method: str,
    data_std: float = 1.0,
    iterations: int | None = None,
) -> ScoreFn:
    """Returns the score of the data given y = A x_0 + n, n ~ N(0, noise^2 I).

    For x = x_0 + sigma z, it is the score of the data plus that of the likelihood,

        s(x, sigma) + grad log p(y | x).

    The likelihood is an integral over x_0 given x. All methods take x_0 given x as a normal distribution
    N(m, V), so that p(y | x) = N(A m, S) with S = noise^2 I + A V A^T, and differ in m and V:

        grad log p(y | x) = J^T A^T S^{-1} (y - A m),    J = dm/dx,    D(x) = x + sigma^2 s(x, sigma)

    | method | m | V | derivatives of the score, for each evaluation |
    |---|---|---|---|
    | "langevin" (Jalal et al., 2021) | x | sigma^2 I | none |
    | "dps" (Chung et al., 2023) | D(x) | 0 | 1 |
    | "pigdm" (Song et al., 2023) | D(x) | r^2 I, r^2 = sigma^2 std^2 / (sigma^2 + std^2) | 1 |
    | "mmps" (Rozet et al., 2024) | D(x) | sigma^2 J, the covariance of x_0 given x | 1 + iterations |

    Which one to take:

    - "langevin" for `annealed_langevin` and correctors. At each sigma these sample the density whose score
      it is, and that tends to the posterior as sigma tends to 0. It takes hundreds of evaluations, but no
      derivatives, and is the most reliable with trained networks. No chain of noisy data has these scores,
      so it is biased with the other samplers.
    - "mmps" for the other samplers. It is exact for normal data, if the iterations suffice.
    - "pigdm" likewise, at less cost. It is exact for data from N(m, std^2 I), and otherwise biased.
    - "dps" to compare with them. It takes D(x) for x_0, so it trusts the measurement too much, and its score
      is as steep as 1 / noise^2. Along a geometric ladder a sampler needs about
      ln(sigma_1 / sigma_L) |A|^2 std^2 / (8 noise^2) steps, or it diverges.

    The derivatives of a trained network are unreliable where sigma is far above the data's standard
    deviation, and chains of "dps", "pigdm" and "mmps" may diverge there. So start at about the largest sigma
    that matters, 1 for pixels in [0, 1]. `dpm_solver` with `stochastic=True` forgets errors, and "mmps" with
    one iteration amplifies them less than with more.

    Example i of the score depends on example i of x and y alone.

    Differs from the papers: Jalal et al. have (noise^2 + gamma^2) I in place of S, with a sequence gamma to
    choose; with A A^T = I and gamma = sigma this is the same. Algorithm 1 of Chung et al. divides the
    gradient by |y - A D(x)| and multiplies it by a factor to choose; this is their equation 16. Nonlinear
    operators are linearised at m.

    Args:
      score_fn: the score of the data, `score_fn(x, sigma)`, x `[B, ...]`.
      operator: A; see `mask`, `downsample`, `blur`, `fourier_mask`, `grey`, `matrix`, `compose` and
        `nonlinear`.
      y: `[B, ...]`, shaped like A x.
      noise: its standard deviation, >= 0, in units of y; for "dps" > 0. One number, or one per example `[B]`.
      method: one of `METHODS`.
      data_std: for "pigdm": the standard deviation of the data along what is measured, > 0. The paper has 1.
      iterations: of the conjugate gradients that apply S^{-1}, >= 1; by default 1 for "mmps", where each is a
        derivative of the score, and 30 for "langevin" and "pigdm", where each only applies A. As many as S
        has different eigenvalues are exact: one for `mask`, `downsample` and `grey` without "mmps".

    Returns:
      A score function for any sampler of x `[B, ...]`. For those that take times, use
      `sde.from_sigma_score`. Samplers that solve every example on its own, such as `probability_flow`, need
      `jax.vmap` over examples.

    Raises:
      ValueError: if an argument is out of range; the score function does if the shapes do not match. Traced
        values are not checked.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from ncsn_jax import inverse, sampling, sigmas
      >>> score_fn = lambda x, sigma: -x / (1 + sigma[:, None] ** 2)  # the data are N(0, I)
      >>> first = inverse.mask([[True, False]])  # y is x_1 with noise 1, so x_1 given y is N(y / 2, 1 / 2)
      >>> y = jnp.tile(jnp.asarray([[2.0, jnp.nan]]), (1000, 1))
      >>> given_y = inverse.posterior_score(score_fn, first, y, 1.0, method="mmps")
      >>> x = 80.0 * jax.random.normal(jax.random.key(0), (1000, 2))
      >>> x, _ = sampling.heun(jax.random.key(1), given_y, x, sigmas.karras(80.0, 0.01, 18))
      >>> round(float(x[:, 0].mean()), 1)
      1.0
    """
    if not isinstance(operator, LinearOperator | NonlinearOperator):
        raise ValueError(
            f"operator must be a LinearOperator, or made by `nonlinear`, got {show(operator)}"
        )
    if method not in METHODS:
        raise ValueError(f"method must be {' or '.join(map(repr, METHODS))}, got {show(method)}")
    data_std = check.positive("data_std", data_std)
    if iterations is None:
        iterations = 1 if method == "mmps" else 30
    iterations = check.count("iterations", iterations)
    y = jnp.asarray(y)
    check.floating("y", y)
    if method == "dps" and not check.is_traced(noise) and not np.all(np.asarray(noise) > 0):
        raise ValueError(f"noise must be > 0 for method='dps', got {show(noise)}")
    per_example(noise, y)

    def score(x: jax.Array, sigma: jax.Array) -> jax.Array:
        square = expand(jnp.square(sigma), x)

        def denoise(x):
            prior = score_fn(x, sigma)
            return x + square * prior, prior

        if method == "langevin":
            mean, prior = x, score_fn(x, sigma)
        else:
            mean, pull, prior = jax.vjp(denoise, x, has_aux=True)
        value, transpose = jax.vjp(lambda m: applied(operator, m), mean)
        check_measurement(y, value)

        def spread(v):
            """Returns V v."""
            if method == "mmps":
                return square * pull(v)[0]
            if method == "pigdm":
                return square * data_std**2 / (square + data_std**2) * v
            return square * v

        def forward(v):
            """Returns A v."""
            if isinstance(operator, LinearOperator):
                return applied(operator, v)
            # The transpose of the transpose: an operator's own adjoint allows no `jax.jvp`.
            return jax.vjp(lambda u: transpose(u)[0], value)[1](v)[0]

        variance = jnp.square(per_example(noise, value))

        def product(v):
            """Returns S v."""
            return variance * v + forward(spread(transpose(v)[0]))

        residual = only_observed(operator, y.astype(value.dtype)) - value
        if method == "dps":
            weighted = residual / variance
        else:  # the derivatives of a trained network may have negative eigenvalues
            weighted = solve(product, residual, iterations, least=variance)
        likelihood = transpose(weighted)[0]
        return prior + (likelihood if method == "langevin" else pull(likelihood)[0])

    return score
