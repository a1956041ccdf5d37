"""Normalization layers of the score networks.

Every layer maps `(x, level)` to an array like `x`, with `x: [B, H, W, C]` and `level: int[B]`, the
index of each example's noise level. Layers that are not conditioned on the level ignore it, so that
blocks can be written once for all of them. The statistics are taken per example over the spatial
axes, in two passes, and never mix examples; they and the affine map are in float32 at least, and the
result is in the type of x.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncsn_jax.models.parameters import parameter

EPSILON = 1e-5


def _over_pixels(a: jax.Array) -> jax.Array:
    """Spreads `[B, C]` over the pixels of `[B, H, W, C]`."""
    return a[:, None, None, :]


def _centred_means(sums: jax.Array, count: int) -> jax.Array:
    """Divides `[B, C]` by a count and subtracts the mean over C, as one product with a matrix."""
    channels = sums.shape[-1]
    centring = (jnp.eye(channels, dtype=sums.dtype) - 1.0 / channels) / count
    return jnp.matmul(sums, centring, precision=jax.lax.Precision.HIGHEST)


def _unbiased_mean(a: jax.Array) -> jax.Array:
    """The sum of `[B, C]` over C, divided by C - 1, for each of C again; a product as above."""
    channels = a.shape[-1]
    summing = jnp.full((channels, channels), 1.0 / (channels - 1), a.dtype)
    return jnp.matmul(a, summing, precision=jax.lax.Precision.HIGHEST)


class _Moments(NamedTuple):
    """What an image and its coefficients are reduced to, `[B, C]` but for `centred`, `[B, H, W, C]`."""

    centred: jax.Array
    inverse_deviation: jax.Array
    standardized_mean: jax.Array | None
    mean_inverse_deviation: jax.Array | None


def _moments(x: jax.Array, of_means: bool) -> _Moments:
    """Takes the moments over the pixels, and those of the means over the channels (`of_means`)."""
    sums, count = jnp.sum(x, axis=(1, 2)), x.shape[1] * x.shape[2]
    centred = x - _over_pixels(sums / count)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=(1, 2)) + EPSILON)
    if not of_means:
        return _Moments(centred, inverse, None, None)
    mean = _centred_means(sums, count)
    mean_inverse = jax.lax.rsqrt(_unbiased_mean(jnp.square(mean)) + EPSILON)
    return _Moments(centred, inverse, mean * mean_inverse, mean_inverse)


def _combine(moments: _Moments, gamma, alpha, beta, activate: bool) -> jax.Array:
    shift = beta if alpha is None else gamma * alpha * moments.standardized_mean + beta
    scale = gamma * moments.inverse_deviation
    z = moments.centred * _over_pixels(scale) + _over_pixels(shift)
    return jax.nn.elu(z) if activate else z


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _normalize(x, gamma, alpha, beta, activate: bool) -> jax.Array:
    return _combine(_moments(x, alpha is not None), gamma, alpha, beta, activate)


@_normalize.defjvp
def _normalize_jvp(activate: bool, primals, tangents):
    """The derivative by hand: fewer and larger operations than differentiating each step leaves."""
    x, gamma, alpha, beta = primals
    dx, dgamma, dalpha, dbeta = tangents
    moments = _moments(x, alpha is not None)
    centred, inverse, standardized, mean_inverse = moments
    z = _combine(moments, gamma, alpha, beta, activate)

    scale, dsums, count = gamma * inverse, jnp.sum(dx, axis=(1, 2)), x.shape[1] * x.shape[2]
    dmean = dsums / count
    covariance = jnp.mean(dx * centred, axis=(1, 2))
    dscale = dgamma * inverse - scale * jnp.square(inverse) * covariance
    dshift = dbeta - scale * dmean
    if alpha is not None:
        dcentred = _centred_means(dsums, count)
        dstandardized = mean_inverse * (
            dcentred - standardized * _unbiased_mean(standardized * dcentred)
        )
        dshift += (dgamma * alpha + gamma * dalpha) * standardized + gamma * alpha * dstandardized
    dz = dx * _over_pixels(scale) + centred * _over_pixels(dscale) + _over_pixels(dshift)
    return z, dz * jnp.where(z > 0.0, 1.0, z + 1.0) if activate else dz


def normalize(
    x: jax.Array,
    gamma: jax.Array,
    alpha: jax.Array | None,
    beta: jax.Array,
    *,
    activate: bool = False,
) -> jax.Array:
    """Instance normalization++, and ELU after it.

    Args:
      x: `[B, H, W, C]`.
      gamma, alpha, beta: `[B, C]`, the coefficients of `ConditionalInstanceNormPlus`; without alpha its
        term in the channels' means is left out, which otherwise needs C >= 2.
      activate: whether ELU follows.

    Returns:
      An array like x.
    """
    h = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    coefficients = (None if a is None else a.astype(h.dtype) for a in (gamma, alpha, beta))
    return _normalize(h, *coefficients, activate).astype(x.dtype)


# Traced once for each shape, and not once for each layer, like what `layers` has.
@functools.partial(jax.jit, static_argnames=("activate",))
def _normalize_by_vectors(x, gamma, alpha, beta, *, activate: bool) -> jax.Array:
    each = x.shape[0], x.shape[-1]
    gamma, alpha, beta = (jnp.broadcast_to(a, each) for a in (gamma, alpha, beta))
    return normalize(x, gamma, alpha, beta, activate=activate)


@jax.custom_jvp
def _look_up(table, level) -> jax.Array:
    """The rows of a table `[L, W]` at `int[B]` in [0, L).

    In a derivative, what is not finite in one row is not finite in all.
    """
    return jnp.asarray(table)[level]


@_look_up.defjvp
def _look_up_jvp(primals, tangents):
    """A product, and so is its transpose: for a sum over rows XLA would compile a loop for each table."""
    table, level = primals
    rows = jax.nn.one_hot(level, table.shape[0], dtype=table.dtype)
    return _look_up(table, level), jnp.matmul(
        rows, tangents[0], precision=jax.lax.Precision.HIGHEST
    )


@functools.partial(jax.jit, static_argnames=("plus", "activate"))
def _normalize_by_table(x, table, level, *, plus: bool, activate: bool) -> jax.Array:
    rows, channels = _look_up(table, level), x.shape[-1]
    # Slices, since for the transpose of a split XLA would compile a copy for each table.
    parts = [rows[:, i * channels : (i + 1) * channels] for i in range(3 if plus else 2)]
    gamma, alpha, beta = parts if plus else (parts[0], None, parts[1])
    return normalize(x, gamma, alpha, beta, activate=activate)


# One program for each shape, which is sooner compiled than one for each operation.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _near_one_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """N(1, 0.02^2)."""
    return 1.0 + 0.02 * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _scale_scale_shift_init(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    """Rows (gamma, alpha, beta): gamma and alpha from N(1, 0.02^2), beta zero."""
    num_levels, width = shape
    drawn = 2 * width // 3
    scales = _near_one_init(key, (num_levels, drawn), dtype)
    return jnp.concatenate([scales, jnp.zeros((num_levels, width - drawn), dtype)], axis=1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _uniform_scale_shift_init(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32):
    """Rows (gamma, beta): gamma from U(0, 1), beta zero."""
    num_levels, width = shape
    scales = jax.random.uniform(key, (num_levels * width // 2,), dtype).reshape(num_levels, -1)
    return jnp.concatenate([scales, jnp.zeros_like(scales)], axis=1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def unit_scale_shift_init(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    """Rows (gamma, beta) of ones and zeros."""
    del key
    ones = jnp.ones((shape[0], shape[1] // 2), dtype)
    return jnp.concatenate([ones, jnp.zeros_like(ones)], axis=1)


class ConditionalInstanceNorm(nn.Module):
    """Conditional instance normalization (Dumoulin et al., 2017; NCSN, appendix A.1, equation 9).

        z_k = gamma[i, k] * (x_k - mu_k) / s_k + beta[i, k]

    with the symbols of `ConditionalInstanceNormPlus`, without its term in the channel means. gamma and
    beta are rows of one table, `embedding: [num_levels, 2 C]`, in this order.

    Args:
      num_levels: rows of the table.
      embedding_init: of the table; by default gamma from U(0, 1), as the authors' code does (its
        comment says otherwise), and beta zero.
      activate: whether ELU follows.

    Args of the call:
      x: `[B, H, W, C]`.
      level: `int[B]` in [0, num_levels).
    """

    num_levels: int
    embedding_init: Callable = _uniform_scale_shift_init
    activate: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        table = parameter(
            self, "embedding", self.embedding_init, (self.num_levels, 2 * x.shape[-1])
        )
        return _normalize_by_table(x, table, level, plus=False, activate=self.activate)


class ConditionalInstanceNormPlus(nn.Module):
    """Conditional instance normalization++ (NCSN, appendix A.1, equation 10).

    For channel k of one example, with spatial mean mu_k and standard deviation s_k, and with m and v
    the mean and the standard deviation of mu_1 ... mu_C:

        z_k = gamma[i, k] * ((x_k - mu_k) / s_k + alpha[i, k] * (mu_k - m) / v) + beta[i, k]

    gamma, alpha and beta are rows of one table, `embedding: [num_levels, 3 C]`, in this order. Like
    the authors' code, and unlike the equation as printed, gamma also scales the alpha term; the
    variance over channels is the unbiased one.

    Args:
      num_levels: rows of the table.
      activate: whether ELU follows.

    Args of the call:
      x: `[B, H, W, C]`, C >= 2.
      level: `int[B]` in [0, num_levels).
    """

    num_levels: int
    activate: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        table = parameter(
            self, "embedding", _scale_scale_shift_init, (self.num_levels, 3 * channels)
        )
        return _normalize_by_table(x, table, level, plus=True, activate=self.activate)


class InstanceNormPlus(nn.Module):
    """Instance normalization++ (NCSNv2, appendix A), the same as above for all noise levels.

    Like the conditional one with vectors gamma, alpha, beta `[C]` in place of the table's rows; the
    level is not looked at.

    Args:
      activate: whether ELU follows.
    """

    activate: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        del level
        shape = x.shape[-1:]
        gamma, alpha = (parameter(self, name, _near_one_init, shape) for name in ("gamma", "alpha"))
        beta = parameter(self, "beta", nn.initializers.zeros_init(), shape)
        return _normalize_by_vectors(x, gamma, alpha, beta, activate=self.activate)


class GroupNorm(nn.Module):
    """Group normalization (Wu & He, 2018): the moments are those of H, W and a group of channels.

    There are min(C // 4, 32) groups of neighbouring channels; scale gamma and shift beta `[C]` start
    from one and zero. The level is not looked at.

    Args of the call:
      x: `[B, H, W, C]`, C >= 4.
    """

    EPSILON = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array | None = None) -> jax.Array:
        del level
        *outer, channels = x.shape
        groups = min(channels // 4, 32)
        if groups == 0 or channels % groups:
            raise ValueError(
                f"GroupNorm needs at least 4 channels in groups of one size, got {channels} channels "
                f"for {groups} groups"
            )
        gamma = parameter(self, "gamma", nn.initializers.ones_init(), (channels,))
        beta = parameter(self, "beta", nn.initializers.zeros_init(), (channels,))
        h = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        h = h.reshape(*outer, groups, channels // groups)
        h = h - jnp.mean(h, axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(h), axis=(1, 2, 4), keepdims=True)
        h = (h * jax.lax.rsqrt(variance + self.EPSILON)).reshape(x.shape)
        return (h * gamma[None, None, None, :] + beta[None, None, None, :]).astype(x.dtype)
