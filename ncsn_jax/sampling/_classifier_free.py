"""Guidance by a second score: without the condition, or by a worse network."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ncsn_jax import _checks as check
from ncsn_jax._random import expand
from ncsn_jax.errors import show
from ncsn_jax.types import ScoreFn


def classifier_free(
    score_fn: ScoreFn,
    unconditional: ScoreFn,
    scale: ArrayLike,
    interval: tuple[float, float] = (0.0, math.inf),
) -> ScoreFn:
    """Returns the score of x given y, guided away from the score without y.

        s = s_u + scale (s_c - s_u)                                 for sigma in the interval, else s_c

    It is the gradient of log p_u(x) + scale (log p(x | y) - log p_u(x)). This is equation 6 of Ho & Salimans
    (2022), with scale = 1 + w for their w. The interval is that of Kynkäänniemi et al. (2024): guidance at
    the largest sigmas costs variety, and at the smallest it has no use. With a smaller or less trained
    network of the same condition in place of `unconditional`, this is the autoguidance of Karras et al.
    (2024), section 4.

    No chain of noisy data has these scores, except where `scale` is 0 or 1, so a sampler's samples follow
    the guided density of the data only approximately.

    Args:
      score_fn: s_c, `score_fn(x, sigma)`, the score given the condition.
      unconditional: s_u, likewise, the score without it.
      scale: finite, one number for all examples or `[B]`. The number 1 gives `score_fn` itself and 0 gives
        `unconditional` itself, bit for bit, without a call of the other.
      interval: (low, high), 0 <= low < high, the sigmas with guidance, inclusive. Score functions of an SDE's
        time take times.

    Returns:
      A score function. It calls both of the given ones, so a sampler's NFE count for two.

    Raises:
      ValueError: if the scale is not finite, or the interval is not an interval. Traced values are not
        checked.

    Example:
      >>> import jax
      >>> from ncsn_jax.sampling import classifier_free
      >>> given_y = lambda x, sigma: (1.0 - x) / (1 + sigma[:, None] ** 2)  # p(x | y) is N(1, 1)
      >>> without = lambda x, sigma: -x / (4 + sigma[:, None] ** 2)  # p(x) is N(0, 4)
      >>> score_fn = classifier_free(given_y, without, 2.0)
      >>> float(score_fn(jax.numpy.zeros((1, 1)), jax.numpy.zeros(1))[0, 0])
      2.0
    """
    low, high = check.interval("interval", interval, least=-math.inf)
    is_number = np.ndim(scale) == 0 and not check.is_traced(scale)
    if is_number and not math.isfinite(check.as_float("scale", scale)):
        raise ValueError(f"scale must be finite, got {show(scale)}")
    if is_number and scale == 1:
        return score_fn
    is_everywhere = not any(map(check.is_traced, (low, high))) and low <= 0 and high == math.inf
    if is_number and scale == 0 and is_everywhere:
        return unconditional

    def score(x: jax.Array, sigma: jax.Array) -> jax.Array:
        conditional, other = score_fn(x, sigma), unconditional(x, sigma)
        factor = jnp.asarray(scale, conditional.dtype)
        factor = expand(factor, x) if factor.ndim else factor
        inside = expand((low <= sigma) & (sigma <= high), x)
        return jnp.where(inside, other + factor * (conditional - other), conditional)

    return score
