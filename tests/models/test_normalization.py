"""Values and derivatives of the normalization against its equations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax.models.normalization import (
    ConditionalInstanceNorm,
    ConditionalInstanceNormPlus,
    GroupNorm,
    normalize,
)

EPSILON = 1e-5


def defined(x, gamma, alpha, beta, activate):
    """Returns equations 9 and 10 of NCSN as printed, except that gamma also scales the alpha term."""
    mean = jnp.mean(x, axis=(1, 2), keepdims=True)
    variance = jnp.mean((x - mean) ** 2, axis=(1, 2), keepdims=True)
    z = (x - mean) / jnp.sqrt(variance + EPSILON)
    if alpha is not None:
        of_means = jnp.var(mean, axis=-1, keepdims=True, ddof=1)
        centred = mean - jnp.mean(mean, axis=-1, keepdims=True)
        z = z + alpha[:, None, None] * centred / jnp.sqrt(of_means + EPSILON)
    z = gamma[:, None, None] * z + beta[:, None, None]
    return jnp.where(z > 0, z, jnp.exp(jnp.minimum(z, 0)) - 1) if activate else z


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


def assert_near(a, b):
    """Compares to the rounding of some dozen float32 operations, relative to the largest value."""
    for actual, expected in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = float(jnp.max(jnp.abs(expected)))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)


def value(f, tangents):
    return f


def directional_derivative(f, tangents):
    return lambda *a: jax.jvp(f, a, tangents)[1]


def gradient(f, tangents):
    return lambda *a: jax.grad(lambda a: jnp.sum(jnp.sin(f(*a))))(a)


def gradient_of_a_directional_derivative(f, tangents):
    """Returns the derivative that sliced score matching takes."""
    return gradient(directional_derivative(f, tangents), tangents)


@pytest.mark.parametrize(
    "transform",
    [value, directional_derivative, gradient, gradient_of_a_directional_derivative],
)
def test_values_and_derivatives_match_the_equation(arguments, activate, transform):
    tangents = tangents_of(arguments)
    ours = transform(functools.partial(normalize, activate=activate), tangents)
    theirs = transform(functools.partial(defined, activate=activate), tangents)
    assert_near(jax.jit(ours)(*arguments), jax.jit(theirs)(*arguments))


def test_bfloat16_input_is_normalized_in_float32_and_returned_as_bfloat16(arguments):
    x, *coefficients = arguments
    z = normalize(x.astype(jnp.bfloat16), *coefficients)
    assert z.dtype == jnp.bfloat16
    # The statistics are those of the rounded input in float32; the result is rounded once more.
    expected = defined(x.astype(jnp.bfloat16).astype(jnp.float32), *coefficients, False)
    np.testing.assert_allclose(z.astype(jnp.float32), expected, rtol=2**-8, atol=1e-5)


def test_float_levels_are_rejected_and_nan_rows_affect_only_their_level():
    layer = ConditionalInstanceNormPlus(3)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 5))
    params = layer.init(jax.random.key(1), x, jnp.array([0, 2]))
    with pytest.raises(TypeError):
        layer.apply(params, x, jnp.array([0.5, 0.1]))
    params["params"]["embedding"] = params["params"]["embedding"].at[1].set(jnp.nan)
    finite = jnp.isfinite(layer.apply(params, x, jnp.array([0, 1]))).all(axis=(1, 2, 3))
    assert finite.tolist() == [True, False]


@pytest.mark.parametrize("layer", [ConditionalInstanceNorm, ConditionalInstanceNormPlus])
def test_derivatives_of_the_table_match_plain_indexing(layer):
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
        assert_near(jax.jit(transform(ours))(table), jax.jit(transform(theirs))(table))
    assert np.any(jax.grad(ours)(table) != 0, axis=1).tolist() == [True, False, True]


def test_directional_derivative_is_accurate_with_a_shared_offset():
    """Means and their derivatives differ little compared with their shared offset, which must cancel."""
    offset, keys = 10.0, jax.random.split(jax.random.key(6), 5)
    x, dx = (offset + jax.random.normal(key, (2, 28, 28, 96)) for key in keys[:2])
    coefficients = [jax.random.normal(key, (2, 96)) for key in keys[2:]]

    def derivative(f, x, dx, *coefficients):
        return jax.jvp(lambda a: f(a, *coefficients, activate=False), (x,), (dx,))[1]

    actual = derivative(normalize, x, dx, *coefficients)
    doubled = [np.float64(a) for a in (x, dx, *coefficients)]
    with jax.enable_x64(True):
        exact = np.asarray(derivative(defined, *doubled))
    # The bound is a few times a mean's rounding relative to the spread of the means.
    relative = np.finfo(np.float32).eps * offset / np.std(np.mean(doubled[0], axis=(1, 2)))
    np.testing.assert_allclose(actual, exact, rtol=0, atol=4 * relative * np.abs(exact).max())


def test_table_is_initialised_like_the_original():
    layer, x = ConditionalInstanceNormPlus(10), jnp.zeros((1, 2, 2, 50))
    (table,) = jax.tree.leaves(layer.init(jax.random.key(1), x, jnp.zeros(1, int)))
    scales, shifts = np.split(np.asarray(table), [100], axis=1)
    assert abs(scales.mean() - 1) < 4 * 0.02 / np.sqrt(scales.size)
    assert abs(scales.var() / 0.02**2 - 1) < 4 * np.sqrt(2 / scales.size)
    assert np.all(shifts == 0)


def test_group_norm_uses_the_moments_of_each_group():
    x = np.random.default_rng(0).normal(3.0, 2.0, (2, 4, 5, 12)).astype(np.float32)
    gamma, beta = np.arange(1.0, 13.0, dtype=np.float32), np.full(12, 0.5, np.float32)
    found = GroupNorm().apply({"params": {"gamma": gamma, "beta": beta}}, x)
    for group in range(3):  # min(12 // 4, 32) groups
        part = slice(4 * group, 4 * group + 4)
        values = x[..., part].astype(np.float64)
        mean = values.mean(axis=(1, 2, 3), keepdims=True)
        deviation = np.sqrt(values.var(axis=(1, 2, 3), keepdims=True) + 1e-6)
        expected = (values - mean) / deviation * gamma[part] + 0.5
        np.testing.assert_allclose(found[..., part], expected, rtol=0, atol=1e-4)
