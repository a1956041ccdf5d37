r"""Langevin dynamics: plain and annealed, compiled as one `jax.lax.scan`.

Both samplers run the same recursion over a table of steps, each with its own sigma, drift coefficient
and noise coefficient,

    x <- x + drift * s(x, sigma) + noise * z,    z ~ N(0, I)

so that the score network occurs once in the compiled program whatever the number of levels and steps,
the final denoising included, and memory does not grow with their number. They never jit for the
caller: wrap them in `jax.jit`, `jax.vmap` or `jax.pmap` as needed.

On step sizes: Algorithm 1 of the paper, and this module, write x + (alpha/2) s + sqrt(alpha) z with
alpha_i = epsilon * sigma_i^2 / sigma_L^2. The authors' released code writes x + a s + sqrt(2 a) z with
a_i = step_lr * sigma_i^2 / sigma_L^2. The two are the same process for epsilon = 2 * step_lr: their
step_lr of 2e-5 is `epsilon=4e-5` here.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax._random import check_key, fold_in, normal_like, uniform_like
from ncsn_jax.types import ScoreFn


class LangevinInfo(NamedTuple):
    """What a sampler saw on its way, for L levels of T steps (L = 1 for `langevin`).

    Attributes:
      samples: `[L, B, ...]`, the samples at the end of every level, before any denoising.
      score_norm: `[L, T]`, the mean over the batch of ||s||.
      noise_norm: `[L, T]`, the mean over the batch of ||z||.
      signal_to_noise: `[L, T]`, the mean over the batch of ||(alpha/2) s|| / ||sqrt(alpha) z||,
        which NCSN (section 4.3) wants to be of the same size at every level.
    """

    samples: jax.Array
    score_norm: jax.Array
    noise_norm: jax.Array
    signal_to_noise: jax.Array


class _Step(NamedTuple):
    """The table of steps: every field is `[number of steps]`."""

    index: jax.Array
    sigma: jax.Array
    drift: jax.Array
    noise: jax.Array


def langevin(
    key: jax.Array,
    score_fn: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    *,
    step_size: float,
    num_steps: int,
    return_info: bool = False,
) -> jax.Array | tuple[jax.Array, LangevinInfo]:
    """Langevin dynamics with a fixed step size (NCSN, equation 4).

        x <- x + (step_size / 2) s(x) + sqrt(step_size) z

    Args:
      key: one key, or one per example `[B]`.
      score_fn: `score_fn(x) -> score`, the score shaped like x.
      x: `[B, ...]`, where the chains start.
      step_size: > 0, in units of the data squared.
      num_steps: the number of updates, >= 1.
      return_info: whether to return a `LangevinInfo`, with L = 1, as well.

    Returns:
      `[B, ...]`, or a pair of it and the information.

    Raises:
      ValueError: if an argument is out of range.
    """
    _check_positive("step_size", step_size)
    _check_count("num_steps", num_steps)
    steps = _Step(
        index=jnp.arange(num_steps),
        sigma=jnp.zeros(num_steps, x.dtype),
        drift=jnp.broadcast_to(jnp.asarray(0.5 * step_size, x.dtype), num_steps),
        noise=jnp.broadcast_to(jnp.sqrt(jnp.asarray(step_size, x.dtype)), num_steps),
    )
    return _run(key, lambda x, _: score_fn(x), x, steps, 1, num_steps, None, return_info)


def annealed_langevin(
    key: jax.Array,
    score_fn: ScoreFn,
    x: jax.Array,
    sigmas: jax.Array,
    *,
    epsilon: float = 2e-5,
    steps_per_level: int = 100,
    denoise: bool = False,
    clip: tuple[float, float] | None = None,
    return_info: bool = False,
) -> jax.Array | tuple[jax.Array, LangevinInfo]:
    """Annealed Langevin dynamics (NCSN, Algorithm 1).

    For every level i from the largest sigma to the smallest, `steps_per_level` updates

        x <- x + (alpha_i / 2) s(x, sigma_i) + sqrt(alpha_i) z,
        alpha_i = epsilon * sigma_i^2 / sigma_L^2.

    Differs from the authors' code in the meaning of the step size: their step_lr is epsilon / 2, so
    that the published runs (step_lr = 2e-5) are `epsilon=4e-5`.

    Args:
      key: one key, or one per example `[B]`. With one per example, the noise of example i depends on
        its key alone, not on the batch that it is in. Step k uses `fold_in(key, k)`.
      score_fn: `score_fn(x, sigma) -> score`, with x `[B, ...]`, sigma `[B]`, the score like x.
      x: `[B, ...]`, where the chains start; see `initial_samples`.
      sigmas: `[L]`, the decreasing ladder; see `ncsn_jax.sigmas.geometric`.
      epsilon: > 0, the step size at the last level, in units of the data squared.
      steps_per_level: the number T of updates on every level, >= 1.
      denoise: whether to end with x + sigma_L^2 s(x, sigma_L), the expected clean data given x
        (Jolicoeur-Martineau et al., 2020, and NCSNv2, section 3.4).
      clip: `(low, high)` to clip x to after every update, or None, as published.
      return_info: whether to return a `LangevinInfo` as well. This keeps L extra copies of x.

    Returns:
      The samples, `[B, ...]`, or a pair of them and the information.

    Raises:
      ValueError: if an argument is out of range or the ladder does not decrease. Values that are
        traced are not looked at.

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
    _check_positive("epsilon", epsilon)
    _check_count("steps_per_level", steps_per_level)
    sigmas = jnp.asarray(sigmas)
    _check_ladder(sigmas)
    if clip is not None and not (len(clip) == 2 and clip[0] < clip[1]):
        raise ValueError(f"clip must be None or (low, high) with low < high, got {clip!r}")

    ratio = (sigmas / sigmas[-1]).astype(x.dtype)
    steps = _Step(
        index=jnp.arange(sigmas.shape[0] * steps_per_level),
        sigma=jnp.repeat(sigmas, steps_per_level),
        drift=jnp.repeat(0.5 * epsilon * jnp.square(ratio), steps_per_level),
        noise=jnp.repeat(jnp.sqrt(jnp.asarray(epsilon, x.dtype)) * ratio, steps_per_level),
    )
    if denoise:
        last = _Step(steps.index[-1] + 1, sigmas[-1], jnp.square(sigmas[-1]), 0.0)
        steps = jax.tree.map(lambda a, b: jnp.append(a, jnp.asarray(b, a.dtype)), steps, last)
    return _run(key, score_fn, x, steps, sigmas.shape[0], steps_per_level, clip, return_info)


def initial_samples(
    key: jax.Array, shape: tuple[int, ...], init: str = "uniform", *, scale: float = 1.0
) -> jax.Array:
    """Draws the points where the chains start.

    Args:
      key: one key, or one per example `[B]`.
      shape: `(B, ...)`.
      init: "uniform" for U[0, 1), as published for NCSN; "normal" for N(0, scale^2);
        "centred_normal" for N(1/2, scale^2), which is centred on images in [0, 1].
      scale: the standard deviation of the normal ones, usually the largest sigma.

    Returns:
      float32 of the given shape.

    Raises:
      ValueError: if `init` is not one of the above.
    """
    like = jnp.zeros(shape, jnp.float32)
    check_key(key, shape[0])
    if init == "uniform":
        return uniform_like(key, like)
    if init == "normal":
        return scale * normal_like(key, like)
    if init == "centred_normal":
        return 0.5 + scale * normal_like(key, like)
    raise ValueError(f"init must be 'uniform', 'normal' or 'centred_normal', got {init!r}")


def _run(key, score_fn, x, steps, num_levels, steps_per_level, clip, return_info):
    """Scans over the table of steps; rows beyond `num_levels * steps_per_level` are not recorded."""
    batch = x.shape[0]
    check_key(key, batch)

    def update(carry, step):
        x, samples = carry
        score = score_fn(x, jnp.broadcast_to(step.sigma, (batch,)))
        if score.shape != x.shape:
            raise ValueError(f"score_fn must return the shape of x, {x.shape}, got {score.shape}")
        z = normal_like(fold_in(key, step.index), x)
        drift, noise = step.drift.astype(x.dtype), step.noise.astype(x.dtype)
        x = x + drift * score.astype(x.dtype) + noise * z
        if clip is not None:
            x = jnp.clip(x, *clip)
        if not return_info:
            return (x, samples), None
        # Out-of-range writes are dropped: the denoised x does not replace the last level's samples.
        samples = samples.at[step.index // steps_per_level].set(x, mode="drop")
        score_norm, noise_norm = _norms(score), _norms(z)
        ratio = (drift * score_norm) / (noise * noise_norm)
        return (x, samples), tuple(jnp.mean(a) for a in (score_norm, noise_norm, ratio))

    samples = jnp.zeros((num_levels, *x.shape), x.dtype) if return_info else None
    (x, samples), norms = jax.lax.scan(update, (x, samples), steps)
    if not return_info:
        return x
    table = (num_levels, steps_per_level)
    norms = (a[: num_levels * steps_per_level].reshape(table) for a in norms)
    return x, LangevinInfo(samples, *norms)


def _norms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim))))


def _is_traced(value) -> bool:
    return isinstance(value, jax.core.Tracer)


def _check_positive(name: str, value) -> None:
    if not _is_traced(value) and not (np.ndim(value) == 0 and np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be one number > 0, got {value}")


def _check_count(name: str, value) -> None:
    if not (isinstance(value, (int, np.integer)) and value >= 1):
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


def _check_ladder(sigmas: jax.Array) -> None:
    if sigmas.ndim != 1 or sigmas.shape[0] < 1:
        raise ValueError(f"sigmas must have shape [L] with L >= 1, got {sigmas.shape}")
    if _is_traced(sigmas):
        return
    values = np.asarray(sigmas)
    if not (np.all(np.isfinite(values)) and np.all(values > 0) and np.all(np.diff(values) < 0)):
        raise ValueError(
            "sigmas must be positive and decrease from the first to the last, "
            f"got {values[0]} ... {values[-1]} ({len(values)} levels)"
        )
