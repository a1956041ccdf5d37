"""Building blocks of RefineNet score networks.

A RefineNet (Lin et al., 2017) is a chain of residual blocks. Refinement blocks merge their outputs, from the
coarsest to the finest, by residual convolution units (RCU), multi-resolution fusion (MSF) and chained
residual pooling (CRP). The normalization is an argument, so conditional and unconditional networks share the
code: `norm(name=..., activate=...)` makes a layer of `(x, level)`, followed by ELU if `activate`; `None`
means no normalization.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from ncsn_jax import _checks as check
from ncsn_jax.models.layers import Conv, average_pool5, elu, mean_pool, resize_bilinear

NormFactory = Callable[..., nn.Module]
ConvFactory = Callable[..., nn.Module]


def rematerialized(block: type[nn.Module], remat: bool) -> type[nn.Module]:
    """Returns a block that keeps only its inputs, and recomputes the rest in the backward pass.

    With `remat=False` it returns the block itself. Parameter names and values do not change.
    """
    return nn.remat(block) if remat else block


def _normalized(norm: NormFactory | None, name: str, x, level, activate: bool = False) -> jax.Array:
    """Normalizes unless `norm` is None, and applies ELU if `activate`."""
    if norm is None:
        return elu(x) if activate else x
    return norm(name=name, activate=activate)(x, level)


class ResidualBlock(nn.Module):
    """Two normalized, activated 3x3 convolutions with a shortcut.

    Args:
      features: output channels.
      norm: the normalization before each activation.
      down: widen to `features`. Without a dilation this also halves H and W (which must be even);
        with one the size stays, as the dilation enlarges the receptive field instead.
      dilation: of both 3x3 convolutions, and of the shortcut of a dilated `down` block.
      conv: makes the convolutions, with the arguments of `layers.Conv`; sets their initialisation.
    """

    features: int
    norm: NormFactory
    down: bool = False
    dilation: int = 1
    conv: ConvFactory = Conv

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        halve = self.down and self.dilation == 1
        inner = x.shape[-1] if self.down else self.features

        h = _normalized(self.norm, "normalize1", x, level, activate=True)
        h = self.conv(inner, dilation=self.dilation, name="conv1")(h)
        h = _normalized(self.norm, "normalize2", h, level, activate=True)
        h = self.conv(self.features, dilation=self.dilation, pooled=halve, name="conv2")(h)

        if halve:
            # A pointwise map and a mean commute.
            return self.conv(self.features, kernel_size=1, name="shortcut")(mean_pool(x)) + h
        if self.down or x.shape[-1] != self.features:
            x = self.conv(self.features, dilation=self.dilation, name="shortcut")(x)
        return x + h


class ResidualConvUnits(nn.Module):
    """`num_blocks` residual blocks of `num_stages` activated 3x3 convolutions without bias."""

    num_blocks: int
    num_stages: int
    norm: NormFactory | None

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        for block in range(self.num_blocks):
            h = x
            for stage in range(self.num_stages):
                h = _normalized(self.norm, f"norm_{block}_{stage}", h, level, activate=True)
                h = Conv(x.shape[-1], use_bias=False, name=f"conv_{block}_{stage}")(h)
            x = x + h
        return x


class MultiResolutionFusion(nn.Module):
    """Convolves every input to `features` channels, resizes it to `shape` and sums the results.

    With `activate` it applies ELU before each convolution.
    """

    features: int
    shape: tuple[int, int]
    norm: NormFactory | None
    conv: ConvFactory = Conv
    activate: bool = False

    @nn.compact
    def __call__(self, inputs: Sequence[jax.Array], level: jax.Array) -> jax.Array:
        total = 0.0
        for i, x in enumerate(inputs):
            h = _normalized(self.norm, f"norm_{i}", x, level, self.activate)
            h = self.conv(self.features, name=f"conv_{i}")(h)
            total = total + resize_bilinear(h, self.shape)
        return total


class ChainedResidualPooling(nn.Module):
    """Adds x and a chain of `num_stages` poolings, each followed by a 3x3 convolution.

    With `activate` it applies ELU before each pooling, otherwise once to x.
    """

    num_stages: int
    norm: NormFactory | None
    pool: Callable[[jax.Array], jax.Array] = average_pool5
    conv: ConvFactory = functools.partial(Conv, use_bias=False)
    activate: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        path = x = x if self.activate else elu(x)
        for stage in range(self.num_stages):
            path = self.pool(_normalized(self.norm, f"norm_{stage}", path, level, self.activate))
            path = self.conv(x.shape[-1], name=f"conv_{stage}")(path)
            x = x + path
        return x


class RefineBlock(nn.Module):
    """Merges feature maps of several resolutions into one of `features` channels and `shape`.

    Args:
      features: output channels; a single input keeps its own.
      shape: (height, width) of the output.
      norm: the normalization of all parts, or None.
      pool: the 5x5 pooling of the chained residual pooling.
      end: whether this is the last block, which has three output units instead of one.
    """

    features: int
    shape: tuple[int, int]
    norm: NormFactory | None
    pool: Callable[[jax.Array], jax.Array] = average_pool5
    end: bool = False

    @nn.compact
    def __call__(self, inputs: Sequence[jax.Array], level: jax.Array) -> jax.Array:
        adapted = [
            ResidualConvUnits(2, 2, self.norm, name=f"adapt_{i}")(x, level)
            for i, x in enumerate(inputs)
        ]
        if len(adapted) > 1:
            fusion = MultiResolutionFusion(self.features, self.shape, self.norm, name="fusion")
            h = fusion(adapted, level)
        else:
            h = adapted[0]
        h = ChainedResidualPooling(2, self.norm, self.pool, name="pooling")(h, level)
        return ResidualConvUnits(3 if self.end else 1, 2, self.norm, name="output")(h, level)


def of_classes(
    model: nn.Module, norm: type[nn.Module], level: jax.Array, classes: jax.Array | None
) -> tuple[NormFactory, Any]:
    """Returns a normalization for the model's classes, and what it takes: the level, or level and class."""
    classes = check.classes(model, classes, level.shape[0])
    if classes is None:
        return norm, level
    return functools.partial(norm, num_classes=model.num_classes), (level, classes)


def refine_net(
    model: nn.Module,
    x: jax.Array,
    level: Any,
    *,
    norm: NormFactory,
    refine_norm: NormFactory | None,
    pool: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Computes the RefineNet that the tables of `model` describe, inside its compact call.

    STAGES lists (name, channels as a multiple of `features`, options of the first block), from the finest.
    REFINEMENTS lists the names of the blocks that merge these stages with the result so far, from the
    coarsest. Each has the shape of its stage and the channels of the next finer stage.

    Args:
      model: with `features`, `remat`, `dtype` and the two tables.
      x: `[B, H, W, C]` images in [0, 1] plus noise; the network rescales by 2x - 1.
      level: what the normalizations take besides x.
      norm: the normalization of the residual blocks, and before the last convolution.
      refine_norm: the normalization of the refinement blocks, or None.
      pool: the 5x5 pooling of the refinement blocks.

    Returns:
      `[B, H, W, C]`, of the type of x.
    """
    check.sides(model, x, model.HALVINGS)
    residual = rematerialized(ResidualBlock, model.remat)
    refine = rematerialized(RefineBlock, model.remat)
    h = Conv(model.features, name="begin_conv")(2.0 * x - 1.0).astype(model.dtype or x.dtype)
    outputs = []
    for name, multiple, options in model.STAGES:
        width, dilation = multiple * model.features, options.get("dilation", 1)
        h = residual(width, norm, name=f"{name}_0", **options)(h, level)
        h = residual(width, norm, dilation=dilation, name=f"{name}_1")(h, level)
        outputs.append(h)

    merged = []
    for name in model.REFINEMENTS:
        h = outputs.pop()
        width, end = (outputs[-1] if outputs else h).shape[-1], not outputs
        block = refine(width, h.shape[1:3], refine_norm, pool, end=end, name=name)
        merged = [block([h, *merged], level)]
    h = norm(name="normalizer", activate=True)(merged[0].astype(x.dtype), level)
    return Conv(x.shape[-1], name="end_conv")(h)
