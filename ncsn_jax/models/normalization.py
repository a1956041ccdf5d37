"""Normalization layers of the score networks.

Every layer maps `(x, level)` to an array like `x`, with `x: [B, H, W, C]` and `level: int[B]`, the
index of each example's noise level. Unconditional layers ignore the level, so one block works with all.
A layer with `num_classes` takes the pair `(level, classes)` instead. It adds a row of a second table, which
has one for each class and starts at zero, to its parameters; "no class" adds nothing.
Each example has its own statistics, over the spatial axes and in two passes. Statistics and affine map are
in at least float32, and the result has the type of x.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncsn_jax.models.layers import ClassEmbedding, elu

EPSILON = 1e-5

# The level, or the pair of the level and the class.
Condition = jax.Array | tuple[jax.Array, jax.Array]


# A network calls this dozens of times. The inner `jit` traces each shape once: without it, NCSN's training
# step takes 2.5 times as long to trace and 1.3 times as long to compile.
@functools.partial(jax.jit, static_argnames="activate")
def normalize(
    x: jax.Array,
    gamma: jax.Array,
    alpha: jax.Array | None,
    beta: jax.Array,
    *,
    activate: bool = False,
) -> jax.Array:
    """Applies instance normalization++ (NCSN, equation 10), and then ELU if `activate`.

        z_k = gamma_k ((x_k - mu_k) / s_k + alpha_k (mu_k - m) / v) + beta_k

    for channel k of each example. mu_k and s_k are its mean and standard deviation over the pixels, m and v
    those of mu_1 ... mu_C. The products with gamma are computed per channel, not per pixel.

    Args:
      x: `[B, H, W, C]`.
      gamma, alpha, beta: `[B, C]`. alpha needs C >= 2; None omits its term, which gives equation 9.
      activate: whether ELU follows.

    Returns:
      An array like x.
    """
    h = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    gamma, alpha, beta = (None if a is None else a.astype(h.dtype) for a in (gamma, alpha, beta))
    mu = jnp.mean(h, axis=(1, 2))
    centred = h - _over_pixels(mu)
    s = jnp.sqrt(jnp.mean(jnp.square(centred), axis=(1, 2)) + EPSILON)
    shift = beta
    if alpha is not None:
        v = jnp.sqrt(jnp.var(mu, axis=1, keepdims=True, ddof=1) + EPSILON)
        shift += gamma * alpha * (mu - jnp.mean(mu, axis=1, keepdims=True)) / v
    z = _over_pixels(gamma / s) * centred + _over_pixels(shift)
    return (elu(z) if activate else z).astype(x.dtype)


def _over_pixels(a: jax.Array) -> jax.Array:
    """Returns `[B, C]` as `[B, 1, 1, C]`."""
    return a[:, None, None, :]


@jax.custom_jvp
def _look_up(table: jax.Array, level: jax.Array) -> jax.Array:
    """Returns the rows of a table `[L, W]` at `int[B]` in [0, L)."""
    return table[level]


@_look_up.defjvp
def _look_up_jvp(primals, tangents):
    """Multiplies with one-hot rows, whose transpose GPUs compute in a fixed order, unlike a sum over rows.

    A non-finite value in one row of a tangent makes all rows non-finite.
    """
    table, level = primals
    rows = jax.nn.one_hot(level, table.shape[0], dtype=table.dtype)
    return _look_up(table, level), jnp.matmul(
        rows, tangents[0], precision=jax.lax.Precision.HIGHEST
    )


_look_up = jax.jit(_look_up)  # so that each shape is traced once


def _near_one_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Draws N(1, 0.02^2)."""
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


def _rows_init(scales: Callable, num_scales: int) -> Callable:
    """Returns an initializer of rows: `num_scales` vectors drawn by `scales`, and a beta of zero."""

    def init(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
        num_levels, width = shape
        channels = width // (num_scales + 1)
        drawn = scales(key, (num_levels, num_scales * channels), dtype)
        return jnp.pad(drawn, ((0, 0), (0, channels)))

    return init


_uniform_init = _rows_init(jax.random.uniform, 1)
unit_scale_shift_init = _rows_init(nn.initializers.ones, 1)


def _add_class(rows: jax.Array, classes: jax.Array, num_classes: int) -> jax.Array:
    """Adds the rows of the examples' classes to `[B, W]`, inside a layer's compact call."""
    return rows + ClassEmbedding(num_classes, rows.shape[1], name="classes")(classes)


class ConditionalInstanceNorm(nn.Module):
    """Conditional instance normalization (Dumoulin et al., 2017; NCSN, appendix A.1, equation 9).

        z_k = gamma[i, k] * (x_k - mu_k) / s_k + beta[i, k]

    with the symbols of `normalize`. gamma and beta, in this order, are rows of one table
    `embedding: [num_levels, 2 C]`.

    Args:
      num_levels: rows of the table.
      embedding_init: the table's initializer; by default gamma from U(0, 1), as in the authors' code (its
        comment says otherwise), and beta zero.
      activate: whether ELU follows.
      num_classes: the number of classes; 0 for none.
    """

    num_levels: int
    embedding_init: Callable = _uniform_init
    activate: bool = False
    num_classes: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, level: Condition) -> jax.Array:
        level, classes = level if self.num_classes else (level, None)
        shape = self.num_levels, 2 * x.shape[-1]
        table = self.param("embedding", self.embedding_init, shape, jnp.float32)
        rows = _look_up(table, level)
        if self.num_classes:
            rows = _add_class(rows, classes, self.num_classes)
        gamma, beta = jnp.split(rows, 2, axis=1)
        return normalize(x, gamma, None, beta, activate=self.activate)


class ConditionalInstanceNormPlus(nn.Module):
    """Conditional instance normalization++ (NCSN, appendix A.1, equation 10).

        z_k = gamma[i, k] * ((x_k - mu_k) / s_k + alpha[i, k] * (mu_k - m) / v) + beta[i, k]

    with the symbols of `normalize`. gamma, alpha and beta, in this order, are rows of one table
    `embedding: [num_levels, 3 C]`. Initially gamma and alpha are from N(1, 0.02^2), and beta is zero. As in
    the authors' code, and unlike the printed equation, gamma also scales the alpha term; the variance over
    channels is unbiased. x needs at least two channels.

    Args:
      num_levels: rows of the table.
      activate: whether ELU follows.
      num_classes: the number of classes; 0 for none.
    """

    num_levels: int
    activate: bool = False
    num_classes: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, level: Condition) -> jax.Array:
        level, classes = level if self.num_classes else (level, None)
        shape = self.num_levels, 3 * x.shape[-1]
        table = self.param("embedding", _rows_init(_near_one_init, 2), shape, jnp.float32)
        rows = _look_up(table, level)
        if self.num_classes:
            rows = _add_class(rows, classes, self.num_classes)
        gamma, alpha, beta = jnp.split(rows, 3, axis=1)
        return normalize(x, gamma, alpha, beta, activate=self.activate)


class InstanceNormPlus(nn.Module):
    """Unconditional instance normalization++ (NCSNv2, appendix A).

    It has vectors gamma, alpha, beta `[C]` instead of a table's rows, and ignores the level.

    Args:
      activate: whether ELU follows.
      num_classes: the number of classes; 0 for none.
    """

    activate: bool = False
    num_classes: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, level: Condition) -> jax.Array:
        shape = x.shape[-1:]
        gamma, alpha = (
            self.param(name, _near_one_init, shape, jnp.float32) for name in ("gamma", "alpha")
        )
        beta = self.param("beta", nn.initializers.zeros_init(), shape, jnp.float32)
        each = [jnp.broadcast_to(a, (x.shape[0], *shape)) for a in (gamma, alpha, beta)]
        if self.num_classes:
            rows = _add_class(jnp.concatenate(each, axis=1), level[1], self.num_classes)
            each = jnp.split(rows, 3, axis=1)
        return normalize(x, *each, activate=self.activate)


class GroupNorm(nn.Module):
    """Group normalization (Wu & He, 2018), with moments over H, W and a group of channels.

    It has min(C // 4, 32) groups of neighbouring channels, C >= 4. Scale gamma and shift beta `[C]` start at
    one and zero. It ignores the level.
    """

    EPSILON = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array | None = None) -> jax.Array:
        del level
        *outer, channels = x.shape
        groups = min(channels // 4, 32)
        if groups == 0 or channels % groups:
            raise ValueError(
                f"GroupNorm needs at least 4 channels, in groups of equal size, got {channels} "
                f"channels for {groups} groups"
            )
        gamma = self.param("gamma", nn.initializers.ones_init(), (channels,), jnp.float32)
        beta = self.param("beta", nn.initializers.zeros_init(), (channels,), jnp.float32)
        h = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        h = h.reshape(*outer, groups, channels // groups)
        h = h - jnp.mean(h, axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(h), axis=(1, 2, 4), keepdims=True)
        h = (h * jax.lax.rsqrt(variance + self.EPSILON)).reshape(x.shape)
        return (h * gamma[None, None, None, :] + beta[None, None, None, :]).astype(x.dtype)
