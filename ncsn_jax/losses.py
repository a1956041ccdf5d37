"""Score-matching objectives.

Every loss is `[B]`, one value per example, so that callers can weight it, mask it and log it by noise
level; none takes the mean. `x: [B, ...]` is clean data and `sigma: [B]` the noise standard deviation
of each example. A score function is `score_fn(x, sigma) -> score`, with the score shaped like x.
"""

import jax
import jax.numpy as jnp

from ncsn_jax._random import check_key, expand, normal_like
from ncsn_jax.types import ScoreFn


def denoising_score_matching(
    key: jax.Array, score_fn: ScoreFn, x: jax.Array, sigma: jax.Array
) -> jax.Array:
    """Denoising score matching (NCSN, equations 5 and 6) with the weight lambda(sigma) = sigma^2.

        loss = 1/2 || sigma * s(x + sigma z, sigma) + z ||^2,    z ~ N(0, I)

    The expectation is smallest where s is the score of the data perturbed by N(0, sigma^2 I). For a
    score of zero it is D / 2 at every sigma, D being the number of elements of one example, so that
    losses of different levels compare.

    Args:
      key: one key, or one per example `[B]`; see `ncsn_jax.sampling.annealed_langevin`.
      score_fn: `score_fn(x, sigma) -> score`.
      x: `[B, ...]`, clean data.
      sigma: `[B]`, > 0, in units of the data.

    Returns:
      `[B]`: half a squared norm, summed over the elements of each example.

    Raises:
      ValueError: if `sigma` is not `[B]`, or the score is not shaped like x.
    """
    check_key(key, x.shape[0])
    _check_sigma(x, sigma)
    noise = normal_like(key, x)
    scale = expand(sigma, x)
    score = score_fn(x + scale * noise, sigma)
    if score.shape != x.shape:
        raise ValueError(f"score_fn must return the shape of x, {x.shape}, got {score.shape}")
    return 0.5 * _sum_elements(jnp.square(scale * score + noise))


def sample_levels(key: jax.Array, sigmas: jax.Array, batch_size: int) -> jax.Array:
    """Draws the noise level of each example, uniform over the ladder (NCSN, equation 6).

    Args:
      key: one key, or one per example `[batch_size]`.
      sigmas: `[L]`, the ladder.
      batch_size: the number of examples B.

    Returns:
      `[B]`, elements of `sigmas`.
    """
    check_key(key, batch_size)
    if key.ndim == 0:
        level = jax.random.randint(key, (batch_size,), 0, sigmas.shape[0])
    else:
        level = jax.vmap(lambda k: jax.random.randint(k, (), 0, sigmas.shape[0]))(key)
    return sigmas[level]


def _check_sigma(x: jax.Array, sigma: jax.Array) -> None:
    if sigma.shape != x.shape[:1]:
        raise ValueError(f"sigma must have shape {x.shape[:1]}, one per example, got {sigma.shape}")


def _sum_elements(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))
