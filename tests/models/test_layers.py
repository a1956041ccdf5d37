"""Single layers and blocks against the original implementations' figures."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ncsn_jax import convert
from ncsn_jax.models import blocks, layers, normalization
from tests.models.comparison import assert_close, nhwc

LEVELS = 5


def plus(name=None):
    return normalization.ConditionalInstanceNormPlus(LEVELS, name=name)


def unconditional(name=None):
    return normalization.InstanceNormPlus(name=name)


# Each with the number of feature maps that it takes.
MODULES = {
    "CondInstanceNorm2dPlus": (plus(), 1),
    "CondInstanceNorm2d": (normalization.ConditionalInstanceNorm(LEVELS), 1),
    "InstanceNorm2dPlus": (unconditional(), 1),
    "CondRes_same": (blocks.ResidualBlock(6, plus), 1),
    "CondRes_widen": (blocks.ResidualBlock(10, plus, dilation=2), 1),
    "CondRes_down": (blocks.ResidualBlock(12, plus, down=True), 1),
    "CondRes_down_dil2": (blocks.ResidualBlock(6, plus, down=True, dilation=2), 1),
    "CondRCU_2x2": (blocks.ResidualConvUnits(2, 2, plus), 1),
    "CondCRP_2": (blocks.ChainedResidualPooling(2, plus), 1),
    "CondMSF": (blocks.MultiResolutionFusion(5, (8, 8), plus), 2),
    "CondRefine_end": (blocks.RefineBlock(5, (8, 8), plus, end=True), 2),
    "Res_down_v2": (blocks.ResidualBlock(12, unconditional, down=True), 1),
    "RCU_2x2_v2": (blocks.ResidualConvUnits(2, 2, None), 1),
    "CRP_2_v2": (blocks.ChainedResidualPooling(2, None, layers.max_pool5), 1),
    "MSF_v2": (blocks.MultiResolutionFusion(5, (8, 8), None), 2),
    "Refine_end_v2": (blocks.RefineBlock(5, (8, 8), None, layers.max_pool5, end=True), 2),
}


def flax_path(name):
    """The path of a block's parameter from its PyTorch name: the converter's mapping, reversed."""
    name = re.sub(r"embed\.weight$", "embedding", name)
    name = re.sub(r"weight$", "kernel", name)
    name = re.sub(
        r"(\d)_(\d)_(conv|norm)", lambda m: f"{m[3]}_{int(m[1]) - 1}_{int(m[2]) - 1}", name
    )
    name = re.sub(r"adapt_convs\.(\d)", r"adapt_\1", name)
    name = re.sub(r"(conv|norm)s\.(\d)", r"\1_\2", name)
    for torch, flax in (("output_convs", "output"), ("msf", "fusion"), ("crp", "pooling")):
        name = name.replace(torch, flax)
    return tuple(re.sub(r"(conv2|shortcut)\.conv\.", r"\1.", name).split("."))


@pytest.mark.parametrize("name", MODULES)
def test_is_the_originals(golden, name):
    g = golden("layers")
    module, count = MODULES[name]
    maps = [jnp.asarray(nhwc(g[f"in/{name}/{i}"])) for i in range(count)]
    # The unconditional ones take no level.
    level = g.get(f"in/{name}/{count}", np.zeros(len(maps[0]), int))
    prefix = f"state/{name}/"
    params = {
        flax_path(key.removeprefix(prefix)): value.transpose(2, 3, 1, 0)
        if value.ndim == 4
        else value
        for key, value in g.items()
        if key.startswith(prefix)
    }
    variables = {"params": traverse_util.unflatten_dict(params)}
    found = module.apply(variables, maps if count > 1 else maps[0], level)
    assert_close(found, nhwc(g[f"out/{name}"]))


@pytest.mark.parametrize(
    ("name", "function"), [("avgpool5", layers.average_pool5), ("maxpool5", layers.max_pool5)]
)
def test_pooling_is_the_originals(golden, name, function):
    g = golden("layers")
    assert_close(function(jnp.asarray(nhwc(g[f"in/{name}/0"]))), nhwc(g[f"out/{name}"]))


def test_upsampling_is_the_originals(golden):
    g = golden("layers")
    names = [key.removeprefix("out/") for key in g if key.startswith("out/bilinear")]
    assert len(names) == 6
    for name in names:
        expected = nhwc(g[f"out/{name}"])
        found = layers.resize_bilinear(jnp.asarray(nhwc(g[f"in/{name}/0"])), expected.shape[1:3])
        assert_close(found, expected)


def test_converter_names_the_blocks_likewise():
    """What `flax_path` undoes above is what `convert` does."""
    for name in ("adapt_convs.1.2_1_norm.embed.weight", "crp.norms.0.embed.weight"):
        *modules, leaf = flax_path(name)
        translated = [convert._refinenet_module(module) for module in modules]
        assert ".".join([*translated, convert._LEAVES[leaf]]) == name
