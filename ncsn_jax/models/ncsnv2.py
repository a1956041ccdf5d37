"""The score networks of NCSNv2 (Song & Ermon, 2020, appendix B.1), for three ranges of resolution.

They are unconditional RefineNets: the level enters only through the output, which is divided by sigma
(technique 3, s(x, sigma) = s(x) / sigma). Only the residual blocks and the last convolution's input have
instance normalization++. The refinement blocks have no normalization and use max pooling.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncsn_jax import _checks as check
from ncsn_jax.models.blocks import of_classes, refine_net
from ncsn_jax.models.layers import max_pool5
from ncsn_jax.models.ncsn import NCSN
from ncsn_jax.models.normalization import InstanceNormPlus


class RefineNet(nn.Module):
    """The base class of the three networks. `blocks.refine_net` describes their two tables.

    The call has the arguments and result of `NCSN`'s, but H and W must be multiples of 2^HALVINGS.

    Args:
      features: channels n of the first stage. Published: 128.
      sigmas: `[L]`, the ladder.
      remat, dtype, num_classes: as for `NCSN`.
    """

    features: int
    sigmas: jax.Array
    remat: bool = False
    dtype: Any = None
    num_classes: int = 0

    STAGES = ()
    REFINEMENTS = ()
    HALVINGS = 0  # how often the sides are halved

    @nn.compact
    def __call__(
        self, x: jax.Array, level: jax.Array, classes: jax.Array | None = None
    ) -> jax.Array:
        sigmas = jnp.asarray(self.sigmas)
        x, level = check.inputs(self, x, level, levels=sigmas.shape[0])
        norm, condition = of_classes(self, InstanceNormPlus, level, classes)
        h = refine_net(self, x, condition, norm=norm, refine_norm=None, pool=max_pool5)
        return (h / sigmas[level][:, None, None, None]).astype(x.dtype)


class NCSNv2(RefineNet):
    """The network of NCSNv2 for 32x32 and 64x64 pixels: 29,694,083 parameters at n = 128, C = 3.

    It has the stages of `NCSN`, and the arguments and call of `RefineNet`.
    """

    HALVINGS = NCSN.HALVINGS
    STAGES = NCSN.STAGES
    REFINEMENTS = NCSN.REFINEMENTS


class NCSNv2Deeper(RefineNet):
    """The network of NCSNv2 for 96x96 and 128x128 pixels: 83,445,379 parameters at n = 128, C = 3.

    It has the arguments and call of `RefineNet`.
    """

    HALVINGS = 2
    STAGES = (
        ("res1", 1, {}),
        ("res2", 2, {"down": True}),
        ("res3", 2, {"down": True}),
        ("res4", 4, {"down": True, "dilation": 2}),
        ("res5", 4, {"down": True, "dilation": 4}),
    )
    REFINEMENTS = ("refine1", "refine2", "refine3", "refine4", "refine5")


class NCSNv2Deepest(RefineNet):
    """The network of NCSNv2 for 256x256 pixels: 94,132,611 parameters at n = 128, C = 3.

    It has the arguments and call of `RefineNet`.
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
    REFINEMENTS = ("refine1", "refine2", "refine31", "refine3", "refine4", "refine5")
