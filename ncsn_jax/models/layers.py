"""Convolution, pooling and resampling layers that reproduce PyTorch's.

Padding, initial distribution and treatment of borders match exactly. All arrays are `[B, H, W, C]`.
Everything casts its parameters to the type of its input, and computes and returns that type.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax import _checks as check

# Draws have one of these lengths and are then cut to the array's size: with one program per shape, the first
# initialisation takes two to three times as long. The numbers are the same, because a number that JAX draws
# does not depend on how many follow (with `jax_threefry_partitionable`, JAX's default).
_LENGTHS = [4**k for k in range(7, 12)]


@functools.partial(jax.jit, static_argnames=("length", "dtype"))
def _draw(key, *, length: int, dtype) -> jax.Array:
    return jax.random.uniform(key, (length,), dtype)


@functools.partial(jax.jit, static_argnames=("shape",))
def _cut(x, bound, *, shape: tuple[int, ...]) -> jax.Array:
    return (x[: math.prod(shape)] * (2.0 * bound) - bound).reshape(shape)


def _uniform_init(bound: float):
    """Returns an initializer that draws U(-bound, bound)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        size = math.prod(shape)
        length = next((n for n in _LENGTHS if n >= size), size)
        return _cut(_draw(key, length=length, dtype=dtype), bound, shape=shape)

    return init


def _xavier_init(fan_in: int, fan_out: int, scale: float):
    """Returns Xavier's uniform initializer with variance times `scale`; a scale of 0 means 1e-10."""
    return _uniform_init(math.sqrt(6.0 * (scale or 1e-10) / (fan_in + fan_out)))


@functools.partial(jax.jit, static_argnames=("stride", "pad", "dilation"))
def _convolve(x, kernel, bias, *, stride: int, pad: tuple[int, int], dilation: int) -> jax.Array:
    y = jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(stride, stride),
        padding=(pad, pad),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y if bias is None else y + bias.astype(x.dtype)[None, None, None, :]


def _with_mean_pool(kernel: jax.Array) -> jax.Array:
    """Returns the kernel, one larger per side, that convolves and averages 2x2 blocks at stride 2."""
    shifts = [((i, 1 - i), (j, 1 - j), (0, 0), (0, 0)) for i in range(2) for j in range(2)]
    return sum(jnp.pad(kernel, shift) for shift in shifts) / 4.0


@jax.custom_jvp
def elu(x: jax.Array) -> jax.Array:
    """Returns x where it is positive and exp(x) - 1 elsewhere (ELU)."""
    return jax.nn.elu(x)


@elu.defjvp
def _elu_jvp(primals, tangents):
    """Computes the derivative from the result, so the backward pass need not keep the input."""
    y = elu(*primals)
    return y, tangents[0] * jnp.where(y > 0, 1.0, y + 1.0)


class ClassEmbedding(nn.Module):
    """A row of a table for each class, and zeros for none.

    Args:
      num_classes: K, the rows of the table.
      features: the width W.
      init: the table's initializer.

    Args of the call:
      classes: `int[B]` in [0, K], K for none.
    """

    num_classes: int
    features: int
    init: Callable = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, classes: jax.Array) -> jax.Array:
        shape = self.num_classes, self.features
        table = self.param("embedding", self.init, shape, jnp.float32)
        # GPUs compute the transpose of this product in a fixed order, unlike that of a look-up.
        rows = jax.nn.one_hot(classes, self.num_classes, dtype=table.dtype)
        return jnp.matmul(rows, table, precision=jax.lax.Precision.HIGHEST)


class Conv(nn.Module):
    """A convolution with zero padding, "same" by default, initialised as in PyTorch.

    Kernel and bias are drawn from U(-b, b), b = 1 / sqrt(kernel_size^2 * C_in).

    Args:
      features: output channels.
      kernel_size: odd side of the square kernel.
      dilation: spacing of the kernel's taps.
      use_bias: whether to add a bias per output channel.
      xavier: initialise with Xavier's uniform distribution, b = sqrt(6 / (kernel_size^2 (C_in + C_out))),
        and a bias of zero instead.
      scale: factor of Xavier's variance; 0 means 1e-10, almost no output at the start.
      stride: the output's stride.
      padding: zeros (before, after) each of the two axes; by default stride 1 keeps the size.
      pooled: return the mean of each 2x2 block of the output, H and W even. This is one convolution with a
        larger kernel; for 3x3 kernels it takes 4/9 of the operations. It allows no dilation, stride or
        padding.
    """

    features: int
    kernel_size: int = 3
    dilation: int = 1
    use_bias: bool = True
    xavier: bool = False
    scale: float = 1.0
    stride: int = 1
    padding: tuple[int, int] | None = None
    pooled: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, channels = self.kernel_size, x.shape[-1]
        if self.pooled:
            if self.dilation != 1 or self.stride != 1 or self.padding is not None:
                raise ValueError("a pooled convolution cannot have a dilation, stride or padding")
            check.sides(self, x, 1)
        if self.xavier:
            init = _xavier_init(k * k * channels, k * k * self.features, self.scale)
            bias_init = nn.initializers.zeros_init()
        else:
            init = bias_init = _uniform_init(1.0 / math.sqrt(k * k * channels))
        kernel = self.param("kernel", init, (k, k, channels, self.features), jnp.float32)
        pad = self.padding or (self.dilation * (k // 2),) * 2
        bias = (
            self.param("bias", bias_init, (self.features,), jnp.float32) if self.use_bias else None
        )
        stride = self.stride
        if self.pooled:
            kernel, stride = _with_mean_pool(kernel), 2
        return _convolve(x, kernel, bias, stride=stride, pad=pad, dilation=self.dilation)


class Dense(nn.Module):
    """An affine map of the last axis, `[..., C]` to `[..., features]`; on images, a 1x1 convolution.

    The kernel is `[C, features]`, the bias starts at zero.

    Args:
      features: output channels.
      scale: factor of the variance of Xavier's uniform initializer; 0 means 1e-10.
      use_bias: whether there is a bias.
    """

    features: int
    scale: float = 1.0
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        init = _xavier_init(channels, self.features, self.scale)
        kernel = self.param("kernel", init, (channels, self.features), jnp.float32)
        if not self.use_bias:
            return x @ kernel.astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        bias = jnp.expand_dims(bias.astype(x.dtype), tuple(range(x.ndim - 1)))
        return x @ kernel.astype(x.dtype) + bias


@jax.jit
def mean_pool(x: jax.Array) -> jax.Array:
    """Averages each 2x2 block: `[B, H, W, C]` to `[B, H/2, W/2, C]`, H and W even."""
    batch, height, width, channels = x.shape
    return jnp.mean(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def _pool5(x: jax.Array, start: float, combine) -> jax.Array:
    """Combines each 5x5 neighbourhood, one axis at a time, with `start` beyond the border."""
    for axis in (1, 2):
        window = [1, 1, 1, 1]
        padding = [(0, 0)] * 4
        window[axis], padding[axis] = 5, (2, 2)
        x = jax.lax.reduce_window(x, start, combine, window, (1, 1, 1, 1), padding)
    return x


@jax.jit
def average_pool5(x: jax.Array) -> jax.Array:
    """Averages 5x5 pixels at stride 1; zeros beyond the border count, so it always divides by 25."""
    return _pool5(x, 0.0, jax.lax.add) / 25.0


@jax.jit
def max_pool5(x: jax.Array) -> jax.Array:
    """Takes the maximum of 5x5 pixels at stride 1; ignores everything beyond the border."""
    return _pool5(x, -jnp.inf, jax.lax.max)


def _interpolation_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Returns linear interpolation between aligned corners as a matrix `[size_out, size_in]`."""
    source = np.linspace(0.0, size_in - 1.0, size_out)
    distance = np.abs(source[:, None] - np.arange(size_in))
    return np.maximum(1.0 - distance, 0.0).astype(np.float32)


@functools.partial(jax.jit, static_argnames="shape")
def resize_bilinear(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Resamples bilinearly to `shape = (height, width)` with aligned corners.

    The corner pixels of input and output coincide (PyTorch's `align_corners=True`), unlike
    `jax.image.resize`, which aligns half pixels. Equal sizes give the identity.
    """
    if x.shape[1] != shape[0]:
        matrix = _interpolation_matrix(x.shape[1], shape[0]).astype(x.dtype)
        x = jnp.einsum("oh,bhwc->bowc", matrix, x)
    if x.shape[2] != shape[1]:
        matrix = _interpolation_matrix(x.shape[2], shape[1]).astype(x.dtype)
        x = jnp.einsum("ow,bhwc->bhoc", matrix, x)
    return x
