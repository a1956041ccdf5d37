"""Argument checks that several modules share; imported as `check`.

A check raises ValueError with one line: the argument's name, what was found and what is allowed. Some return
the argument in the form that the caller needs. Traced values are not known yet and pass.
"""

import contextlib
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax.errors import show

MAX_FLOAT = 3.4e38  # the largest float32, about
_TINY = float(np.finfo(np.float32).tiny)
MAX_COUNT = 10**8  # tables of more steps take gigabytes
MAX_LEVELS = 1_000_000  # more than any ladder or chain has


def is_traced(value) -> bool:
    """Returns whether a value is known only when the compiled program runs."""
    return isinstance(value, jax.core.Tracer)


# Numbers


def as_float(name: str, value: float, *, traced: bool = True) -> float:
    """Returns a number or NumPy scalar as a float, infinite if it is too large.

    Returns a traced number unchanged, or rejects it unless `traced`.
    """
    if is_traced(value):
        if not traced:
            raise ValueError(f"{name} must be a number, not a traced value, got {show(value)}")
        return value
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real and hasattr(value, "dtype") and np.ndim(value) == 0:
        real = jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(value.dtype, jnp.floating)
    if not real:
        raise ValueError(f"{name} must be a number, got {show(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def positive(name: str, value, most: float = MAX_FLOAT) -> float:
    """Returns a number in (0, `most`] as a float, if it is a normal float32."""
    try:
        found = as_float(name, value)
    except ValueError:
        found = math.nan
    if not (is_traced(found) or _TINY <= found <= most):
        allowed = "finite number > 0" if most == MAX_FLOAT else f"number in (0, {most:g}]"
        raise ValueError(f"{name} must be a {allowed}, got {show(value)}")
    return found


def ends(*, equal: bool = False, traced: bool = True, **bounds) -> dict[str, float]:
    """Returns two numbers > 0, the larger first, as floats; they may be equal or traced if allowed."""
    found = {name: as_float(name, value, traced=traced) for name, value in bounds.items()}
    (first, last), (high, low) = found, found.values()
    if is_traced(high) or is_traced(low):
        return found
    if not (MAX_FLOAT >= high >= low > 0 and (high > low or equal)):
        order = f"{MAX_FLOAT:g} >= {first} {'>=' if equal else '>'} {last} > 0"
        raise ValueError(
            f"{first} and {last} must satisfy {order}, got {first}={high} and {last}={low}"
        )
    return found


def fraction(name: str, value) -> float:
    """Returns a number in (0, 1) as a float."""
    found = as_float(name, value)
    if not (is_traced(found) or 0 < found < 1):
        raise ValueError(f"{name} must be in (0, 1), got {show(value)}")
    return found


def count(name: str, value, least: int = 1, most: int = MAX_COUNT) -> int:
    """Returns an integer from `least` to `most` as an int."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not (whole and least <= value <= most):
        raise ValueError(f"{name} must be an integer from {least} to {most}, got {show(value)}")
    return int(value)


# Keys and arrays of examples


def keys(key: jax.Array, batch_size: int) -> jax.Array:
    """Returns one typed key or `batch_size` of them, converting legacy keys; TypeError for anything else."""
    if getattr(key, "dtype", None) == np.uint32 and np.ndim(key):
        with contextlib.suppress(TypeError, ValueError):  # refused below
            key = jax.random.wrap_key_data(jnp.asarray(key))
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        found = f"{key.dtype}{[*key.shape]}" if hasattr(key, "dtype") else type(key).__name__
        raise TypeError(f"key must be made by jax.random.key or jax.random.PRNGKey, got {found}")
    if key.shape not in ((), (batch_size,)):
        raise ValueError(f"key must have shape () or ({batch_size},), got {key.shape}")
    return key


def batch(name: str, x: jax.Array) -> int:
    """Returns B of an array `[B, ...]`."""
    if not getattr(x, "shape", ()):
        raise ValueError(f"{name} must be an array [B, ...], got {show(x)}")
    return x.shape[0]


def floating(name: str, x: jax.Array) -> None:
    """Rejects an array that is not floating point."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating point, got {x.dtype}")


def chains(key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array, jnp.dtype]:
    """Returns typed keys, and `state` of the starting points x `[B, ...]`."""
    key = keys(key, batch("x", x))
    return key, *state("x", x)


def state(name: str, x: jax.Array, *, elements: bool = False) -> tuple[jax.Array, jnp.dtype]:
    """Returns floating-point x `[B, ...]` in float32, or float64 if it was, and its original type.

    Sums over many steps need the precision: the smallest steps vanish in bfloat16, and float16 overflows.
    With `elements`, x must not be empty.
    """
    batch(name, x)
    x = jnp.asarray(x)
    floating(name, x)
    if elements and not x.size:
        raise ValueError(f"{name} must not be empty, got shape {x.shape}")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)), x.dtype


def batch_shape(shape) -> tuple[int, ...]:
    """Returns a shape `(B, ...)` as a tuple."""
    valid = isinstance(shape, tuple | list) and len(shape) > 0
    if not (valid and all(isinstance(n, (int, np.integer)) and n >= 0 for n in shape)):
        raise ValueError(f"shape must be (B, ...), got {show(shape)}")
    return tuple(int(n) for n in shape)


def shape(name: str, value, wanted: tuple[int, ...]) -> None:
    """Rejects an array of a different shape."""
    if np.shape(value) != wanted:
        raise ValueError(f"{name} must have shape {wanted}, got {np.shape(value)}")


def each(name: str, x: jax.Array, value: jax.Array) -> jax.Array:
    """Returns one number per example of x `[B, ...]`, as an array `[B]` of the type of x."""
    shape(name, value, x.shape[:1])
    return jnp.asarray(value, x.dtype)


def sigma(x: jax.Array, value) -> jax.Array:
    """Returns sigmas > 0, one per example of x `[B, ...]`."""
    value = jnp.asarray(value)
    if value.shape != x.shape[:1] or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"sigma must be floats [B] = [{x.shape[0]}], got {value.dtype}{[*value.shape]}"
        )
    if not is_traced(value) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"sigma must be > 0, got {np.asarray(value).min()}")
    return value


def score(x: jax.Array, value: jax.Array) -> jax.Array:
    """Returns a score, which must be shaped like x, in the type of x."""
    if value.shape != x.shape:
        raise ValueError(f"score_fn must return the shape of x, {x.shape}, got {value.shape}")
    return value.astype(x.dtype)


def mask(value) -> jax.Array:
    """Returns a mask as booleans."""
    value = jnp.asarray(value)
    if not is_traced(value) and not np.isin(np.asarray(value), (0, 1)).all():
        raise ValueError("mask must contain only 1 or True (observed) and 0 or False (hidden)")
    return value.astype(bool)


def broadcast_like(name: str, array: jax.Array, x: jax.Array) -> jax.Array:
    """Broadcasts an array to the shape of x; both must have the same number of axes."""
    if array.ndim != x.ndim or any(
        a not in (1, b) for a, b in zip(array.shape, x.shape, strict=True)
    ):
        raise ValueError(
            f"{name} must have as many axes as x and broadcast to its shape, {x.shape}, "
            f"got {array.shape}"
        )
    return jnp.broadcast_to(array, x.shape)


def inputs(model: object, x, label, name: str = "level", levels: int | None = None) -> tuple:
    """Returns a network's inputs as arrays: floating-point images `[B, H, W, C]` and numbers `[B]`.

    A number whose `name` is level must be an integer. With `levels`, a known number must be an integer in
    [0, levels).
    """
    x, label = jnp.asarray(x), jnp.asarray(label)
    network = type(model).__name__
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{network} needs floating-point images [B, H, W, C], got {x.dtype}{[*x.shape]}"
        )
    kind, allowed = (jnp.integer, "integers") if name == "level" else (jnp.number, "numbers")
    if label.shape != x.shape[:1] or not jnp.issubdtype(label.dtype, kind):
        raise ValueError(
            f"{name} of {network} must be {allowed} [B] = [{x.shape[0]}], "
            f"got {label.dtype}{[*label.shape]}"
        )
    if levels is not None and not is_traced(label):
        values = np.asarray(label)
        outside = values[~((values >= 0) & (values < levels) & (values == np.floor(values)))]
        if outside.size:
            raise ValueError(
                f"{name} of {network} must be integers from 0 to {levels - 1}, got {outside[0]}"
            )
    return x, label


def classes(model: object, value, batch_size: int) -> jax.Array | None:
    """Returns the classes of a network's examples, `int[B]`; None if it has no classes.

    `model.num_classes` means no class, which is what all examples have if the value is None.
    """
    network, count = type(model).__name__, model.num_classes
    if not count:
        if value is not None:
            raise ValueError(f"classes of {network} must be None, since it has num_classes=0")
        return None
    value = jnp.full(batch_size, count) if value is None else jnp.asarray(value)
    if value.shape != (batch_size,) or not jnp.issubdtype(value.dtype, jnp.integer):
        raise ValueError(
            f"classes of {network} must be integers [B] = [{batch_size}], "
            f"got {value.dtype}{[*value.shape]}"
        )
    if not is_traced(value):
        outside = np.asarray(value)[(np.asarray(value) < 0) | (np.asarray(value) > count)]
        if outside.size:
            raise ValueError(
                f"classes of {network} must be integers from 0 to {count - 1}, or {count} for none, "
                f"got {outside[0]}"
            )
    return value


def sides(model: object, x: jax.Array, halvings: int) -> None:
    """Rejects images `[B, H, W, C]` whose sides cannot be halved `halvings` times."""
    factor, (height, width) = 2**halvings, x.shape[1:3]
    if height % factor or width % factor:
        raise ValueError(
            f"{type(model).__name__} needs a height and width that are multiples of {factor}, "
            f"got {height}x{width}"
        )


# Ladders and steps


def ladder(sigmas: jax.Array, dtype=None) -> jax.Array:
    """Returns a ladder as an array `[L]` of a type, positive and decreasing."""
    sigmas = jnp.asarray(sigmas, dtype)
    if sigmas.ndim != 1 or sigmas.shape[0] < 1:
        raise ValueError(f"sigmas must have shape [L] with L >= 1, got {sigmas.shape}")
    if is_traced(sigmas):
        return sigmas
    values = np.asarray(sigmas)
    if not (np.all(np.isfinite(values)) and np.all(values > 0) and np.all(np.diff(values) < 0)):
        raise ValueError(
            "sigmas must be positive and strictly decreasing, "
            f"got {values[0]} ... {values[-1]} ({len(values)} levels)"
        )
    return sigmas


def part(steps, total: int) -> tuple:
    """Returns a sampler's `steps`, (start, stop), as integers where known; None is (0, total)."""
    try:
        bounds = (0, total) if steps is None else tuple(steps)
        if len(bounds) == 2 and any(map(is_traced, bounds)):
            return bounds
        start, stop = map(operator.index, bounds)
        valid = 0 <= start <= stop <= total
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            f"steps must be (start, stop), 0 <= start <= stop <= {total}, got {show(steps)}"
        )
    return start, stop


def frames(num_frames, return_info: bool, total: int) -> None:
    """Rejects `num_frames` above `total` updates, or without `return_info`."""
    if num_frames is None:
        return
    if not return_info:
        raise ValueError("num_frames needs return_info=True, which returns the frames")
    count("num_frames", num_frames, most=total)


def interval(name: str, bounds, least: float = -math.inf, equal: bool = False) -> tuple:
    """Returns bounds (low, high) as floats, `least` <= low < high; with `equal`, also low = high."""
    if is_traced(bounds) or (isinstance(bounds, tuple | list) and any(map(is_traced, bounds))):
        return bounds
    try:
        low, high = (float(bound) for bound in bounds)
        valid = least <= low and (low < high or (equal and low == high))
        valid &= all(abs(bound) <= MAX_FLOAT or math.isinf(bound) for bound in (low, high))
    except (TypeError, ValueError, OverflowError):
        valid = False
    if not valid:
        rule = f"{least} <= low {'<=' if equal else '<'} high, each infinite or a float32"
        raise ValueError(f"{name} must be (low, high) with {rule}, got {show(bounds)}")
    return low, high


# Differential equations


def sde(value) -> None:
    """Rejects anything but an SDE."""
    from ncsn_jax.sde import SDE  # a circular import: it uses these checks

    if not isinstance(value, SDE):
        raise ValueError(f"sde must be VE, VP, SubVP or another SDE, got {show(value)}")


def times(start: float, end: float) -> tuple[float, float]:
    """Returns two different times in (0, 1] as floats."""
    start, end = positive("start", start, 1.0), positive("end", end, 1.0)
    if not (is_traced(start) or is_traced(end)) and np.float32(start) == np.float32(end):
        raise ValueError(f"start and end must differ, got {start} and {end}")
    return start, end


def tolerances(rtol: float, atol: float, max_steps: int) -> dict:
    """Returns the solver's tolerances and its bound on steps, by name."""
    relative = as_float("rtol", rtol)
    if not (is_traced(relative) or relative == 0 or _TINY <= relative < 1):
        raise ValueError(f"rtol must be a number in [0, 1), got {show(rtol)}")
    atol, max_steps = positive("atol", atol), count("max_steps", max_steps)
    return {"rtol": relative, "atol": atol, "max_steps": max_steps}
