"""The score network of NCSN (Song & Ermon, 2019, appendix A), as the authors trained it.

It is a four-stage RefineNet with conditional instance normalization in every block. After the first halving,
its residual blocks dilate instead of downsampling. The level's index enters only through the
normalization. The output is the score itself, *not* divided by sigma.
"""

import functools
from typing import Any

import flax.linen as nn
import jax

from ncsn_jax import _checks as check
from ncsn_jax.models.blocks import of_classes, refine_net
from ncsn_jax.models.layers import average_pool5
from ncsn_jax.models.normalization import ConditionalInstanceNorm, ConditionalInstanceNormPlus

NORMALIZATIONS = {
    "instance++": ConditionalInstanceNormPlus,
    "instance": ConditionalInstanceNorm,
}


class NCSN(nn.Module):
    """NCSN's RefineNet with conditional instance normalization, ++ or plain.

    `model.init(key, x, level)` returns the parameters and `model.apply(params, x, level)` the score.

    Args:
      features: channels of the first stage, n >= 2; the deeper stages have 2n. Published: 64 for
        MNIST (7,638,657 parameters at 28x28x1), 128 for CIFAR-10 and CelebA (30,117,635 at 32x32x3).
      num_levels: the number of noise levels L. Published: 10.
      normalization: 'instance++', which also normalizes the channels' means (published), or
        'instance', the plain variant in the authors' code.
      remat: keep only the blocks' inputs for the backward pass, and recompute the rest.
      dtype: the type between the first convolution and the last normalization, such as bfloat16; None is
        the type of x. Parameters are float32, and the score has the type of x.
      num_classes: K, the number of classes; 0 for a network without them. Every normalization adds a row for
        the class to the level's. The rows start at zero. The published networks have none.

    The call takes

    - x: `[B, H, W, C]` images in [0, 1] plus noise, H and W even; the network rescales by 2x - 1;
    - level: `int[B]` in [0, L), 0 for the largest sigma;
    - classes: `int[B]` in [0, K], K for no class, or None for no class in the whole batch;

    and returns the score, `[B, H, W, C]`, of the type of x.

    Raises:
      ValueError: if x is not a batch of floating-point images, or a known level is not in the ladder, or a
        known class does not exist.
    """

    features: int = 128
    num_levels: int = 10
    normalization: str = "instance++"
    remat: bool = False
    dtype: Any = None
    num_classes: int = 0

    HALVINGS = 1  # how often the sides are halved
    STAGES = (
        ("res1", 1, {}),
        ("res2", 2, {"down": True}),
        ("res3", 2, {"down": True, "dilation": 2}),
        ("res4", 2, {"down": True, "dilation": 4}),
    )
    REFINEMENTS = ("refine1", "refine2", "refine3", "refine4")

    @nn.compact
    def __call__(
        self, x: jax.Array, level: jax.Array, classes: jax.Array | None = None
    ) -> jax.Array:
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(
                f"normalization must be one of {list(NORMALIZATIONS)}, got {self.normalization!r}"
            )
        x, level = check.inputs(self, x, level, levels=self.num_levels)
        norm, level = of_classes(self, NORMALIZATIONS[self.normalization], level, classes)
        norm = functools.partial(norm, self.num_levels)
        return refine_net(self, x, level, norm=norm, refine_norm=norm, pool=average_pool5)
