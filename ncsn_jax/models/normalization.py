"""Normalization layers of the score networks.

Every layer maps `(x, level)` to an array like `x`, with `x: [B, H, W, C]` and `level: int[B]`, the
index of each example's noise level. Layers that are not conditioned on the level ignore it, so that
blocks can be written once for all of them. The statistics are taken per example over the spatial
axes, in two passes, and never mix examples; they and the affine map are in float32 at least, and the
result is in the type of x.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

EPSILON = 1e-5


def _spatial_moments(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `(x - mean, mean, biased variance)` of each example and channel, over H and W."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(x, axis=(1, 2), keepdims=True)
    centred = x - mean
    return centred, mean, jnp.mean(jnp.square(centred), axis=(1, 2), keepdims=True)


def _standardized_means(mean: jax.Array) -> jax.Array:
    """Standardizes the channel means `[B, 1, 1, C]` over C with the unbiased variance (C >= 2)."""
    centred = mean - jnp.mean(mean, axis=-1, keepdims=True)
    variance = jnp.sum(jnp.square(centred), axis=-1, keepdims=True) / (mean.shape[-1] - 1)
    return centred * jax.lax.rsqrt(variance + EPSILON)


def _normalize_plus(x: jax.Array, gamma: jax.Array, alpha: jax.Array, beta: jax.Array) -> jax.Array:
    """Instance normalization++ of x with coefficients that broadcast against `[B, 1, 1, C]`."""
    centred, mean, variance = _spatial_moments(x)
    shift = gamma * alpha * _standardized_means(mean) + beta
    return (centred * (gamma * jax.lax.rsqrt(variance + EPSILON)) + shift).astype(x.dtype)


def _near_one_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """N(1, 0.02^2)."""
    return 1.0 + 0.02 * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


def _scale_scale_shift_init(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    """Rows (gamma, alpha, beta): gamma and alpha from N(1, 0.02^2), beta zero."""
    num_levels, width = shape
    drawn = 2 * width // 3
    scales = _near_one_init(key, (num_levels, drawn), dtype)
    return jnp.concatenate([scales, jnp.zeros((num_levels, width - drawn), dtype)], axis=1)


def _uniform_scale_shift_init(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32):
    """Rows (gamma, beta): gamma from U(0, 1), beta zero."""
    num_levels, width = shape
    scales = jax.random.uniform(key, (num_levels * width // 2,), dtype).reshape(num_levels, -1)
    return jnp.concatenate([scales, jnp.zeros_like(scales)], axis=1)


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

    Args of the call:
      x: `[B, H, W, C]`.
      level: `int[B]` in [0, num_levels).
    """

    num_levels: int
    embedding_init: Callable = _uniform_scale_shift_init

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        table = self.param("embedding", self.embedding_init, (self.num_levels, 2 * x.shape[-1]))
        gamma, beta = jnp.split(jnp.asarray(table)[level][:, None, None, :], 2, axis=-1)
        centred, _, variance = _spatial_moments(x)
        return (centred * (gamma * jax.lax.rsqrt(variance + EPSILON)) + beta).astype(x.dtype)


class ConditionalInstanceNormPlus(nn.Module):
    """Conditional instance normalization++ (NCSN, appendix A.1, equation 10).

    For channel k of one example, with spatial mean mu_k and standard deviation s_k, and with m and v
    the mean and the standard deviation of mu_1 ... mu_C:

        z_k = gamma[i, k] * ((x_k - mu_k) / s_k + alpha[i, k] * (mu_k - m) / v) + beta[i, k]

    gamma, alpha and beta are rows of one table, `embedding: [num_levels, 3 C]`, in this order. Like
    the authors' code, and unlike the equation as printed, gamma also scales the alpha term; the
    variance over channels is the unbiased one.

    Args of the call:
      x: `[B, H, W, C]`, C >= 2.
      level: `int[B]` in [0, num_levels).
    """

    num_levels: int

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        table = self.param("embedding", _scale_scale_shift_init, (self.num_levels, 3 * channels))
        gamma, alpha, beta = jnp.split(jnp.asarray(table)[level][:, None, None, :], 3, axis=-1)
        return _normalize_plus(x, gamma, alpha, beta)


class InstanceNormPlus(nn.Module):
    """Instance normalization++ (NCSNv2, appendix A), the same as above for all noise levels.

    Like the conditional one with vectors gamma, alpha, beta `[C]` in place of the table's rows; the
    level is not looked at.
    """

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        del level
        shape = x.shape[-1:]
        gamma, alpha = (self.param(name, _near_one_init, shape) for name in ("gamma", "alpha"))
        beta = self.param("beta", nn.initializers.zeros_init(), shape)
        gamma, alpha, beta = (a[None, None, None, :] for a in (gamma, alpha, beta))
        return _normalize_plus(x, gamma, alpha, beta)


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
        gamma = self.param("gamma", nn.initializers.ones_init(), (channels,))
        beta = self.param("beta", nn.initializers.zeros_init(), (channels,))
        h = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        h = h.reshape(*outer, groups, channels // groups)
        h = h - jnp.mean(h, axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(h), axis=(1, 2, 4), keepdims=True)
        h = (h * jax.lax.rsqrt(variance + self.EPSILON)).reshape(x.shape)
        return (h * gamma[None, None, None, :] + beta[None, None, None, :]).astype(x.dtype)
