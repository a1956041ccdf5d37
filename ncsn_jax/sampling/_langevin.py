"""Langevin dynamics, plain and annealed (NCSN, equation 4 and Algorithm 1).

One compiled loop runs over a table with one row per step, including the final denoising. So the program
contains the score network once, and memory does not grow with the number of steps. Nothing here is jitted:
use `jax.jit`, `jax.vmap` or `jax.pmap` as needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ncsn_jax import _checks as check
from ncsn_jax._random import fold_in, normal_like, uniform_like
from ncsn_jax.errors import show
from ncsn_jax.sampling._loop import frame_stops, record_steps, run_steps
from ncsn_jax.types import ScoreFn


class LangevinInfo(NamedTuple):
    """A record of a sampler's steps, for L levels of T steps (L = 1 for `langevin`).

    Attributes:
      samples: `[L, B, ...]`, the samples at the end of every level, before any denoising; or, with
        `num_frames`, `[num_frames, B, ...]`, evenly spaced over all updates, including the last.
      score_norm: `[L, T]`, the mean over the batch of ||s||.
      noise_norm: `[L, T]`, the mean over the batch of ||z||.
      signal_to_noise: `[L, T]`, the mean over the batch of ||(alpha/2) s|| / ||sqrt(alpha) z||,
        which should be about equal at every level (NCSN, section 4.3).
    """

    samples: jax.Array
    score_norm: jax.Array
    noise_norm: jax.Array
    signal_to_noise: jax.Array


class Step(NamedTuple):
    """One step of an annealed chain, or the table of all steps.

    Attributes:
      index: the step's number, from 0; the denoising is step L T.
      level: the index of its sigma in the ladder.
      sigma: sigma_i.
      half_alpha: alpha_i / 2, the factor of the score.
      root_alpha: sqrt(alpha_i), the factor of the noise.
    """

    index: jax.Array
    level: jax.Array
    sigma: jax.Array
    half_alpha: jax.Array
    root_alpha: jax.Array


Constrain = Callable[[jax.Array, Step, bool], jax.Array]
"""`constrain(x, step, updated) -> x`: replaces x before and after each step's update."""


def langevin(
    key: jax.Array,
    score_fn: Callable[[jax.Array], jax.Array],
    x: ArrayLike,
    *,
    step_size: ArrayLike,
    num_steps: int,
    return_info: bool = False,
    num_frames: int | None = None,
) -> jax.Array | tuple[jax.Array, LangevinInfo]:
    """Samples by Langevin dynamics with a fixed step size (NCSN, equation 4).

        x <- x + (step_size / 2) s(x) + sqrt(step_size) z

    This is `annealed_langevin` on a ladder of one level, whose epsilon is the step size.

    Args:
      key: one key, or one per example `[B]`.
      score_fn: `score_fn(x) -> score`, the score shaped like x.
      x: `[B, ...]`, where the chains start.
      step_size: above 0, in units of the data squared.
      num_steps: the number of updates, >= 1.
      return_info: whether to return a `LangevinInfo` too, with L = 1.
      num_frames: the number of frames to keep in it; see `LangevinInfo`.

    Returns:
      `[B, ...]`, or a pair of it and the `LangevinInfo`.

    Raises:
      ValueError: if an argument is out of range.
    """
    step_size = check.positive("step_size", step_size)
    num_steps = check.count("num_steps", num_steps)
    return annealed_langevin(
        key,
        lambda x, _: score_fn(x),
        x,
        jnp.ones(1),
        epsilon=step_size,
        steps_per_level=num_steps,
        return_info=return_info,
        num_frames=num_frames,
    )


def annealed_langevin(
    key: jax.Array,
    score_fn: ScoreFn,
    x: ArrayLike,
    sigmas: ArrayLike,
    *,
    epsilon: ArrayLike = 2e-5,
    steps_per_level: int = 100,
    denoise: bool = False,
    clip: tuple[float, float] | None = None,
    constrain: Constrain | None = None,
    return_info: bool = False,
    num_frames: int | None = None,
    steps: tuple[int, int] | None = None,
) -> jax.Array | tuple[jax.Array, LangevinInfo]:
    """Samples by annealed Langevin dynamics (NCSN, Algorithm 1).

    Runs `steps_per_level` updates at every level i, from the largest sigma to the smallest:

        x <- x + (alpha_i / 2) s(x, sigma_i) + sqrt(alpha_i) z,    z ~ N(0, I),
        alpha_i = epsilon * sigma_i^2 / sigma_L^2.

    The authors' code defines the step size differently: x + a s + sqrt(2 a) z with
    a_i = step_lr * sigma_i^2 / sigma_L^2. So epsilon = 2 * step_lr, and the published runs (step_lr = 2e-5)
    are `epsilon=4e-5`.

    To choose epsilon for your own ladder, measure x in units of sigma_i. Where the data are narrower than
    sigma_i, a step is x - e x + sqrt(2 e) z at every level, with e = epsilon / (2 sigma_L^2). So epsilon
    scales with sigma_L^2, in any units of the data. T steps leave (1 - e)^T of the previous level, so e
    must not be too small. But the steps end with 1 / (1 - e / 2) times the level's variance, and diverge from
    e = 2 on, epsilon = 4 sigma_L^2. `ncsn_jax.sigmas.step_size(sigma_L, sigma_1 / sigma_2, T)[0]` balances
    the two: 6.5e-6 for the published ladder. The published runs take six times as much, e = 0.2, and end
    with a variance 11 % above that of the last level's noise. Data wider than sigma_L mix more slowly than
    this analysis assumes. For them, use the same e = 0.2, epsilon = 0.4 sigma_L^2. For three modes of
    standard deviation 0.3, with sigma_L = 0.1 and T = 100, the balancing epsilon got the weights wrong by up
    to 0.023 and the modes 5 % too wide; epsilon = 0.4 sigma_L^2 by 0.011 and 1 %.

    Args:
      key: one key, or one per example `[B]`, from `jax.random.key` or `jax.random.PRNGKey`. With one per
        example, the noise of example i depends on its key alone, not on its batch. Step k uses
        `fold_in(key, k)`.
      score_fn: `score_fn(x, sigma) -> score`, with x `[B, ...]`, sigma `[B]`, the score like x.
      x: `[B, ...]`, where the chains start; see `initial_samples`. The chains, and the x passed to `score_fn`
        and `constrain`, are float32, or float64 for float64 x. The result has the type of x.
      sigmas: `[L]`, the decreasing ladder; see `ncsn_jax.sigmas.geometric`.
      epsilon: above 0, the step size at the last level, in units of the data squared; see above.
      steps_per_level: T, the updates per level, >= 1.
      denoise: whether to end with x + sigma_L^2 s(x, sigma_L), the expected clean data given x
        (Jolicoeur-Martineau et al., 2020, and NCSNv2, section 3.4).
      clip: `(low, high)` to clip x to after every update, or None, as published.
      constrain: `constrain(x, step, updated) -> x`, which replaces x twice in every step: before the score
        (`updated` is False) and after the update and the clipping (True). `step` is a `Step`, whose
        index is L T for the denoising. See `inpaint`.
      return_info: whether to return a `LangevinInfo` too. This keeps L extra copies of x, or `num_frames`.
      num_frames: the number of frames to keep in it, from 1 to L T; see `LangevinInfo`.
      steps: `(start, stop)`, to run only some of the L T steps (one more with `denoise`), with
        0 <= start <= stop <= their number. Successive calls, each on the last result and with the same key,
        equal one call. Each call rounds its result to the type of x, so in half precision they differ.
        Both bounds may be traced, so that one compiled program serves every part, but without
        reverse-mode differentiation. Not with `return_info`.

    Returns:
      The samples, `[B, ...]`, or a pair of them and the `LangevinInfo`.

    Raises:
      ValueError: if an argument is out of range or the ladder does not decrease. Traced values are not
        checked.

    Example:
      >>> import jax
      >>> from ncsn_jax.sampling import annealed_langevin
      >>> from ncsn_jax.sigmas import geometric
      >>> score_fn = lambda x, sigma: -x / (1 + sigma[:, None] ** 2)  # the data are N(0, 1)
      >>> sigmas = geometric(10.0, 0.1, 10)
      >>> x = jax.random.uniform(jax.random.key(0), (1000, 2), minval=-8, maxval=8)
      >>> x = annealed_langevin(jax.random.key(1), score_fn, x, sigmas, epsilon=2e-3)
      >>> 0.9 < float(x.std()) < 1.1
      True
    """
    key, x, dtype = check.chains(key, x)
    clip = clip if clip is None else check.interval("clip", clip)
    epsilon = check.positive("epsilon", epsilon)
    sigmas = check.ladder(sigmas, x.dtype)
    most = check.MAX_COUNT // sigmas.shape[0]
    steps_per_level = check.count("steps_per_level", steps_per_level, most=most)
    check.frames(num_frames, return_info, sigmas.shape[0] * steps_per_level)
    if steps is not None and return_info:
        raise ValueError("steps cannot be combined with return_info=True")
    table = _table(sigmas, epsilon, steps_per_level, denoise, x.dtype)

    def update(x, step):
        if constrain is not None:
            x = constrain(x, step, False).astype(x.dtype)
        s = check.score(x, score_fn(x, jnp.broadcast_to(step.sigma, x.shape[:1])))
        x, z = langevin_update(fold_in(key, step.index), x, s, step.half_alpha, step.root_alpha)
        if clip is not None:
            x = jnp.clip(x, *clip)
        if constrain is not None:
            x = constrain(x, step, True).astype(x.dtype)
        return x, _norms(s, z, step)

    if not return_info:
        part = check.part(steps, table.index.shape[0])
        return run_steps(lambda x, step: update(x, step)[0], x, table, part).astype(dtype)
    shape = sigmas.shape[0], steps_per_level
    updates = math.prod(shape)
    kept = frame_stops(updates, shape[0] if num_frames is None else num_frames)
    x, samples, norms = record_steps(update, x, table, kept)
    x, samples = x.astype(dtype), samples.astype(dtype)
    return x, LangevinInfo(samples, *(a[:updates].reshape(shape) for a in norms))


def langevin_update(
    key: jax.Array, x: jax.Array, score: jax.Array, half_alpha: jax.Array, root_alpha: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the update of Algorithm 1, x + (alpha / 2) s + sqrt(alpha) z, and z ~ N(0, I)."""
    z = normal_like(key, x)
    half_alpha, root_alpha = half_alpha.astype(x.dtype), root_alpha.astype(x.dtype)
    return x + half_alpha * score.astype(x.dtype) + root_alpha * z, z


def annealed_steps(
    sigmas: jax.Array, epsilon: float, dtype=jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """Returns alpha_i / 2 and sqrt(alpha_i) of Algorithm 1, alpha_i = epsilon sigma_i^2 / sigma_L^2.

    Args:
      sigmas: `[L]`, the ladder.
      epsilon: the step size at the last level.
      dtype: the result's type.

    Returns:
      (alpha / 2, sqrt(alpha)), each `[L]`.
    """
    sigmas, epsilon = jnp.asarray(sigmas, dtype), jnp.asarray(epsilon, dtype)
    ratio = sigmas / sigmas[-1]
    return 0.5 * epsilon * jnp.square(ratio), jnp.sqrt(epsilon) * ratio


def _table(sigmas, epsilon, steps_per_level: int, denoise: bool, dtype) -> Step:
    """Returns all steps of an annealed chain; the denoising is a step without noise."""
    levels = sigmas.shape[0]
    each = (jnp.arange(levels), sigmas, *annealed_steps(sigmas, epsilon, dtype))
    table = Step(
        jnp.arange(levels * steps_per_level), *(jnp.repeat(a, steps_per_level) for a in each)
    )
    if denoise:
        last = Step(table.index[-1] + 1, levels - 1, sigmas[-1], jnp.square(sigmas[-1]), 0.0)
        table = jax.tree.map(lambda a, b: jnp.append(a, jnp.asarray(b, a.dtype)), table, last)
    return table


def _norms(s: jax.Array, z: jax.Array, step: Step) -> tuple[jax.Array, ...]:
    """Returns one step's batch means for `LangevinInfo`."""

    def norm(x):
        total = jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))
        return jnp.sqrt(jnp.maximum(total, jnp.finfo(x.dtype).tiny))  # differentiable at 0

    score_norm, noise_norm = norm(s), norm(z)
    # The denoising has no noise. Its ratio is discarded, but a division by 0 would spoil derivatives.
    root_alpha = jnp.where(step.root_alpha > 0, step.root_alpha, 1)
    ratio = (step.half_alpha * score_norm) / (root_alpha * noise_norm)
    return tuple(jnp.mean(a) for a in (score_norm, noise_norm, ratio))


def initial_samples(
    key: jax.Array,
    shape: tuple[int, ...],
    init: str = "uniform",
    *,
    scale: ArrayLike = 1.0,
    data: ArrayLike | None = None,
) -> jax.Array:
    """Draws the points where the chains start.

    Args:
      key: one key, or one per example `[B]`.
      shape: `(B, ...)`.
      init: "uniform" for U[0, 1), as published for NCSN; "normal" for N(0, scale^2);
        "centred_normal" for N(1/2, scale^2), which is centred on images in [0, 1]; "data" for
        `data` plus N(0, scale^2), the distribution that chains should reach at that sigma.
      scale: the standard deviation of the normals, usually the largest sigma.
      data: of the given shape, for "data" only.

    Returns:
      float32 of the given shape.

    Raises:
      ValueError: if `init` is not one of the above, or `data` does not match it.
    """
    shape = check.batch_shape(shape)
    key = check.keys(key, shape[0])
    if (data is not None) != (init == "data") or (data is not None and np.shape(data) != shape):
        raise ValueError(
            f"data must have shape {shape} for init='data' and be None otherwise, got "
            f"{None if data is None else np.shape(data)} for init={show(init)}"
        )
    like = jnp.zeros(shape, jnp.float32)
    if init == "uniform":
        return uniform_like(key, like)
    centres = {"normal": 0.0, "centred_normal": 0.5, "data": data}
    if init not in centres:
        raise ValueError(f"init must be one of {['uniform', *centres]}, got {show(init)}")
    return centres[init] + check.as_float("scale", scale) * normal_like(key, like)
