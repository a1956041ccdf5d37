"""Score-matching losses, one value per example.

Every loss is `[B]`, so callers can weight, mask and log it by level; none takes the mean. `x: [B, ...]` is
clean data and `sigma: [B]` each example's noise standard deviation. A score function is
`score_fn(x, sigma) -> score`, with the score shaped like x. For the SDEs of `ncsn_jax.sde` it is
`score_fn(x, t)`, with a time t `[B]` in place of sigma. Noise, x, sigma and the loss are float64 for float64
x and float32 otherwise: a sum over an image's elements overflows float16.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from ncsn_jax import _checks as check
from ncsn_jax._random import expand, fold_in, normal_like, uniform_like
from ncsn_jax.sde import SDE
from ncsn_jax.types import ScoreFn, TimeScoreFn

__all__ = [
    "denoising_diffusion",
    "denoising_score_matching",
    "sample_levels",
    "sample_times",
    "score_matching",
    "sliced_score_matching",
]

# Directional derivatives are taken in batches of this size.
_DIRECTIONS = 16


def denoising_score_matching(
    key: jax.Array, score_fn: ScoreFn, x: jax.Array, sigma: jax.Array
) -> jax.Array:
    """Computes the denoising score matching loss (NCSN, equations 5 and 6), lambda(sigma) = sigma^2.

        loss = 1/2 || sigma * s(x + sigma z, sigma) + z ||^2,    z ~ N(0, I)

    The score of the data perturbed by N(0, sigma^2 I) minimises the expectation. A score of zero gives
    D / 2 at every sigma, where D is the number of elements of one example, so losses are comparable
    across levels.

    Args:
      key: one key, or one per example `[B]`, typed or legacy; see `ncsn_jax.sampling.annealed_langevin`.
      score_fn: `score_fn(x, sigma) -> score`.
      x: `[B, ...]`, clean data.
      sigma: `[B]`, > 0, in units of the data.

    Returns:
      `[B]`, half a squared norm, summed over the elements of each example.

    Raises:
      ValueError: if `sigma` is not `[B]`, or the score is not shaped like x.
    """
    key, x, _ = check.chains(key, x)
    sigma = check.each("sigma", x, sigma)
    noise = normal_like(key, x)
    scale = expand(sigma, x)
    score = check.score(x, score_fn(x + scale * noise, sigma))
    return 0.5 * _sum_elements(jnp.square(scale * score + noise))


def denoising_diffusion(
    key: jax.Array,
    sde: SDE,
    score_fn: TimeScoreFn,
    x: jax.Array,
    t: jax.Array,
    *,
    num_levels: int | None = None,
    likelihood_weighting: bool = False,
) -> jax.Array:
    """Computes the denoising score matching loss of an SDE (Song et al., 2021, equation 7).

        loss = 1/2 || std_t s(x_t, t) + z ||^2,    x_t = alpha_t x + std_t z,    z ~ N(0, I)

    The weight is lambda(t) = std_t^2. With `likelihood_weighting` it is g(t)^2 (Song et al., "Maximum
    likelihood training of score-based diffusion models", 2021): 1/2 g(t)^2 || s(x_t, t) + z / std_t ||^2.
    With `num_levels`, alpha and std are those of the discrete chain: the objectives of SMLD and DDPM.

    With `reduce_mean`, the authors' code takes the mean of || . ||^2 over an example's D elements, without
    the 1/2. That is this loss times 2 / D.

    Args:
      key: one key, or one per example `[B]`.
      sde: the SDE.
      score_fn: `score_fn(x, t) -> score`.
      x: `[B, ...]`, clean data.
      t: `[B]`, in (0, 1]; for a chain level / (N - 1), see `sample_times`.
      num_levels: N, for the chain's level round(t (N - 1)) of `sde.chain(N)`; None for continuous time.
      likelihood_weighting: use lambda(t) = g(t)^2; not for a chain.

    Returns:
      `[B]`, summed over the elements of each example.

    Raises:
      ValueError: if an argument has the wrong shape, `num_levels` is out of range, the SDE has no chain
        (sub-VP), or both `num_levels` and `likelihood_weighting` are set.
    """
    key, x, _ = check.chains(key, x)
    t = check.each("t", x, t)
    if num_levels is None:
        alpha, std = sde.alpha(t), sde.std(t)
    elif likelihood_weighting:
        raise ValueError(
            f"likelihood_weighting must be False with num_levels, got {likelihood_weighting}"
        )
    else:
        level = jnp.round(t * (num_levels - 1)).astype(jnp.int32)
        alpha, std = (table[level] for table in sde.chain(num_levels))
    noise = normal_like(key, x)
    alpha, std = alpha.astype(x.dtype), std.astype(x.dtype)
    scale = expand(std, x)
    score = check.score(x, score_fn(expand(alpha, x) * x + scale * noise, t))
    loss = 0.5 * _sum_elements(jnp.square(scale * score + noise))
    return loss * jnp.square(sde.diffusion(t) / std) if likelihood_weighting else loss


def sliced_score_matching(
    key: jax.Array,
    score_fn: ScoreFn,
    x: jax.Array,
    sigma: jax.Array,
    num_projections: int = 1,
) -> jax.Array:
    """Computes the sliced score matching loss of perturbed data, with reduced variance and weight sigma^2.

    Song et al. (2019), "Sliced Score Matching", equation 8, applied to x~ = x + sigma z as in NCSN,
    section 2.1, for projections v ~ N(0, I):

        loss = sigma^2 * (1/2 ||s(x~, sigma)||^2 + mean over v of v^T J v),    J = ds/dx~

    Its expectation differs from that of denoising score matching by a constant in s. Each projection
    costs one forward-mode derivative; all share the perturbation and the score.

    Args:
      key: one key, or one per example `[B]`.
      score_fn: `score_fn(x, sigma) -> score`, differentiable in x, each example by itself.
      x: `[B, ...]`, clean data.
      sigma: `[B]`, > 0, in units of the data.
      num_projections: the number of v per example, >= 1.

    Returns:
      `[B]`; unlike denoising score matching, negative near its minimum.

    Raises:
      ValueError: if an argument has the wrong shape or `num_projections` is below 1.
    """
    key, x, _ = check.chains(key, x)
    sigma = check.each("sigma", x, sigma)
    num_projections = check.count("num_projections", num_projections)
    perturbed = x + expand(sigma, x) * normal_like(fold_in(key, 0), x)
    score, directional = _linearize(score_fn, perturbed, sigma)
    vectors = jnp.stack(
        [normal_like(fold_in(key, 1 + i), perturbed) for i in range(num_projections)]
    )
    traces = jax.vmap(lambda v: _sum_elements(v * directional(v)))(vectors)
    return jnp.square(sigma) * (0.5 * _sum_elements(jnp.square(score)) + jnp.mean(traces, axis=0))


def score_matching(score_fn: ScoreFn, x: jax.Array, sigma: jax.Array) -> jax.Array:
    """Computes the exact score matching loss (Hyvarinen, 2005; NCSN, equation 1) with weight sigma^2.

        loss = sigma^2 * (1/2 ||s(x, sigma)||^2 + tr J),    J = ds/dx

    The trace takes one forward-mode derivative for each of an example's D elements, so use it in small
    dimensions.

    Args:
      score_fn: `score_fn(x, sigma) -> score`, differentiable in x, each example by itself.
      x: `[B, ...]`, samples of the distribution whose score is wanted: already perturbed, for perturbed
        data.
      sigma: `[B]`, > 0, passed to the score function; its square is the weight.

    Returns:
      `[B]`.

    Raises:
      ValueError: if `sigma` is not `[B]`, or the score is not shaped like x.
    """
    x, _ = check.state("x", x)
    sigma = check.each("sigma", x, sigma)
    score, directional = _linearize(score_fn, x, sigma)
    size = math.prod(x.shape[1:])
    if not size:
        raise ValueError(f"x must not be empty, got shape {x.shape}")
    basis = jnp.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:])
    # Batching and recomputation in the backward pass keep memory from growing with D.
    at_once = next(k for k in range(min(size, _DIRECTIONS), 0, -1) if size % k == 0)

    @jax.checkpoint
    def diagonal(e):
        return _sum_elements(e * directional(jnp.broadcast_to(e, x.shape)))

    trace = jnp.sum(jax.lax.map(diagonal, basis, batch_size=at_once), axis=0)
    return jnp.square(sigma) * (0.5 * _sum_elements(jnp.square(score)) + trace)


def sample_levels(key: jax.Array, sigmas: jax.Array, batch_size: int) -> jax.Array:
    """Draws each example's noise level, uniform over the ladder (NCSN, equation 6).

    Args:
      key: one key, or one per example `[batch_size]`.
      sigmas: `[L]`, the ladder.
      batch_size: the number of examples B.

    Returns:
      `[B]`, elements of `sigmas`.

    Raises:
      ValueError: if an argument has the wrong shape, or `batch_size` is below 1.
    """
    batch_size = check.count("batch_size", batch_size)
    key = check.keys(key, batch_size)
    sigmas = jnp.asarray(sigmas)
    if sigmas.ndim != 1 or not sigmas.size:
        raise ValueError(f"sigmas must have shape [L] with L >= 1, got {sigmas.shape}")
    return sigmas[_draw_levels(key, sigmas.shape[0], batch_size)]


def sample_times(
    key: jax.Array, batch_size: int, *, end: float = 1e-5, num_levels: int | None = None
) -> jax.Array:
    """Draws each example's time for `denoising_diffusion`, uniformly.

    Args:
      key: one key, or one per example `[batch_size]`.
      batch_size: the number of examples B.
      end: the smallest time, in (0, 1): 1e-5 in the published runs of every SDE. Ignored with `num_levels`.
      num_levels: N >= 2, for the times i / (N - 1) of a chain's levels i = 0, ..., N - 1; None for
        continuous time.

    Returns:
      float32 `[B]` in (end, 1], or in [0, 1] for a chain.

    Raises:
      ValueError: if an argument is out of range.
    """
    batch_size = check.count("batch_size", batch_size)
    key = check.keys(key, batch_size)
    if num_levels is not None:
        num_levels = check.count("num_levels", num_levels, 2)
        return _draw_levels(key, num_levels, batch_size) / jnp.float32(num_levels - 1)
    end = check.fraction("end", end)
    return 1 - (1 - end) * uniform_like(key, jnp.zeros(batch_size, jnp.float32))


def _draw_levels(key: jax.Array, count: int, batch_size: int) -> jax.Array:
    """Draws integers `[B]` below `count`; `key` is one key or `[B]`."""
    if key.ndim == 0:
        return jax.random.randint(key, (batch_size,), 0, count)
    return jax.vmap(lambda k: jax.random.randint(k, (), 0, count))(key)


def _linearize(score_fn: ScoreFn, x: jax.Array, sigma: jax.Array):
    """Returns the score at x and the function that maps a direction v to J v."""
    return jax.linearize(lambda x: check.score(x, score_fn(x, sigma)), x)


def _sum_elements(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def __dir__() -> list[str]:
    return __all__
