"""Controllable generation with the score of an unconditional model (Song et al., 2021).

A `constrain` function imposes the known part of a sample after every update of `predictor_corrector`
(`known_pixels` for inpainting, `known_grey` for colorization). `guided` puts a condition into the score.

Imposing the known part is an approximation: the unknown part follows a score evaluated with fresh noise on
the known part, not with the path that leads to it. It is exact where the two are independent, and biased
where they are correlated; corrector steps reduce the bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ncsn_jax import _checks as check
from ncsn_jax._random import expand, normal_like
from ncsn_jax.sampling._predictor_corrector import Constrain
from ncsn_jax.sde import SDE
from ncsn_jax.types import ScoreFn


def known_pixels(sde: SDE, observed: ArrayLike, mask: ArrayLike) -> Constrain:
    """Returns the `constrain` of `predictor_corrector` for inpainting (appendix I.2).

    After each update, the known part of x becomes a sample alpha_t observed + std_t z of p(x_t | x_0 known),
    and that of the mean becomes alpha_t observed. So a denoised sample ends with `alpha_end * observed` in
    its known part; without denoising, that part also has noise of std_end.

    The authors' code differs: after the predictor it still uses the time of the step just left, and in the
    unknown part it replaces the mean by x, so nothing is denoised there.

    Args:
      sde: the SDE.
      observed: shaped like x, or broadcastable to x with the same number of axes. Hidden values are ignored,
        even if not finite.
      mask: 1 or True where `observed` was observed, 0 or False where it is hidden; shaped likewise.

    Returns:
      `constrain(key, x, mean, t)`, which raises ValueError if a shape above does not match x.

    Raises:
      ValueError: if the mask has other values. A traced mask is not checked.
    """
    observed, mask = jnp.asarray(observed), check.mask(mask)

    def constrain(key, x, mean, t):
        known = check.broadcast_like("mask", mask, x)
        clean = jnp.where(known, check.broadcast_like("observed", observed, x), 0).astype(x.dtype)
        there, std = sde.marginal(clean, t)
        noisy = there + expand(std, x) * normal_like(check.keys(key, x.shape[0]), x)
        return jnp.where(known, noisy, x), jnp.where(known, there, mean)

    return constrain


def known_grey(sde: SDE, grey: ArrayLike) -> Constrain:
    """Returns the `constrain` of `predictor_corrector` for colorization (appendix I.3).

    Grey is the mean m of a pixel's three channels. An orthogonal transform of the channels whose first axis
    is (1, 1, 1) / sqrt(3) has first coordinate sqrt(3) m. The noise of its coordinates is independent, like
    that of the channels. To impose the first coordinate and keep the others, add the same number to all three
    channels; the choice of transform does not matter:

        x <- x - m(x) + alpha_t grey + std_t z / sqrt(3),    mean <- mean - m(mean) + alpha_t grey

    Args:
      sde: the SDE.
      grey: `[B, H, W, 1]`, or 1 in place of B, H or W, in the units of the images.

    Returns:
      `constrain(key, x, mean, t)` for images x `[B, H, W, 3]`, which raises ValueError for others.

    Raises:
      ValueError: if `grey` has a different number of axes or channels.
    """
    grey = jnp.asarray(grey)
    if grey.ndim != 4 or grey.shape[-1] != 1:
        raise ValueError(f"grey must have shape [B, H, W, 1], got {grey.shape}")

    def constrain(key, x, mean, t):
        if x.ndim != 4 or x.shape[-1] != 3:
            raise ValueError(f"x must have shape [B, H, W, 3] for known_grey, got {x.shape}")
        clean = check.broadcast_like("grey", grey, x[..., :1]).astype(x.dtype)
        there, std = sde.marginal(clean, t)
        noise = normal_like(check.keys(key, x.shape[0]), there)
        noisy = there + expand(std, x) / math.sqrt(3) * noise
        return tuple(
            image - jnp.mean(image, axis=-1, keepdims=True) + imposed
            for image, imposed in ((x, noisy), (mean, there))
        )

    return constrain


def guided(
    score_fn: ScoreFn,
    log_likelihood: Callable[[jax.Array, jax.Array], jax.Array],
    scale: ArrayLike = 1.0,
) -> ScoreFn:
    """Returns the score of x given y, from the score of x and the likelihood of y (equation 14).

        s(x, t) + scale * grad_x log p_t(y | x)

    Args:
      score_fn: `score_fn(x, t)` or `score_fn(x, sigma)`; the second argument is passed on.
      log_likelihood: `log_likelihood(x, t) -> [B]`, log p_t(y | x_t = x) up to a constant in x: how likely
        the condition is given the noisy x. It must treat examples separately. To give each its own condition,
        `jax.vmap` the sampler; see docs/conditioning.md.
      scale: finite; 1 for the posterior, more for samples that fit the condition better and vary less.

    Returns:
      A score function with the arguments of `score_fn`. It raises ValueError if `log_likelihood` does not
      return `[B]`.
    """

    def score(x, t):
        def total(x):
            value = log_likelihood(x, t)
            if value.shape != x.shape[:1]:
                raise ValueError(
                    f"log_likelihood must return shape {x.shape[:1]} for x {x.shape}, got {value.shape} "
                    "(for a condition per example, see docs/conditioning.md)"
                )
            return jnp.sum(value)

        return score_fn(x, t) + scale * jax.grad(total)(x)

    return score
