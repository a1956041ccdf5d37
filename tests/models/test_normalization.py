"""The derivative of the normalization, written by hand, against that of its definition step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax.models.normalization import (
    ConditionalInstanceNorm,
    ConditionalInstanceNormPlus,
    normalize,
)

EPSILON = 1e-5


def defined(x, gamma, alpha, beta, activate):
    """Equations 9 and 10 of NCSN, one operation after another."""
    mean = jnp.mean(x, axis=(1, 2), keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=(1, 2), keepdims=True)
    z = (x - mean) / jnp.sqrt(variance + EPSILON)
    if alpha is not None:
        of_means = jnp.var(mean, axis=-1, keepdims=True, ddof=1)
        centred = mean - jnp.mean(mean, axis=-1, keepdims=True)
        z = z + alpha[:, None, None] * centred / jnp.sqrt(of_means + EPSILON)
    z = gamma[:, None, None] * z + beta[:, None, None]
    return jax.nn.elu(z) if activate else z


@pytest.fixture(scope="module", params=[True, False], ids=["plus", "plain"])
def arguments(request):
    keys = jax.random.split(jax.random.key(3), 5)
    x = 2.0 + jax.random.normal(keys[0], (3, 4, 6, 5)) * jnp.arange(1.0, 6.0).reshape(1, 1, 1, 5)
    gamma, alpha, beta = (jax.random.normal(key, (3, 5)) for key in keys[1:4])
    return x, gamma, alpha if request.param else None, beta


@pytest.fixture(params=[True, False], ids=["activated", "linear"])
def activate(request):
    return request.param


def tangents_of(arguments):
    leaves, structure = jax.tree.flatten(arguments)
    keys = jax.random.split(jax.random.key(4), len(leaves))
    drawn = [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return structure.unflatten(drawn)


def close(a, b):
    """To the rounding of some dozen operations in float32, relative to the largest."""
    for actual, expected in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = float(jnp.max(jnp.abs(expected)))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)


def both(activate, transform, *arguments):
    ours = functools.partial(normalize, activate=activate)
    theirs = functools.partial(defined, activate=activate)
    return jax.jit(transform(ours))(*arguments), jax.jit(transform(theirs))(*arguments)


def test_the_value_is_the_definition(arguments, activate):
    close(*both(activate, lambda f: f, *arguments))


def test_the_directional_derivative_is_that_of_the_definition(arguments, activate):
    tangents = tangents_of(arguments)
    close(*both(activate, lambda f: lambda *a: jax.jvp(f, a, tangents)[1], *arguments))


def test_the_gradient_is_that_of_the_definition(arguments, activate):
    def gradient(f):
        return jax.grad(lambda a: jnp.sum(jnp.sin(f(*a))))

    close(*both(activate, gradient, arguments))


def test_the_gradient_of_a_derivative_is_that_of_the_definition(arguments, activate):
    """As sliced score matching takes it: the gradient of a directional derivative."""
    tangents = tangents_of(arguments)

    def gradient(f):
        return jax.grad(lambda a: jnp.sum(jnp.sin(jax.jvp(lambda *b: f(*b), a, tangents)[1])))

    close(*both(activate, gradient, arguments))


def test_low_precision_comes_back_as_it_came(arguments):
    x, *coefficients = arguments
    z = normalize(x.astype(jnp.bfloat16), *coefficients)
    assert z.dtype == jnp.bfloat16
    # The statistics are those of the rounded input in float32; the result is rounded once more.
    expected = defined(x.astype(jnp.bfloat16).astype(jnp.float32), *coefficients, False)
    np.testing.assert_allclose(z.astype(jnp.float32), expected, rtol=2**-8, atol=1e-5)


def test_levels_are_indices():
    layer = ConditionalInstanceNormPlus(3)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 5))
    params = layer.init(jax.random.key(1), x, jnp.array([0, 2]))
    with pytest.raises(TypeError):
        layer.apply(params, x, jnp.array([0.5, 0.1]))
    # A row that is not finite stays with its level.
    params["params"]["embedding"] = params["params"]["embedding"].at[1].set(jnp.nan)
    assert jnp.all(jnp.isfinite(layer.apply(params, x, jnp.array([0, 2]))))


@pytest.mark.parametrize("layer", [ConditionalInstanceNorm, ConditionalInstanceNormPlus])
def test_each_level_gets_the_derivatives_of_its_examples(layer):
    keys = jax.random.split(jax.random.key(5), 4)
    x, weights = (jax.random.normal(key, (4, 4, 4, 6)) for key in keys[:2])
    model, level = layer(num_levels=3), np.array([2, 0, 2, 2])
    params = model.init(keys[2], x, level)
    (table,) = jax.tree.leaves(params)
    tangent = jax.random.normal(keys[3], table.shape)

    def ours(table):
        params_of_table = jax.tree.map(lambda _: table, params)
        return jnp.sum(weights * jnp.sin(model.apply(params_of_table, x, level)))

    def theirs(table):
        gamma, *alpha, beta = jnp.split(table[level], table.shape[1] // 6, axis=-1)
        z = defined(x, gamma, alpha[0] if alpha else None, beta, False)
        return jnp.sum(weights * jnp.sin(z))

    for transform in (
        jax.grad,
        lambda f: lambda a: jax.jvp(f, (a,), (tangent,)),
        lambda f: lambda a: jax.jvp(jax.grad(f), (a,), (tangent,)),
    ):
        close(jax.jit(transform(ours))(table), jax.jit(transform(theirs))(table))
    assert np.any(jax.grad(ours)(table) != 0, axis=1).tolist() == [True, False, True]


def test_a_directional_derivative_is_exact_where_the_channels_share_an_offset():
    """Both the means and their derivatives differ little beside what they share, which has to cancel."""
    offset, keys = 10.0, jax.random.split(jax.random.key(6), 5)
    x, dx = (offset + jax.random.normal(key, (2, 28, 28, 96)) for key in keys[:2])
    coefficients = [jax.random.normal(key, (2, 96)) for key in keys[2:]]

    def derivative(f, x, dx, *coefficients):
        return jax.jvp(lambda a: f(a, *coefficients, activate=False), (x,), (dx,))[1]

    actual = derivative(normalize, x, dx, *coefficients)
    doubled = [np.float64(a) for a in (x, dx, *coefficients)]
    with jax.enable_x64(True):
        exact = np.asarray(derivative(defined, *doubled))
    # The rounding of a mean, relative to how much they differ, enters a few times.
    relative = np.finfo(np.float32).eps * offset / np.std(np.mean(doubled[0], axis=(1, 2)))
    np.testing.assert_allclose(actual, exact, rtol=0, atol=4 * relative * np.abs(exact).max())
