"""The blocks of RefineNets, and their normalizations, against the original implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ncsn_jax.convert import names
from ncsn_jax.models import blocks, layers, normalization
from tests.models.comparison import assert_close, nhwc

LEVELS = 5


def plus(**options):
    return normalization.ConditionalInstanceNormPlus(LEVELS, **options)


def unconditional(**options):
    return normalization.InstanceNormPlus(**options)


# Each module with its number of input feature maps.
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


@pytest.mark.parametrize("name", MODULES)
def test_block_matches_the_original(golden, name):
    g = golden("layers")
    module, count = MODULES[name]
    maps = [jnp.asarray(nhwc(g[f"in/{name}/{i}"])) for i in range(count)]
    # The unconditional modules ignore the level.
    level = g.get(f"in/{name}/{count}", np.zeros(len(maps[0]), int))
    inputs = maps if count > 1 else maps[0]
    prefix = f"state/{name}/"
    state = {key.removeprefix(prefix): v for key, v in g.items() if key.startswith(prefix)}
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs, level)
    params = {}
    for path in traverse_util.flatten_dict(shapes):
        plain, pooled = (names.refinenet_name(path[1:], pooled=p) for p in (False, True))
        array = state.pop(plain if plain in state else pooled)
        params[path] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    assert not state
    variables = traverse_util.unflatten_dict(params)
    found = module.apply(variables, inputs, level)
    assert_close(found, nhwc(g[f"out/{name}"]))
