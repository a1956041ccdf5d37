"""Every check of arguments that more than one module makes, once.

A check raises ValueError with one line: the argument's name, what was found and what is allowed. Some return
the argument in the form that the caller needs. Values that JAX traces are not known yet and pass.
"""

import math
import operator

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax.errors import show

MAX_FLOAT = 3.4e38  # the largest float32, about
MAX_COUNT = 10**8  # tables of more steps take gigabytes
MAX_LEVELS = 1_000_000  # more than any ladder or chain has


def is_traced(value) -> bool:
    """Whether a value is known only when the compiled program runs."""
    return isinstance(value, jax.core.Tracer)


# Numbers


def as_float(name: str, value: float) -> float:
    """Returns a number as a float, infinite if it is too large."""
    try:
        if np.ndim(value) == 0:
            return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name} must be a number, got {show(value)}")


def check_finite(name: str, value) -> None:
    """Refuses a number that is infinite or not a number."""
    if not is_traced(value) and not math.isfinite(as_float(name, value)):
        raise ValueError(f"{name} must be finite, got {show(value)}")


def check_positive(name: str, value) -> None:
    """Refuses anything but one finite number > 0."""
    if not is_traced(value) and not (np.ndim(value) == 0 and 0 < as_float(name, value) < math.inf):
        raise ValueError(f"{name} must be one number > 0, got {show(value)}")


def check_number(name: str, value) -> None:
    """Refuses anything but a plain number > 0 for which float32 has room."""
    if not _is_number(value):
        raise ValueError(f"{name} must be a number > 0, got {show(value)}")


def check_fraction(name: str, value) -> None:
    """Refuses anything but a number in (0, 1)."""
    if not is_traced(value) and not 0 < as_float(name, value) < 1:
        raise ValueError(f"{name} must be in (0, 1), got {show(value)}")


def check_count(name: str, value, least: int = 1, most: int = MAX_COUNT) -> None:
    """Refuses anything but an integer from `least` to `most`."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not (whole and least <= value <= most):
        raise ValueError(f"{name} must be an integer >= {least}, {most} at most, got {show(value)}")


def _is_number(value) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    return float(np.finfo(np.float32).tiny) <= value <= MAX_FLOAT


# Keys and arrays of examples


def check_key(key: jax.Array, batch_size: int) -> None:
    """Raises unless `key` is one typed key or `batch_size` of them; TypeError if it is no key."""
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        found = getattr(key, "dtype", type(key).__name__)
        raise TypeError(
            f"key must be made by jax.random.key, got {found} "
            "(jax.random.wrap_key_data makes one of a jax.random.PRNGKey)"
        )
    if key.shape not in ((), (batch_size,)):
        raise ValueError(f"key must have shape () or ({batch_size},), got {key.shape}")


def check_batch(name: str, x: jax.Array) -> int:
    """Returns B of an array `[B, ...]`."""
    if not getattr(x, "shape", ()):
        raise ValueError(f"{name} must be an array [B, ...], got {show(x)}")
    return x.shape[0]


def check_floating(name: str, x: jax.Array) -> None:
    """Refuses an array of anything but floating-point numbers."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating point, got {x.dtype}")


def check_chains(key: jax.Array, x: jax.Array) -> int:
    """Returns B of floating-point x `[B, ...]`, where chains start, with one key or `[B]` of them."""
    batch_size = check_batch("x", x)
    check_key(key, batch_size)
    check_floating("x", x)
    return batch_size


def check_state(name: str, x: jax.Array) -> jax.Array:
    """Returns floating-point x `[B, ...]`, which must have elements, in JAX's default precision."""
    check_batch(name, x)
    x = jnp.asarray(x)
    check_floating(name, x)
    if not x.size:
        raise ValueError(f"{name} must have elements, got shape {x.shape}")
    return x.astype(float)


def check_each(name: str, x: jax.Array, value: jax.Array) -> jax.Array:
    """Returns a value for each example of floating-point x `[B, ...]` as an array `[B]`."""
    check_floating("x", x)
    value = jnp.asarray(value)
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"{name} must have shape {x.shape[:1]}, one per example, got {value.shape}"
        )
    return value


def check_score(x: jax.Array, score: jax.Array) -> jax.Array:
    """Returns a score, which must be shaped like x."""
    if score.shape != x.shape:
        raise ValueError(f"score_fn must return the shape of x, {x.shape}, got {score.shape}")
    return score


def check_mask(mask) -> jax.Array:
    """Returns a mask as booleans."""
    mask = jnp.asarray(mask)
    if not is_traced(mask) and not np.isin(np.asarray(mask), (0, 1)).all():
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


# Ladders and steps


def check_ladder(sigmas: jax.Array) -> jax.Array:
    """Returns a ladder as an array `[L]`, positive and decreasing."""
    sigmas = jnp.asarray(sigmas)
    if sigmas.ndim != 1 or sigmas.shape[0] < 1:
        raise ValueError(f"sigmas must have shape [L] with L >= 1, got {sigmas.shape}")
    if is_traced(sigmas):
        return sigmas
    values = np.asarray(sigmas)
    if not (np.all(np.isfinite(values)) and np.all(values > 0) and np.all(np.diff(values) < 0)):
        raise ValueError(
            "sigmas must be positive and decrease from the first to the last, "
            f"got {values[0]} ... {values[-1]} ({len(values)} levels)"
        )
    return sigmas


def check_part(part, total: int) -> tuple:
    """Returns the argument `steps` of a sampler, (start, stop), as integers where they are known."""
    try:
        bounds = tuple(part)
        if len(bounds) == 2 and any(map(is_traced, bounds)):
            return bounds
        start, stop = map(operator.index, bounds)
        sound = 0 <= start <= stop <= total
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(
            f"steps must be (start, stop), 0 <= start <= stop <= {total}, got {show(part)}"
        )
    return start, stop


def check_frames(num_frames, return_info: bool, total: int) -> None:
    """Refuses a number of frames that `total` updates do not have, or that nobody gets."""
    if num_frames is None:
        return
    if not return_info:
        raise ValueError("num_frames needs return_info=True, which returns the frames")
    check_count("num_frames", num_frames)
    if num_frames > total:
        raise ValueError(f"num_frames must be at most the {total} updates, got {num_frames}")


def check_clip(clip) -> tuple | None:
    """Returns the bounds (low, high) to which samples are clipped, or None."""
    if clip is None or (isinstance(clip, tuple | list) and any(map(is_traced, clip))):
        return clip
    try:
        low, high = (float(bound) for bound in clip)
        sound = low < high
    except (TypeError, ValueError, OverflowError):
        sound = False
    if not sound:
        raise ValueError(f"clip must be None or (low, high) with low < high, got {show(clip)}")
    return low, high


# Differential equations


def check_sde(sde) -> None:
    """Refuses anything but an SDE."""
    from ncsn_jax.sde import SDE  # which uses these checks

    if not isinstance(sde, SDE):
        raise ValueError(f"sde must be VE, VP, SubVP or another SDE, got {show(sde)}")


def check_times(start: float, end: float) -> None:
    """Refuses two times that are not in (0, 1] or do not differ."""
    for name, value in (("start", start), ("end", end)):
        if not (_is_number(value) and value <= 1):
            raise ValueError(f"{name} must be a number in (0, 1], got {show(value)}")
    if np.float32(start) == np.float32(end):
        raise ValueError(f"start and end must differ, got {start} and {end}")


def check_tolerances(rtol: float, atol: float, max_steps: int) -> None:
    """Refuses tolerances and a bound on steps with which nothing can be solved."""
    if not ((_is_number(rtol) and rtol < 1) or (np.ndim(rtol) == 0 and rtol == 0)):
        raise ValueError(f"rtol must be a number in [0, 1), got {show(rtol)}")
    check_number("atol", atol)
    check_count("max_steps", max_steps)
