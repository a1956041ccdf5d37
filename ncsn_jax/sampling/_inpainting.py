"""Inpainting by annealed Langevin dynamics (NCSN, Algorithm 2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ncsn_jax import _checks as check
from ncsn_jax._random import fold_in, normal_like
from ncsn_jax.errors import show
from ncsn_jax.sampling._langevin import LangevinInfo, annealed_langevin
from ncsn_jax.types import ScoreFn

# Folded into the key for the noise of the observed part; larger than any step's index.
_FOR_OBSERVED = 2**32 - 1

# Whether to impose the observed part before the score, to impose it after the update, and to draw its noise
# for every step instead of every level.
_SCHEMES = {
    "paper": (False, True, False),
    "ncsn": (True, True, False),
    "ncsnv2": (True, False, True),
}


def inpaint(
    key: jax.Array,
    score_fn: ScoreFn,
    x: ArrayLike,
    sigmas: ArrayLike,
    observed: ArrayLike,
    mask: ArrayLike,
    *,
    epsilon: ArrayLike = 2e-5,
    steps_per_level: int = 100,
    denoise: bool = False,
    clip: tuple[float, float] | None = None,
    keep_observed: bool = False,
    scheme: str = "paper",
    return_info: bool = False,
    num_frames: int | None = None,
    steps: tuple[int, int] | None = None,
) -> jax.Array | tuple[jax.Array, LangevinInfo]:
    """Inpaints by annealed Langevin dynamics (NCSN, Algorithm 2).

    It runs `annealed_langevin` and after every update replaces the observed part of x by `observed` plus the
    level's noise,

        x <- mask y_i + (1 - mask) x,    y_i = observed + sigma_i z_i,

    with z_i ~ N(0, I) drawn once per level. Hidden values in `observed` are ignored, even if not finite.

    Args:
      key: as for `annealed_langevin`; the updates use the same noise.
      score_fn: as for `annealed_langevin`.
      x: `[B, ...]`, where the chains start.
      sigmas: `[L]`, the decreasing ladder.
      observed: shaped like x, or broadcastable to x with the same number of axes.
      mask: 1 or True where `observed` was observed, 0 or False where it is hidden; shaped like `observed`,
        or broadcastable in the same way.
      epsilon, steps_per_level: as for `annealed_langevin`.
      denoise: whether to end with x + sigma_L^2 s(x, sigma_L), which also denoises the observed part.
      clip: `(low, high)` to clip x to after every update, or None.
      keep_observed: whether the observed part ends exactly as `observed`; otherwise it has the last level's
        noise, as published.
      scheme: "paper" for Algorithm 2; "ncsn" for the authors' code, which also imposes the level's y
        before the level's first score; "ncsnv2" for their code of 2020, which imposes y before every score
        and not after updates, with fresh noise each time, so the observed part ends one update away from y.
      return_info, num_frames, steps: as for `annealed_langevin`; `keep_observed` acts in the last step.

    Returns:
      The completed samples, `[B, ...]`, or a pair of them and the `LangevinInfo`.

    Raises:
      ValueError: as for `annealed_langevin`, and if `observed` or `mask` has the wrong shape, or the mask
        has other values.
    """
    if scheme not in _SCHEMES:
        raise ValueError(f"scheme must be one of {list(_SCHEMES)}, got {show(scheme)}")
    key, state, _ = check.chains(key, x)
    known = check.broadcast_like("mask", check.mask(mask), state)
    observed = check.broadcast_like("observed", jnp.asarray(observed), state)
    observed = jnp.where(known, observed, 0).astype(state.dtype)
    before, after, every_step = _SCHEMES[scheme]
    noise_key = fold_in(key, _FOR_OBSERVED)

    def constrain(x, step, updated):
        num_updates = len(sigmas) * steps_per_level
        if after if updated else before:
            z = normal_like(fold_in(noise_key, step.index if every_step else step.level), x)
            y = observed + step.sigma * z
            # The denoising comes after all updates and imposes nothing.
            x = jnp.where(step.index < num_updates, jnp.where(known, y, x), x)
        if updated and keep_observed:
            x = jnp.where(known & (step.index == num_updates + denoise - 1), observed, x)
        return x

    return annealed_langevin(
        key,
        score_fn,
        x,
        sigmas,
        epsilon=epsilon,
        steps_per_level=steps_per_level,
        denoise=denoise,
        clip=clip,
        constrain=constrain,
        return_info=return_info,
        num_frames=num_frames,
        steps=steps,
    )
