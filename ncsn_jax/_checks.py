"""Every check of arguments that more than one module makes, once; imported as `check`.

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


def positive(name: str, value) -> None:
    """Refuses anything but one number > 0 that is finite in float32."""
    if not (is_traced(value) or (np.ndim(value) == 0 and 0 < as_float(name, value) <= MAX_FLOAT)):
        raise ValueError(f"{name} must be a finite number > 0, got {show(value)}")


def number(name: str, value) -> None:
    """Refuses anything but a plain number > 0 for which float32 has room."""
    if not _is_number(value):
        raise ValueError(f"{name} must be a number > 0, got {show(value)}")


def ends(*, equal: bool = False, **bounds) -> tuple[float, float]:
    """Returns two numbers > 0, the larger first, as floats; they may be `equal` if told so."""
    (first, last), (high, low) = bounds, (as_float(*bound) for bound in bounds.items())
    if not (MAX_FLOAT >= high >= low > 0 and (high > low or equal)):
        order = f"{MAX_FLOAT:g} >= {first} {'>=' if equal else '>'} {last} > 0"
        raise ValueError(f"{order} must hold, got {first}={high} and {last}={low}")
    return high, low


def fraction(name: str, value) -> None:
    """Refuses anything but a number in (0, 1)."""
    if not is_traced(value) and not 0 < as_float(name, value) < 1:
        raise ValueError(f"{name} must be in (0, 1), got {show(value)}")


def count(name: str, value, least: int = 1, most: int = MAX_COUNT) -> None:
    """Refuses anything but an integer from `least` to `most`."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not (whole and least <= value <= most):
        raise ValueError(f"{name} must be an integer >= {least}, {most} at most, got {show(value)}")


def _is_number(value) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    return float(np.finfo(np.float32).tiny) <= value <= MAX_FLOAT


# Keys and arrays of examples


def keys(key: jax.Array, batch_size: int) -> None:
    """Raises unless `key` is one typed key or `batch_size` of them; TypeError if it is no key."""
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        found = getattr(key, "dtype", type(key).__name__)
        raise TypeError(
            f"key must be made by jax.random.key, got {found} "
            "(jax.random.wrap_key_data makes one of a jax.random.PRNGKey)"
        )
    if key.shape not in ((), (batch_size,)):
        raise ValueError(f"key must have shape () or ({batch_size},), got {key.shape}")


def batch(name: str, x: jax.Array) -> int:
    """Returns B of an array `[B, ...]`."""
    if not getattr(x, "shape", ()):
        raise ValueError(f"{name} must be an array [B, ...], got {show(x)}")
    return x.shape[0]


def floating(name: str, x: jax.Array) -> None:
    """Refuses an array of anything but floating-point numbers."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating point, got {x.dtype}")


def chains(key: jax.Array, x: jax.Array) -> int:
    """Returns B of floating-point x `[B, ...]`, where chains start, with one key or `[B]` of them."""
    batch_size = batch("x", x)
    keys(key, batch_size)
    floating("x", x)
    return batch_size


def state(name: str, x: jax.Array) -> jax.Array:
    """Returns floating-point x `[B, ...]`, which must have elements, in JAX's default precision."""
    batch(name, x)
    x = jnp.asarray(x)
    floating(name, x)
    if not x.size:
        raise ValueError(f"{name} must have elements, got shape {x.shape}")
    return x.astype(float)


def shape(name: str, value, wanted: tuple[int, ...]) -> None:
    """Refuses an array of another shape."""
    if np.shape(value) != wanted:
        raise ValueError(f"{name} must have shape {wanted}, got {np.shape(value)}")


def each(name: str, x: jax.Array, value: jax.Array) -> jax.Array:
    """Returns a value for each example of floating-point x `[B, ...]` as an array `[B]`."""
    batch("x", x)
    floating("x", x)
    shape(name, value, x.shape[:1])
    return jnp.asarray(value)


def score(x: jax.Array, value: jax.Array) -> jax.Array:
    """Returns a score, which must be shaped like x."""
    if value.shape != x.shape:
        raise ValueError(f"score_fn must return the shape of x, {x.shape}, got {value.shape}")
    return value


def mask(value) -> jax.Array:
    """Returns a mask as booleans."""
    value = jnp.asarray(value)
    if not is_traced(value) and not np.isin(np.asarray(value), (0, 1)).all():
        raise ValueError("mask must be 1 or True where observed, and 0 or False elsewhere, only")
    return value.astype(bool)


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


def sides(model: object, x: jax.Array, halvings: int) -> None:
    """Refuses images `[B, H, W, C]` whose sides cannot be halved so often."""
    factor, (height, width) = 2**halvings, x.shape[1:3]
    if height % factor or width % factor:
        raise ValueError(
            f"{type(model).__name__} needs a height and width that are multiples of {factor}, "
            f"got {height}x{width}"
        )


# Ladders and steps


def ladder(sigmas: jax.Array) -> jax.Array:
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


def part(steps, total: int) -> tuple:
    """Returns `steps` of a sampler, (start, stop), as integers where they are known; None is (0, total)."""
    try:
        bounds = (0, total) if steps is None else tuple(steps)
        if len(bounds) == 2 and any(map(is_traced, bounds)):
            return bounds
        start, stop = map(operator.index, bounds)
        sound = 0 <= start <= stop <= total
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(
            f"steps must be (start, stop), 0 <= start <= stop <= {total}, got {show(steps)}"
        )
    return start, stop


def frames(num_frames, return_info: bool, total: int) -> None:
    """Refuses a number of frames that `total` updates do not have, or that nobody gets."""
    if num_frames is None:
        return
    if not return_info:
        raise ValueError("num_frames needs return_info=True, which returns the frames")
    count("num_frames", num_frames, most=total)


def interval(name: str, bounds, least: float = -math.inf, equal: bool = False) -> tuple:
    """Returns bounds (low, high) as floats, `least` <= low < high; or low = high, if they may be `equal`."""
    if is_traced(bounds) or (isinstance(bounds, tuple | list) and any(map(is_traced, bounds))):
        return bounds
    try:
        low, high = (float(bound) for bound in bounds)
        sound = least <= low and (low < high or (equal and low == high))
        sound &= all(abs(bound) <= MAX_FLOAT or math.isinf(bound) for bound in (low, high))
    except (TypeError, ValueError, OverflowError):
        sound = False
    if not sound:
        rule = f"{least} <= low {'<=' if equal else '<'} high, each infinite or a float32"
        raise ValueError(f"{name} must be (low, high) with {rule}, got {show(bounds)}")
    return low, high


# Differential equations


def sde(value) -> None:
    """Refuses anything but an SDE."""
    from ncsn_jax.sde import SDE  # which uses these checks

    if not isinstance(value, SDE):
        raise ValueError(f"sde must be VE, VP, SubVP or another SDE, got {show(value)}")


def times(start: float, end: float) -> None:
    """Refuses two times that are not in (0, 1] or do not differ."""
    for name, value in (("start", start), ("end", end)):
        if not (_is_number(value) and value <= 1):
            raise ValueError(f"{name} must be a number in (0, 1], got {show(value)}")
    if np.float32(start) == np.float32(end):
        raise ValueError(f"start and end must differ, got {start} and {end}")


def tolerances(rtol: float, atol: float, max_steps: int) -> None:
    """Refuses tolerances and a bound on steps with which nothing can be solved."""
    if not ((_is_number(rtol) and rtol < 1) or (np.ndim(rtol) == 0 and rtol == 0)):
        raise ValueError(f"rtol must be a number in [0, 1), got {show(rtol)}")
    number("atol", atol)
    count("max_steps", max_steps)
