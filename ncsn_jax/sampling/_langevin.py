r"""Langevin dynamics: plain, annealed and for inpainting, compiled as one `jax.lax.scan`.

All samplers run the same recursion over a table of steps, each with its own sigma, drift coefficient
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

from ncsn_jax._random import check_batch, check_key, fold_in, normal_like, uniform_like
from ncsn_jax.errors import show
from ncsn_jax.sampling._loop import check_part, check_score, run_steps
from ncsn_jax.sigmas import as_float
from ncsn_jax.types import ScoreFn

# Folded into the key for the noise on what was observed; no chain has so many steps.
_FOR_OBSERVED = 2**32 - 1


# The tables of so many steps take gigabytes.
_MAX_STEPS = 10**8


class LangevinInfo(NamedTuple):
    """What a sampler saw on its way, for L levels of T steps (L = 1 for `langevin`).

    Attributes:
      samples: `[L, B, ...]`, the samples at the end of every level, before any denoising; or, if
        `num_frames` was given, `[num_frames, B, ...]`, evenly spread over all updates, the last one
        included.
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
    level: jax.Array
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
    num_frames: int | None = None,
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
      num_frames: the number of samples to keep for it along the way; see `LangevinInfo`.

    Returns:
      `[B, ...]`, or a pair of it and the information.

    Raises:
      ValueError: if an argument is out of range.
    """
    check_batch("x", x)
    _check_positive("step_size", step_size)
    check_count("num_steps", num_steps)
    steps = _Step(
        index=jnp.arange(num_steps),
        level=jnp.zeros(num_steps, int),
        sigma=jnp.zeros(num_steps, x.dtype),
        drift=jnp.broadcast_to(jnp.asarray(0.5 * step_size, x.dtype), num_steps),
        noise=jnp.broadcast_to(jnp.sqrt(jnp.asarray(step_size, x.dtype)), num_steps),
    )
    record = _make_record(1, num_steps, return_info, num_frames)
    return _run(key, lambda x, _: score_fn(x), x, steps, record)


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
    num_frames: int | None = None,
    steps: tuple[int, int] | None = None,
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
      return_info: whether to return a `LangevinInfo` as well. This keeps L extra copies of x, or
        `num_frames` of them.
      num_frames: the number of samples to keep for it along the way, from 1 to L T; see
        `LangevinInfo`.
      steps: `(start, stop)`, to run a part of the steps only and come back: they are counted from 0 to
        L T, the denoising being one more, and 0 <= start <= stop <= their number. Calls that follow one
        another on what the last one returned, with the same key, do the same as one call. Both may be
        traced, so that one compiled program serves every part; reverse-mode differentiation is not
        possible then. Not together with `return_info`.

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
    sigmas, table = _anneal(x, sigmas, epsilon, steps_per_level, denoise)
    record = _make_record(sigmas.shape[0], steps_per_level, return_info, num_frames)
    return _run(key, score_fn, x, table, record, clip=_check_clip(clip), part=steps)


# How the observed part is imposed: whether before the score, whether after the update, and whether with
# fresh noise for every step instead of every level.
_SCHEMES = {
    "paper": (False, True, False),
    "ncsn": (True, True, False),
    "ncsnv2": (True, False, True),
}


def inpaint(
    key: jax.Array,
    score_fn: ScoreFn,
    x: jax.Array,
    sigmas: jax.Array,
    observed: jax.Array,
    mask: jax.Array,
    *,
    epsilon: float = 2e-5,
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
    plus noise of the level, y_i = observed + sigma_i z_i, drawn once for every level. What `observed`
    holds where it is hidden has no influence, even if it is not finite.

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
    check_key(key, check_batch("x", x))
    observed, known = (
        broadcast_like(name, jnp.asarray(a), x)
        for name, a in (("observed", observed), ("mask", check_mask(mask)))
    )
    observed = jnp.where(known, observed, 0).astype(x.dtype)
    before, after, every_step = _SCHEMES[scheme]
    sigmas, table = _anneal(x, sigmas, epsilon, steps_per_level, denoise)
    noise_key = fold_in(key, _FOR_OBSERVED)

    def impose(x, step):
        z = normal_like(fold_in(noise_key, step.index if every_step else step.level), x)
        return jnp.where(known, observed + step.sigma.astype(x.dtype) * z, x)

    num_updates = sigmas.shape[0] * steps_per_level
    last = num_updates + int(denoise) - 1

    def finish(x, step):
        if after:
            # The denoising is no update.
            x = jnp.where(step.index < num_updates, impose(x, step), x)
        if keep_observed:
            x = jnp.where(known & (step.index == last), observed, x)
        return x

    def start(x, step):
        return jnp.where(step.index < num_updates, impose(x, step), x) if before else x

    record = _make_record(sigmas.shape[0], steps_per_level, return_info, num_frames)
    clip = _check_clip(clip)
    return _run(key, score_fn, x, table, record, clip=clip, part=steps, start=start, finish=finish)


def initial_samples(
    key: jax.Array,
    shape: tuple[int, ...],
    init: str = "uniform",
    *,
    scale: float = 1.0,
    data: jax.Array | None = None,
) -> jax.Array:
    """Draws the points where the chains start.

    Args:
      key: one key, or one per example `[B]`.
      shape: `(B, ...)`.
      init: "uniform" for U[0, 1), as published for NCSN; "normal" for N(0, scale^2);
        "centred_normal" for N(1/2, scale^2), which is centred on images in [0, 1]; "data" for
        `data` plus N(0, scale^2), which is what the chains should have reached at that sigma.
      scale: the standard deviation of the normal ones, usually the largest sigma.
      data: of the given shape, for "data" only.

    Returns:
      float32 of the given shape.

    Raises:
      ValueError: if `init` is not one of the above, or `data` does not go with it.
    """
    sound = isinstance(shape, tuple | list) and len(shape) > 0
    if not (sound and all(isinstance(n, (int, np.integer)) and n >= 0 for n in shape)):
        raise ValueError(f"shape must be (B, ...), got {show(shape)}")
    shape = tuple(shape)
    check_key(key, shape[0])
    if (data is not None) != (init == "data") or (data is not None and np.shape(data) != shape):
        raise ValueError(
            f"data of shape {tuple(shape)} is needed for init='data' and for nothing else, got "
            f"init={show(init)} and {None if data is None else np.shape(data)}"
        )
    like = jnp.zeros(shape, jnp.float32)
    if init == "uniform":
        return uniform_like(key, like)
    centres = {"normal": 0.0, "centred_normal": 0.5, "data": data}
    if init not in centres:
        raise ValueError(
            f"init must be 'uniform', {', '.join(map(repr, centres))}, got {show(init)}"
        )
    if not _is_traced(scale):
        scale = as_float("scale", scale)
    return centres[init] + scale * normal_like(key, like)


def annealed_steps(
    sigmas: jax.Array, epsilon: float, dtype=jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """Returns the coefficients of the updates at every level, alpha_i / 2 and sqrt(alpha_i).

    Args:
      sigmas: `[L]`, the ladder.
      epsilon: the step size at the last level.
      dtype: of the result.

    Returns:
      (drift, noise), each `[L]`.
    """
    ratio = (sigmas / sigmas[-1]).astype(dtype)
    return 0.5 * epsilon * jnp.square(ratio), jnp.sqrt(jnp.asarray(epsilon, dtype)) * ratio


def langevin_update(
    key: jax.Array, x: jax.Array, score: jax.Array, drift: jax.Array, noise: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns x + drift * score + noise * z and z ~ N(0, I): the one update of all samplers here."""
    z = normal_like(key, x)
    drift, noise = drift.astype(x.dtype), noise.astype(x.dtype)
    return x + drift * score.astype(x.dtype) + noise * z, z


class _Record(NamedTuple):
    """What to keep of a trajectory of `levels * steps_per_level` updates.

    Attributes:
      levels, steps_per_level: L and T.
      slots: `[updates + 1]`, where the samples after each update go; `count` for nowhere, as the
        denoising does.
      count: the number of samples kept.
    """

    levels: int
    steps_per_level: int
    slots: np.ndarray
    count: int


def frame_stops(total: int, count: int) -> np.ndarray:
    """Returns after how many of `total` steps each of `count` evenly spread frames is taken."""
    return -(-total * np.arange(1, count + 1) // count)


def _make_record(
    levels: int, steps_per_level: int, return_info: bool, num_frames: int | None
) -> _Record | None:
    total = levels * steps_per_level
    if num_frames is None:
        kept = np.arange(1, levels + 1) * steps_per_level - 1
    else:
        if not return_info:
            raise ValueError("num_frames needs return_info=True, which returns the frames")
        check_count("num_frames", num_frames)
        if num_frames > total:
            raise ValueError(f"num_frames must be at most the {total} updates, got {num_frames}")
        kept = frame_stops(total, num_frames) - 1
    if not return_info:
        return None
    slots = np.full(total + 1, len(kept))
    slots[kept] = np.arange(len(kept))
    return _Record(levels, steps_per_level, slots, len(kept))


def _anneal(x, sigmas, epsilon, steps_per_level, denoise) -> tuple[jax.Array, _Step]:
    """Checks the arguments of an annealed chain and returns its ladder and table of steps."""
    check_batch("x", x)
    _check_positive("epsilon", epsilon)
    check_count("steps_per_level", steps_per_level)
    sigmas = jnp.asarray(sigmas)
    check_ladder(sigmas)
    drift, noise = annealed_steps(sigmas, epsilon, x.dtype)
    levels = sigmas.shape[0]
    if levels * steps_per_level > _MAX_STEPS:
        raise ValueError(
            f"steps_per_level must be at most {_MAX_STEPS // levels} for {levels} levels, "
            f"got {steps_per_level}"
        )
    steps = _Step(
        index=jnp.arange(levels * steps_per_level),
        level=jnp.repeat(jnp.arange(levels), steps_per_level),
        sigma=jnp.repeat(sigmas, steps_per_level),
        drift=jnp.repeat(drift, steps_per_level),
        noise=jnp.repeat(noise, steps_per_level),
    )
    if denoise:
        last = _Step(steps.index[-1] + 1, levels - 1, sigmas[-1], jnp.square(sigmas[-1]), 0.0)
        steps = jax.tree.map(lambda a, b: jnp.append(a, jnp.asarray(b, a.dtype)), steps, last)
    return sigmas, steps


def _run(key, score_fn, x, steps, record, *, clip=None, part=None, start=None, finish=None):
    """Runs the table of steps, or a part of it.

    `start(x, step)` and `finish(x, step)` change x before the score and after the update.
    """
    batch = check_batch("x", x)
    check_key(key, batch)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating point, got {x.dtype}")
    samples = None if record is None else jnp.zeros((record.count, *x.shape), x.dtype)

    def update(carry, step):
        x, samples = carry
        if start is not None:
            x = start(x, step)
        score = check_score(x, score_fn(x, jnp.broadcast_to(step.sigma, (batch,))))
        x, z = langevin_update(fold_in(key, step.index), x, score, step.drift, step.noise)
        if clip is not None:
            x = jnp.clip(x, *clip)
        if finish is not None:
            x = finish(x, step)
        if record is None:
            return (x, None), None
        # Writes beyond the end are dropped.
        samples = samples.at[jnp.asarray(record.slots)[step.index]].set(x, mode="drop")
        score_norm, noise_norm = _norms(score), _norms(z)
        # The denoising has no noise; its ratio is not returned, but must not spoil derivatives.
        noise = jnp.where(step.noise > 0, step.noise, 1)
        ratio = (step.drift * score_norm) / (noise * noise_norm)
        return (x, samples), tuple(jnp.mean(a) for a in (score_norm, noise_norm, ratio))

    if part is not None:
        if record is not None:
            raise ValueError("steps and return_info exclude each other")
        part = check_part(part, steps.index.shape[0])
        return run_steps(lambda x, step: update((x, None), step)[0][0], x, steps, part)
    (x, samples), norms = jax.lax.scan(update, (x, samples), steps)
    if record is None:
        return x
    table = (record.levels, record.steps_per_level)
    norms = (a[: record.levels * record.steps_per_level].reshape(table) for a in norms)
    return x, LangevinInfo(samples, *norms)


def _norms(x: jax.Array) -> jax.Array:
    total = jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))
    return jnp.sqrt(jnp.maximum(total, jnp.finfo(x.dtype).tiny))  # differentiable at 0


def _is_traced(value) -> bool:
    return isinstance(value, jax.core.Tracer)


def _check_positive(name: str, value) -> None:
    if not _is_traced(value) and not (np.ndim(value) == 0 and np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be one number > 0, got {show(value)}")


def check_count(name: str, value) -> None:
    """Raises ValueError unless a value is an integer >= 1 for which tables have room."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not (whole and 1 <= value <= _MAX_STEPS):
        raise ValueError(f"{name} must be an integer >= 1, {_MAX_STEPS} at most, got {show(value)}")


def _check_clip(clip):
    if clip is None or (isinstance(clip, tuple | list) and any(map(_is_traced, clip))):
        return clip
    try:
        low, high = (float(bound) for bound in clip)
        sound = low < high
    except (TypeError, ValueError, OverflowError):
        sound = False
    if not sound:
        raise ValueError(f"clip must be None or (low, high) with low < high, got {show(clip)}")
    return low, high


def check_mask(mask) -> jax.Array:
    """Returns a mask as booleans."""
    mask = jnp.asarray(mask)
    if not _is_traced(mask) and not np.isin(np.asarray(mask), (0, 1)).all():
        raise ValueError("mask must be 1 or True where observed, and 0 or False elsewhere, only")
    return mask.astype(bool)


def broadcast_like(name: str, array: jax.Array, x: jax.Array) -> jax.Array:
    """Broadcasts an array to the shape of x; both must have as many axes."""
    if array.ndim != x.ndim or any(
        a not in (1, b) for a, b in zip(array.shape, x.shape, strict=True)
    ):
        raise ValueError(
            f"{name} must have the shape of x, {x.shape}, or 1 in place of a number there, "
            f"got {array.shape}"
        )
    return jnp.broadcast_to(array, x.shape)


def check_ladder(sigmas: jax.Array) -> None:
    """Raises ValueError unless sigmas are a ladder, `[L]`, as far as its values are known."""
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
