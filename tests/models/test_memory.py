"""Memory savings on every network: rematerialized activations and bfloat16.

Tests of a program's structure read its jaxpr, without compiling it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jex

from ncsn_jax import models
from ncsn_jax.app import devices
from ncsn_jax.models import blocks, normalization
from tests.models.comparison import run

LADDER = np.geomspace(1.0, 0.1, 3, dtype=np.float32)
# Each network with its number of blocks.
MODELS = {
    "NCSN": (models.NCSN(4, 3), 12),
    "NCSN, plain": (models.NCSN(4, 3, "instance"), 12),
    "NCSNv2": (models.NCSNv2(4, LADDER), 12),
    "NCSNv2Deeper": (models.NCSNv2Deeper(4, LADDER), 15),
    "NCSNv2Deepest": (models.NCSNv2Deepest(4, LADDER), 18),
    "SimplifiedNCSN": (models.SimplifiedNCSN(4, LADDER), 8),
}
X = np.random.default_rng(0).uniform(size=(3, 16, 16, 1)).astype(np.float32)
LEVEL = np.array([0, 1, 2], np.int32)
# The largest relative error of rounding to bfloat16, which has eight bits.
ROUNDING = 2.0**-9


@functools.cache
def shapes_of(name):
    return jax.eval_shape(MODELS[name][0].init, jax.random.key(0), X, LEVEL)


def parameters(name):
    """Returns parameters without zeros."""
    rng = np.random.default_rng(1)

    def draw(path, a):
        near = path[-1].key in ("gamma", "alpha", "embedding")
        return (rng.normal(scale=0.3, size=a.shape) + near).astype(a.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(name))


def equations(function, *arguments):
    """Returns a function's innermost equations in order, the number of remats, and its result's type."""
    found, remats = [], 0

    def visit(jaxpr):
        nonlocal remats
        for equation in jaxpr.eqns:
            leaves = jax.tree.leaves(equation.params, is_leaf=is_jaxpr)
            inner = [getattr(j, "jaxpr", j) for j in leaves if is_jaxpr(j)]
            remats += equation.primitive.name in ("checkpoint", "remat", "remat2")
            for jaxpr in inner:
                visit(jaxpr)
            if not inner:
                found.append(equation)

    program = jax.make_jaxpr(function)(*arguments)
    visit(program.jaxpr)
    return found, remats, program.out_avals[0]


def is_jaxpr(value):
    return isinstance(value, (jex.Jaxpr, jex.ClosedJaxpr))


@pytest.mark.parametrize("name", MODELS)
def test_remat_covers_every_block_and_bfloat16_all_but_the_ends(name):
    """The parameters are those of the plain network."""
    model, count = MODELS[name]
    model = model.clone(remat=True, dtype=jnp.bfloat16)
    found, remats, result = equations(model.apply, shapes_of(name), X, LEVEL)
    assert remats == count
    assert (result.shape, result.dtype) == (X.shape, jnp.float32)
    types = [
        [str(v.aval.dtype) for v in e.invars]
        for e in found
        if e.primitive.name == "conv_general_dilated"
    ]
    ends, inner = [types[0], types[-1]], types[1:-1]
    assert ends == [["float32"] * 2] * 2
    assert inner == [["bfloat16"] * 2] * len(inner)
    pooled = {str(e.outvars[0].aval.dtype) for e in found if "reduce_window" in e.primitive.name}
    assert pooled == {"bfloat16"}
    names = ("reduce_sum", "sqrt")
    statistics = {str(e.outvars[0].aval.dtype) for e in found if e.primitive.name in names}
    assert statistics == {"float32"}


def test_remat_keeps_the_gradients_and_saves_memory():
    norm = functools.partial(normalization.ConditionalInstanceNorm, 3)

    class Chain(nn.Module):
        remat: bool

        @nn.compact
        def __call__(self, x, level):
            residual = blocks.rematerialized(blocks.ResidualBlock, self.remat)
            refine = blocks.rematerialized(blocks.RefineBlock, self.remat)
            for i in range(4):
                x = residual(4, norm, name=f"block_{i}")(x, level)
            return refine(4, (16, 16), norm, name="refine")([x], level)

    x = jnp.asarray(np.random.default_rng(3).uniform(size=(16, 16, 16, 4)), jnp.float32)
    level = jnp.zeros(16, jnp.int32)
    shapes = jax.eval_shape(Chain(False).init, jax.random.key(0), x, level)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), shapes)

    def compiled(remat):
        loss = lambda params: jnp.square(Chain(remat).apply(params, x, level)).mean()
        options = devices.KEEP_BARRIERS | {"xla_backend_optimization_level": 0}
        return jax.jit(jax.value_and_grad(loss)).lower(params).compile(options)

    plain, remat = compiled(False), compiled(True)
    (value, gradient), (again, gradient_again) = plain(params), remat(params)
    assert float(again) == pytest.approx(float(value), rel=1e-6)
    largest = max(np.abs(a).max() for a in jax.tree.leaves(gradient))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)
    temporary = [c.memory_analysis().temp_size_in_bytes for c in (plain, remat)]
    assert temporary[1] < 0.75 * temporary[0], temporary


@pytest.mark.parametrize("name", ["NCSN", "SimplifiedNCSN"])
def test_bfloat16_network_is_close_to_float32(name):
    """The bound is twice the error of some 80 layers with four roundings each, sqrt(320) = 18 roundings."""
    model, _ = MODELS[name]
    params = parameters(name)

    def both(params):
        types = (jnp.float32, jnp.bfloat16)
        return [model.clone(dtype=dtype).apply(params, X, LEVEL) for dtype in types]

    exact, rounded = run(both, params)
    assert exact.dtype == rounded.dtype == jnp.float32
    axes = (1, 2, 3)
    error = np.sqrt(np.square(rounded - exact).mean(axes) / np.square(exact).mean(axes))
    assert np.all(error > 0) and np.all(error < 36 * ROUNDING)
