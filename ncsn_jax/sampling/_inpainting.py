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

# Folded into the key for the noise on what was observed; no chain has so many steps.
_FOR_OBSERVED = 2**32 - 1

# When the observed part is imposed: before the score, after the update; and whether its noise is drawn
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
    """Inpainting by annealed Langevin dynamics (NCSN, Algorithm 2).

    `annealed_langevin`, in which the observed part is replaced after every update by what was observed
    plus noise of the level,

        x <- mask y_i + (1 - mask) x,    y_i = observed + sigma_i z_i,

    with z_i ~ N(0, I) drawn once for every level. What `observed` holds where it is hidden has no
    influence, even if it is not finite.

    Args:
      key: as for `annealed_langevin`, whose noise the updates have.
      score_fn: as for `annealed_langevin`.
      x: `[B, ...]`, where the chains start.
      sigmas: `[L]`, the decreasing ladder.
      observed: shaped like x, or so that it broadcasts to it with as many axes.
      mask: 1 or True where `observed` was observed, 0 or False where it is hidden; shaped like
        `observed`, or so that it broadcasts to x likewise.
      epsilon, steps_per_level: as for `annealed_langevin`.
      denoise: whether to end with x + sigma_L^2 s(x, sigma_L), which takes the noise off the observed
        part as well.
      clip: `(low, high)` to clip x to after every update, or None.
      keep_observed: whether to end with exactly `observed` where it was observed; otherwise that part
        has noise of the last level, as published.
      scheme: "paper" for Algorithm 2; "ncsn" for the authors' code, which imposes the level's y also
        before the level's first score; "ncsnv2" for theirs of 2020, which imposes y before every score
        only, each time with fresh noise, so that the observed part ends one update away from it.
      return_info, num_frames, steps: as for `annealed_langevin`; `keep_observed` belongs to the last
        step.

    Returns:
      The completed samples, `[B, ...]`, or a pair of them and the information.

    Raises:
      ValueError: as for `annealed_langevin`, and if `observed` or `mask` has another shape, or the mask
        other values.
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
            # The denoising, which comes after all updates, imposes nothing.
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
