"""The operators A of measurements y = A x + n, n ~ N(0, noise^2 I).

An operator works on a batch: x `[B, ...]` becomes y `[B, ...]`, and example i of y depends on example i of x
alone. All numbers are real, so Fourier coefficients have a last axis of real and imaginary parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from ncsn_jax import _checks as check
from ncsn_jax._random import expand, normal_like
from ncsn_jax.errors import show
from ncsn_jax.inverse._solve import solve


class LinearOperator(NamedTuple):
    """A linear operator A.

    Attributes:
      apply: A, `apply(x) -> y`, x `[B, ...]` and y `[B, ...]`.
      adjoint: A^T, `adjoint(y) -> x`; by default JAX derives it from `apply`, which it can unless `apply`
        calls code outside JAX.
      shape: the shape of one example of x, without the axis of the batch; None for any that `apply` takes.
      observed: which elements of y are measured: booleans with as many axes as y, which broadcast to its
        shape; None for all. The others are ignored, even if they are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from ncsn_jax.inverse import LinearOperator
      >>> differences = LinearOperator(lambda x: x[:, 1:] - x[:, :-1])
      >>> differences.apply(jnp.asarray([[1.0, 2.0, 4.0]])).tolist()
      [[1.0, 2.0]]
    """

    apply: Callable[[jax.Array], jax.Array]
    adjoint: Callable[[jax.Array], jax.Array] | None = None
    shape: tuple[int, ...] | None = None
    observed: jax.Array | None = None


class NonlinearOperator(NamedTuple):
    """A differentiable operator; make it with `nonlinear`. See `LinearOperator` for its attributes."""

    apply: Callable[[jax.Array], jax.Array]
    shape: tuple[int, ...] | None = None
    observed: jax.Array | None = None


Operator = LinearOperator | NonlinearOperator


def nonlinear(
    function: Callable[[jax.Array], jax.Array], shape: tuple[int, ...] | None = None
) -> NonlinearOperator:
    """Returns any differentiable function of x `[B, ...]` as an operator; `shape` as in `LinearOperator`.

    Example:
      >>> import jax.numpy as jnp
      >>> from ncsn_jax import inverse
      >>> magnitude = inverse.nonlinear(lambda x: jnp.abs(jnp.fft.rfft(x)))
      >>> magnitude.apply(jnp.asarray([[1.0, 0.0]])).tolist()
      [[1.0, 1.0]]
    """
    return NonlinearOperator(function, shape)


def mask(observed: ArrayLike) -> LinearOperator:
    """Returns the operator that hides elements: y is x where `observed`, and 0 elsewhere (inpainting).

    Args:
      observed: 1 or True where x is measured, 0 or False where it is hidden; as many axes as x `[B, ...]`,
        broadcastable to its shape. Hidden elements of x and y are ignored, even if they are not finite.

    Raises:
      ValueError: if the mask has other values; `apply` does if the shapes do not match. A traced mask is not
        checked.
    """
    observed = check.mask(observed)

    def apply(x):
        return jnp.where(check.broadcast_like("mask", observed, x), x, 0)

    return LinearOperator(apply, observed=observed)


def downsample(factor: int) -> LinearOperator:
    """Returns the operator that replaces blocks of `factor` x `factor` pixels by their mean.

    It takes images `[B, H, W, C]` and gives `[B, H / factor, W / factor, C]`. `apply` raises ValueError if
    `factor` does not divide both sides.

    Example:
      >>> import jax.numpy as jnp
      >>> from ncsn_jax import inverse
      >>> inverse.downsample(2).apply(jnp.arange(4.0).reshape(1, 2, 2, 1)).tolist()
      [[[[1.5]]]]
    """
    factor = check.count("factor", factor)

    def apply(x):
        batch, height, width, channels = _images(x)
        if height % factor or width % factor:
            raise ValueError(f"factor={factor} must divide the images' sides, {height} and {width}")
        blocks = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
        return blocks.mean(axis=(2, 4))

    return LinearOperator(apply)


def blur(kernel: ArrayLike) -> LinearOperator:
    """Returns the operator that correlates each channel with a kernel and mirrors the images at their edges.

    Args:
      kernel: `[K, L]`, both odd; usually its sum is 1. y is shaped like x `[B, H, W, C]`.

    Raises:
      ValueError: if the kernel has another shape; `apply` does if the images are not larger than half of it.
    """
    kernel = jnp.asarray(kernel)
    if kernel.ndim != 2 or not all(side % 2 for side in kernel.shape):
        raise ValueError(f"kernel must have two odd sides, got shape {kernel.shape}")
    high, wide = (side // 2 for side in kernel.shape)

    def apply(x):
        batch, height, width, channels = _images(x)
        if height <= high or width <= wide:
            raise ValueError(
                f"images of {height} x {width} are too small for a kernel of shape {kernel.shape}"
            )
        each = jnp.moveaxis(x, -1, 1).reshape(batch * channels, 1, height, width)
        padded = jnp.pad(each, ((0, 0), (0, 0), (high, high), (wide, wide)), mode="reflect")
        filters = kernel.astype(x.dtype)[None, None]
        each = lax.conv(padded, filters, (1, 1), "VALID", precision=lax.Precision.HIGHEST)
        return jnp.moveaxis(each.reshape(batch, channels, height, width), 1, -1)

    return LinearOperator(apply)


def fourier_mask(observed: ArrayLike) -> LinearOperator:
    """Returns the operator that measures some Fourier coefficients of images (magnetic resonance imaging).

        y = F x where `observed`, with F the orthonormal two-dimensional transform of each channel

    Args:
      observed: 1 or True where a coefficient is measured; `[1 or B, H, W, 1 or C]`, with frequencies in the
        order of `jnp.fft.fft2`: 0 comes first.

    Returns:
      An operator that takes images `[B, H, W, C]` and gives `[B, H, W, C, 2]`, the real and imaginary parts.

    Raises:
      ValueError: as `mask` does.
    """
    observed = check.mask(observed)

    def apply(x):
        _images(x)
        coefficients = jnp.fft.fft2(x, axes=(1, 2), norm="ortho")
        here = check.broadcast_like("mask", observed, x)
        parts = jnp.stack([coefficients.real, coefficients.imag], axis=-1)
        return jnp.where(here[..., None], parts, 0)

    return LinearOperator(apply, observed=observed[..., None])


def grey() -> LinearOperator:
    """Returns the operator that takes the mean over the channels of `[B, H, W, C]`: y is `[B, H, W, 1]`."""
    return LinearOperator(lambda x: jnp.mean(x, axis=-1, keepdims=True))


def matrix(values: ArrayLike) -> LinearOperator:
    """Returns a matrix A `[M, D]` as an operator on x `[B, ...]` of D elements each; y is `[B, M]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from ncsn_jax import inverse
      >>> inverse.matrix([[1.0, 1.0]]).apply(jnp.asarray([[2.0, 3.0]])).tolist()
      [[5.0]]
    """
    values = jnp.asarray(values)
    if values.ndim != 2:
        raise ValueError(f"a matrix has two axes, got shape {values.shape}")

    def apply(x):
        flat = x.reshape(check.batch("x", x), -1)
        if flat.shape[1] != values.shape[1]:
            raise ValueError(
                f"a matrix of shape {values.shape} takes examples of {values.shape[1]} elements, "
                f"got x of shape {x.shape}"
            )
        return jnp.matmul(flat, values.T.astype(x.dtype), precision=lax.Precision.HIGHEST)

    return LinearOperator(apply)


def compose(*operators: Operator) -> Operator:
    """Returns the operator that applies the last one first: `compose(a, b).apply(x)` is a of b of x.

    Example:
      >>> import jax.numpy as jnp
      >>> from ncsn_jax import inverse
      >>> small_and_grey = inverse.compose(inverse.grey(), inverse.downsample(2))
      >>> small_and_grey.apply(jnp.zeros((1, 8, 8, 3))).shape
      (1, 4, 4, 1)
    """
    if not operators:
        raise ValueError("compose needs at least one operator")

    def apply(x):
        for operator in reversed(operators):
            x = applied(operator, x)
        return x

    shape, observed = operators[-1].shape, operators[0].observed
    if all(isinstance(operator, LinearOperator) for operator in operators):
        return LinearOperator(apply, None, shape, observed)
    return NonlinearOperator(apply, shape, observed)


def measure(key: jax.Array, operator: Operator, x: ArrayLike, noise: ArrayLike = 0.0) -> jax.Array:
    """Returns a measurement y = A x + noise z, z ~ N(0, I); elements that are not observed are 0.

    Args:
      key: one key, or one per example `[B]`.
      operator: A.
      x: `[B, ...]`, floating point.
      noise: the standard deviation, >= 0; one number or `[B]`.

    Raises:
      ValueError: if an argument is out of range, or the operator does not take x.
    """
    x = jnp.asarray(x)
    check.floating("x", x)
    key = check.keys(key, check.batch("x", x))
    y = applied(operator, x)
    return only_observed(operator, y + per_example(noise, y) * normal_like(key, y))


def adjoint(operator: LinearOperator, y: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """Returns A^T y.

    Args:
      operator: A.
      y: `[B, ...]`, floating point.
      shape: that of x, `(B, ...)`.

    Raises:
      ValueError: if the operator is not linear, or y is not floating point in the shape of A x.

    Example:
      >>> import jax.numpy as jnp
      >>> from ncsn_jax import inverse
      >>> inverse.adjoint(inverse.downsample(2), jnp.ones((1, 1, 1, 1)), (1, 2, 2, 1)).ravel().tolist()
      [0.25, 0.25, 0.25, 0.25]
    """
    if not isinstance(operator, LinearOperator):
        raise ValueError(f"operator must be a LinearOperator, got {type(operator).__name__}")
    y = jnp.asarray(y)
    check.floating("y", y)
    value, pull = jax.vjp(lambda x: applied(operator, x), jnp.zeros(shape, y.dtype))
    check_measurement(y, value)
    return pull(only_observed(operator, y))[0]


def pseudo_inverse(
    operator: LinearOperator, y: ArrayLike, shape: tuple[int, ...], *, iterations: int = 100
) -> jax.Array:
    """Returns the x of least norm whose A x is nearest to y, by conjugate gradients.

    Args:
      operator, y, shape: as for `adjoint`.
      iterations: of the conjugate gradients. For `mask`, `downsample` and `grey` one is exact. Where A nearly
        loses something, as `blur` does, more iterations also amplify the noise of y.

    Example:
      >>> import jax.numpy as jnp
      >>> from ncsn_jax import inverse
      >>> inverse.pseudo_inverse(inverse.downsample(2), jnp.ones((1, 1, 1, 1)), (1, 2, 2, 1)).ravel().tolist()
      [1.0, 1.0, 1.0, 1.0]
    """

    def square(x):
        return adjoint(operator, applied(operator, x), shape)

    return solve(square, adjoint(operator, y, shape), check.count("iterations", iterations))


def applied(operator: Operator, x: jax.Array) -> jax.Array:
    """Returns A x, with 0 for what is not observed; its derivative has the operator's own adjoint, if any."""
    if operator.shape is not None and x.shape[1:] != tuple(operator.shape):
        wanted = ", ".join(map(str, operator.shape))
        raise ValueError(f"the operator takes x of shape [B, {wanted}], got {x.shape}")
    apply = operator.apply
    if isinstance(operator, LinearOperator) and operator.adjoint is not None:
        apply = _with_adjoint(apply, operator.adjoint)
    return only_observed(operator, apply(x))


def _with_adjoint(apply: Callable, adjoint: Callable) -> Callable:
    """Returns a linear function whose derivative is its adjoint, whose derivative is the function again."""
    function = jax.custom_vjp(apply)
    function.defvjp(lambda x: (apply(x), None), lambda _, y: (_with_adjoint(adjoint, apply)(y),))
    return function


def only_observed(operator: Operator, y: jax.Array) -> jax.Array:
    """Returns y with 0 in place of what is not observed."""
    return y if operator.observed is None else jnp.where(operator.observed, y, 0)


def check_measurement(y: jax.Array, value: jax.Array) -> None:
    """Rejects a measurement that is not shaped like `value`, A x."""
    if y.shape != value.shape:
        raise ValueError(f"y must have the shape of A x, {value.shape}, got {y.shape}")


def per_example(noise: ArrayLike, y: jax.Array) -> jax.Array:
    """Returns one standard deviation >= 0, or one per example `[B]`, so that it broadcasts against y."""
    if not check.is_traced(noise):
        values = np.asarray(noise)
        if not np.all((values >= 0) & (values < np.inf)):
            raise ValueError(f"noise must be >= 0 and finite, got {show(values.tolist())}")
    noise = jnp.asarray(noise, y.dtype)
    if noise.ndim:
        check.shape("noise", noise, y.shape[:1])
        return expand(noise, y)
    return noise


def _images(x: jax.Array) -> tuple[int, int, int, int]:
    if x.ndim != 4:
        raise ValueError(f"x must be images [B, H, W, C], got shape {x.shape}")
    return x.shape
