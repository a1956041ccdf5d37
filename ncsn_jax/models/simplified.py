"""A simplified NCSN: one width, one resolution, plain conditional instance normalization.

It follows a small, widely copied PyTorch reimplementation: four stages of dilated residual units at full
resolution instead of downsampling, refined as in RefineNet, with an output divided by sigma as in NCSNv2. It
uses the parts in `blocks`, but has four poolings, and activates before every convolution of fusion and
pooling, all with a bias.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncsn_jax import _checks as check
from ncsn_jax.models.blocks import (
    ChainedResidualPooling,
    MultiResolutionFusion,
    NormFactory,
    ResidualBlock,
    of_classes,
    rematerialized,
)
from ncsn_jax.models.layers import Conv, max_pool5
from ncsn_jax.models.normalization import ConditionalInstanceNorm, unit_scale_shift_init

_DILATIONS = (1, 2, 4, 8)

XavierConv = functools.partial(Conv, xavier=True)


class _Units(nn.Module):
    """Two residual units that keep the number of channels."""

    norm: NormFactory
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        for unit in range(2):
            options = {"dilation": self.dilation, "conv": XavierConv, "name": f"unit_{unit}"}
            x = ResidualBlock(x.shape[-1], self.norm, **options)(x, level)
        return x


class _Refine(nn.Module):
    """Applies units to every input, then fusion, chained pooling and units.

    A single input is not fused, but its fusion still has unused parameters, to match the original's tree.
    """

    norm: NormFactory

    @nn.compact
    def __call__(self, inputs: list[jax.Array], level: jax.Array) -> jax.Array:
        adapted = [_Units(self.norm, name=f"adapt_{i}")(x, level) for i, x in enumerate(inputs)]
        options = {"conv": XavierConv, "activate": True}
        h = adapted[0]
        n, shape = h.shape[-1], h.shape[1:3]
        fusion = MultiResolutionFusion(n, shape, self.norm, **options, name="fusion")
        if len(adapted) > 1 or self.is_initializing():
            fused = fusion(adapted, level)
            h = fused if len(adapted) > 1 else h
        pooling = ChainedResidualPooling(4, self.norm, max_pool5, **options, name="pooling")
        h = pooling(h, level)
        return _Units(self.norm, name="output")(h, level)


class SimplifiedNCSN(nn.Module):
    """The simplified NCSN: 3,176,067 parameters at n = 64, L = 10, C = 3.

    The original works in [-1, 1] throughout, including sigmas. Here images are in [0, 1], so sigmas are half
    as large. The network sees 2x - 1 and its output F is divided by sigma, so F / sigma is the score in
    [0, 1], twice the original's.

    The call has the arguments and result of `NCSN`'s, with any H and W.

    Args:
      features: channels n of every layer. Published: 64.
      sigmas: `[L]`, the ladder. Published: 10 levels from 0.5 to 0.005 (there 1 to 0.01).
      remat, dtype, num_classes: as for `NCSN`.
    """

    features: int
    sigmas: jax.Array
    remat: bool = False
    dtype: Any = None
    num_classes: int = 0

    HALVINGS = 0  # how often the sides are halved

    @nn.compact
    def __call__(
        self, x: jax.Array, level: jax.Array, classes: jax.Array | None = None
    ) -> jax.Array:
        sigmas = jnp.asarray(self.sigmas)
        x, level = check.inputs(self, x, level, levels=sigmas.shape[0])
        sigma = sigmas[level]
        norm, level = of_classes(self, ConditionalInstanceNorm, level, classes)
        norm = functools.partial(norm, sigmas.shape[0], embedding_init=unit_scale_shift_init)
        units = rematerialized(_Units, self.remat)
        refine = rematerialized(_Refine, self.remat)
        h = XavierConv(self.features, name="begin_conv")(2.0 * x - 1.0)
        h = h.astype(self.dtype or x.dtype)
        stages = []
        for i, dilation in enumerate(_DILATIONS, start=1):
            h = units(norm, dilation, name=f"stage{i}")(h, level)
            stages.append(h)

        r = refine(norm, name="refine4")([stages[3]], level)
        for i in (3, 2, 1):
            r = refine(norm, name=f"refine{i}")([stages[i - 1], r], level)

        r = norm(name="normalizer", activate=True)(r.astype(x.dtype), level)
        r = XavierConv(x.shape[-1], name="end_conv")(r)
        return (r / sigma[:, None, None, None]).astype(x.dtype)
