"""Single layers and blocks against the original implementations' figures."""

import itertools

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ncsn_jax import convert
from ncsn_jax.models import blocks, layers, normalization
from ncsn_jax.models.parameters import parameter
from tests.models.comparison import assert_close, nhwc

LEVELS = 5


def plus(**options):
    return normalization.ConditionalInstanceNormPlus(LEVELS, **options)


def unconditional(**options):
    return normalization.InstanceNormPlus(**options)


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


def torch_name(path, names):
    """The PyTorch name of a block's parameter; a convolution inside a pooling module has ".conv" in it."""
    *modules, leaf = path
    parts = [convert._refinenet_module(module) for module in modules]
    leaf = convert._LEAVES.get(leaf, leaf)
    plain = ".".join([*parts, leaf])
    return plain if plain in names else ".".join([*parts, "conv", leaf])


@pytest.mark.parametrize("name", MODULES)
def test_is_the_originals(golden, name):
    g = golden("layers")
    module, count = MODULES[name]
    maps = [jnp.asarray(nhwc(g[f"in/{name}/{i}"])) for i in range(count)]
    # The unconditional ones take no level.
    level = g.get(f"in/{name}/{count}", np.zeros(len(maps[0]), int))
    inputs = maps if count > 1 else maps[0]
    prefix = f"state/{name}/"
    state = {key.removeprefix(prefix): v for key, v in g.items() if key.startswith(prefix)}
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs, level)
    params = {}
    for path in traverse_util.flatten_dict(shapes):
        array = state.pop(torch_name(path[1:], state))
        params[path] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    assert not state
    variables = traverse_util.unflatten_dict(params)
    found = module.apply(variables, inputs, level)
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


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_pooled_convolution_is_the_mean_of_the_convolution(kernel_size):
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    whole, pooled = (layers.Conv(5, kernel_size, pooled=pooled) for pooled in (False, True))
    params = whole.init(jax.random.key(1), x)
    expected = layers.mean_pool(whole.apply(params, x))
    actual = pooled.apply(params, x)
    # Sums of 36 products, taken in another order.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=36 * 2**-24 * jnp.abs(expected).max())


def test_what_a_pooled_convolution_cannot_do_is_refused():
    x = jnp.zeros((1, 4, 5, 3))
    with pytest.raises(ValueError, match="even height and width, got 4x5"):
        layers.Conv(5, pooled=True).init(jax.random.key(0), x)
    for options in ({"dilation": 2}, {"stride": 2}, {"padding": (1, 1)}):
        with pytest.raises(ValueError, match="no dilation, stride or padding"):
            layers.Conv(5, pooled=True, **options).init(jax.random.key(0), x[:, :, :4])


def test_a_layer_is_traced_once_for_each_shape(monkeypatch):
    traced = []
    convolve = jax.lax.conv_general_dilated
    monkeypatch.setattr(
        jax.lax, "conv_general_dilated", lambda *a, **k: traced.append(a) or convolve(*a, **k)
    )

    @jax.jit
    def chain(params, x):
        for _ in range(3):
            x = layers.Conv(7).apply(params, x)
        return x

    x = jnp.zeros((1, 5, 5, 7))
    params = jax.eval_shape(layers.Conv(7).init, jax.random.key(0), x)
    traced.clear()
    chain.lower(params, x)
    assert len(traced) <= 1


def test_a_draw_cut_to_size_is_a_draw_of_that_size(monkeypatch):
    """Below, at and above the lengths that are drawn."""
    monkeypatch.setattr(layers, "_LENGTHS", [64, 256])
    before = layers._draw._cache_size()
    key = jax.random.key(5)
    shapes, bounds = ((3,), (8, 8), (5, 13), (3, 3, 4, 7), (257,)), (0.25, 1 / 33.9)
    for shape, bound in itertools.product(shapes, bounds):
        expected = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        drawn = layers._uniform_init(bound)(key, shape)
        assert drawn.dtype == np.float32
        # The product and the sum may be rounded once or twice.
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=np.spacing(np.float32(bound)))
    assert layers._draw._cache_size() - before == 3


def test_a_parameter_of_another_shape_is_refused():
    """And one that exists is not drawn."""
    draws = []

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = lambda key, shape: draws.append(None) or jax.random.normal(key, shape)
            return x * parameter(self, "scale", init, x.shape[-1:])[None]

    layer, x = Layer(), jnp.ones((2, 5))
    params = layer.init(jax.random.key(0), x)
    assert layer.apply(params, x).shape == (2, 5)
    assert len(draws) == 1
    with pytest.raises(flax.errors.ScopeParamShapeError, match=r"\(4,\).*\(5,\)"):
        layer.apply(params, x[:, :4])
