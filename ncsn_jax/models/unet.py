"""Building blocks of U-Nets conditioned on an embedding of the noise level.

They are the residual blocks of DDPM (Ho et al., 2020) and BigGAN (Brock et al., 2019), which also resample,
and self-attention over the pixels. Arrays are `[B, H, W, C]`, embeddings `[B, E]`. Everything but the
statistics and the softmax computes in the type of x. With an `init_scale` of zero, blocks start almost as
the identity. `skip_rescale` divides the sum of a block's two branches by the root of two, which keeps its
variance.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncsn_jax.models.layers import Conv, Dense
from ncsn_jax.models.normalization import GroupNorm
from ncsn_jax.models.resampling import Taps, downsample, upsample

# The initial variance scale of pointwise maps in side branches.
_POINTWISE_SCALE = 0.1

RESAMPLINGS = {"up": upsample, "down": downsample}


def merged(x: jax.Array, h: jax.Array, rescale: bool) -> jax.Array:
    """Adds two branches, and divides by the root of two if `rescale`."""
    return (x + h) / math.sqrt(2.0) if rescale else x + h


class ResnetBlock(nn.Module):
    """Two normalized, activated 3x3 convolutions with a shortcut, and the embedding added in between.

    Args:
      features: output channels.
      biggan: use BigGAN's block, which can resample and has a convolution as its shortcut; DDPM's shortcut
        has a smaller initial kernel.
      resampling: 'up' or 'down' doubles or halves H and W of both branches before the first convolution;
        None keeps them.
      taps: the resampling filter's taps, or None.
      skip_rescale: divide the sum by the root of two.
      init_scale: factor of the variance of the last convolution's initial kernel.
      dropout: the dropout rate before the last convolution, with the rng 'dropout'; 0 needs no rng.

    Args of the call:
      x: `[B, H, W, C]`.
      embedding: `[B, E]`, before its activation.
    """

    features: int
    biggan: bool = True
    resampling: str | None = None
    taps: Taps | None = None
    skip_rescale: bool = False
    init_scale: float = 0.0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        h = nn.silu(GroupNorm(name="normalize1")(x))
        if self.resampling:
            resample = RESAMPLINGS[self.resampling]
            h, x = resample(h, self.taps), resample(x, self.taps)
        h = Conv(self.features, xavier=True, name="conv1")(h)
        embedding = nn.silu(embedding).astype(h.dtype)
        h = h + Dense(self.features, name="embed")(embedding)[:, None, None, :]
        h = nn.silu(GroupNorm(name="normalize2")(h))
        if self.dropout > 0:
            h = drop_out(self.make_rng("dropout"), h, self.dropout)
        h = Conv(self.features, xavier=True, scale=self.init_scale, name="conv2")(h)
        if self.biggan and (self.resampling or x.shape[-1] != self.features):
            x = Conv(self.features, kernel_size=1, xavier=True, name="shortcut")(x)
        elif x.shape[-1] != self.features:
            x = Dense(self.features, scale=_POINTWISE_SCALE, name="shortcut")(x)
        return merged(x, h, self.skip_rescale)


def drop_out(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    """Drops each value with probability `rate`, and scales the others to keep the mean."""
    stays = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(stays, x / (1.0 - rate), 0.0)


class Attention(nn.Module):
    """Single-head self-attention over all H W pixels, with a skip connection.

    Args:
      skip_rescale: divide the sum by the root of two.
      init_scale: factor of the variance of the last map's initial kernel.
    """

    skip_rescale: bool = False
    init_scale: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = GroupNorm(name="normalize")(x).reshape(batch, height * width, channels)
        query, key, value = (
            Dense(channels, scale=_POINTWISE_SCALE, name=name)(h)
            for name in ("query", "key", "value")
        )
        at_least_float32 = jnp.promote_types(x.dtype, jnp.float32)
        logits = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=at_least_float32)
        weights = jax.nn.softmax(logits / math.sqrt(channels), axis=-1)
        h = jnp.einsum("bqk,bkc->bqc", weights.astype(x.dtype), value)
        h = Dense(channels, scale=self.init_scale, name="output")(h)
        return merged(x, h.reshape(x.shape), self.skip_rescale)
