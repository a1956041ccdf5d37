"""The score networks of NCSNv2 (Song & Ermon, 2020, appendix B.1), for three ranges of resolution.

Unconditional RefineNets: the noise level enters only through the output, which is divided by sigma
(technique 3, s(x, sigma) = s(x) / sigma). Normalization (instance normalization++) is in the residual
blocks and before the last convolution only; the refinement blocks have none and pool by maximum.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncsn_jax.models.blocks import RefineBlock, ResidualBlock, rematerialized
from ncsn_jax.models.layers import Conv, max_pool5
from ncsn_jax.models.normalization import InstanceNormPlus


class RefineNet(nn.Module):
    """What the three networks share: two tables describe a chain of stages and their refinement.

    `model.init(key, x, level)` returns the parameters and `model.apply(params, x, level)` the score.

    STAGES lists (name, channels as a multiple of `features`, options of the first block), from the
    finest; REFINEMENTS lists (name, the stage merged with the result so far, channels), from the
    coarsest. Every result has the shape of the finer of its inputs.

    Args:
      features: channels n of the first stage. Published: 128.
      sigmas: `[L]`, the ladder.
      remat: keep only the inputs of the blocks for the backward pass, and compute the rest again.
      dtype: what is between the first convolution and the last normalization computes in this type, such
        as bfloat16; None is the type of x. Parameters keep theirs, and the score has the type of x.

    Args of the call:
      x: `[B, H, W, C]` images in [0, 1] plus noise; the network rescales by 2x - 1. H and W are
        multiples of 2 to the number of halving stages.
      level: `int[B]` in [0, L), 0 for the largest sigma.

    Returns:
      The score, `[B, H, W, C]`.
    """

    features: int
    sigmas: jax.Array
    remat: bool = False
    dtype: Any = None

    STAGES = ()
    REFINEMENTS = ()
    HALVINGS = 0  # how often the sides are halved

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        x = jnp.asarray(x)
        _, height, width, channels = x.shape
        factor = 2**self.HALVINGS
        if height % factor or width % factor:
            raise ValueError(
                f"{type(self).__name__} needs a height and width that are multiples of {factor}, "
                f"got {height}x{width}"
            )
        n, norm = self.features, InstanceNormPlus
        residual = rematerialized(ResidualBlock, self.remat)
        refine = rematerialized(RefineBlock, self.remat)
        h = Conv(n, name="begin_conv")(2.0 * x - 1.0)
        h = h.astype(self.dtype or x.dtype)
        outputs = {}
        for name, multiple, options in self.STAGES:
            dilation = options.get("dilation", 1)
            h = residual(multiple * n, norm, name=f"{name}_0", **options)(h, level)
            h = residual(multiple * n, norm, dilation=dilation, name=f"{name}_1")(h, level)
            outputs[name] = h

        r = None
        for name, stage, multiple in self.REFINEMENTS:
            h = outputs[stage]
            r = refine(
                multiple * n,
                h.shape[1:3],
                None,
                max_pool5,
                end=name == self.REFINEMENTS[-1][0],
                name=name,
            )([h] if r is None else [h, r], level)
        r = norm(name="normalizer", activate=True)(r.astype(x.dtype), level)
        r = Conv(channels, name="end_conv")(r)
        return r / jnp.asarray(self.sigmas)[level][:, None, None, None]


class NCSNv2(RefineNet):
    """The network of NCSNv2 for 32x32 and 64x64 pixels: 29,694,083 parameters at n = 128, C = 3.

    Its arguments and its call are those of `RefineNet`.
    """

    HALVINGS = 1
    STAGES = (
        ("res1", 1, {}),
        ("res2", 2, {"down": True}),
        ("res3", 2, {"down": True, "dilation": 2}),
        ("res4", 2, {"down": True, "dilation": 4}),
    )
    REFINEMENTS = (
        ("refine1", "res4", 2),
        ("refine2", "res3", 2),
        ("refine3", "res2", 1),
        ("refine4", "res1", 1),
    )


class NCSNv2Deeper(RefineNet):
    """The network of NCSNv2 for 96x96 and 128x128 pixels: 83,445,379 parameters at n = 128, C = 3.

    Its arguments and its call are those of `RefineNet`.
    """

    HALVINGS = 2
    STAGES = (
        ("res1", 1, {}),
        ("res2", 2, {"down": True}),
        ("res3", 2, {"down": True}),
        ("res4", 4, {"down": True, "dilation": 2}),
        ("res5", 4, {"down": True, "dilation": 4}),
    )
    REFINEMENTS = (
        ("refine1", "res5", 4),
        ("refine2", "res4", 2),
        ("refine3", "res3", 2),
        ("refine4", "res2", 1),
        ("refine5", "res1", 1),
    )


class NCSNv2Deepest(RefineNet):
    """The network of NCSNv2 for 256x256 pixels: 94,132,611 parameters at n = 128, C = 3.

    Its arguments and its call are those of `RefineNet`.
    """

    HALVINGS = 3
    STAGES = (
        ("res1", 1, {}),
        ("res2", 2, {"down": True}),
        ("res3", 2, {"down": True}),
        ("res31", 2, {"down": True}),
        ("res4", 4, {"down": True, "dilation": 2}),
        ("res5", 4, {"down": True, "dilation": 4}),
    )
    REFINEMENTS = (
        ("refine1", "res5", 4),
        ("refine2", "res4", 2),
        ("refine31", "res31", 2),
        ("refine3", "res3", 2),
        ("refine4", "res2", 1),
        ("refine5", "res1", 1),
    )
