"""Tests of the operators: adjoints, pseudo-inverses, what is hidden, and refused shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import inverse

SHAPE = (3, 6, 4, 2)
_rng = np.random.default_rng(0)
OBSERVED = _rng.random((1, 6, 4, 1)) < 0.5
KERNEL = 0.1 * _rng.normal(size=(3, 5)).astype(np.float32)
KERNEL[1, 2] += 1  # so that little is lost
VALUES = _rng.normal(size=(7, 48)).astype(np.float32)


def halves():
    """Returns an operator with an adjoint of its own, of code that JAX cannot transpose."""

    def call(function, x, shape):
        return jax.pure_callback(function, jax.ShapeDtypeStruct(shape, x.dtype), x)

    return inverse.LinearOperator(
        lambda x: call(lambda x: x[:, :3] + np.float32(2) * x[:, 3:], x, (x.shape[0], 3, 4, 2)),
        lambda y: call(lambda y: np.concatenate([y, 2 * y], 1), y, (y.shape[0], 6, 4, 2)),
        shape=SHAPE[1:],
    )


OPERATORS = {
    "mask": inverse.mask(OBSERVED),
    "mask of each example": inverse.mask(_rng.random(SHAPE) < 0.5),
    "downsample": inverse.downsample(2),
    "blur": inverse.blur(KERNEL),
    "fourier_mask": inverse.fourier_mask(OBSERVED),
    "grey": inverse.grey(),
    "matrix": inverse.matrix(VALUES),
    "own adjoint": halves(),
    "composed": inverse.compose(inverse.grey(), halves()),
}


def draw(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_adjoint_is_that_of_the_inner_product(name):
    operator, x = OPERATORS[name], draw(0)
    value = operator.apply(x)
    y = draw(1, value.shape)
    axes = tuple(range(1, y.ndim))
    left = jnp.sum(value * y, axis=axes)
    right = jnp.sum(x * inverse.adjoint(operator, y, x.shape), axis=(1, 2, 3))
    # A sum of n products of numbers near 1 is accurate to about sqrt(n) epsilon.
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OPERATORS)
def test_it_is_linear_and_does_not_mix_examples(name):
    operator, x, other = OPERATORS[name], draw(0), draw(1)
    both = operator.apply(x + 2 * other)
    separate = operator.apply(x) + 2 * operator.apply(other)
    np.testing.assert_allclose(both, separate, rtol=1e-5, atol=1e-5)
    changed = operator.apply(x.at[1].set(7.0))
    np.testing.assert_array_equal(changed[::2], operator.apply(x)[::2])


@pytest.mark.parametrize("name", sorted(OPERATORS.keys() - {"mask of each example"}))
def test_the_pseudo_inverse_is_numpys(name):
    operator = OPERATORS[name]
    dense = np.asarray(operator.apply(jnp.eye(48).reshape(48, *SHAPE[1:])), np.float64)
    y = operator.apply(draw(0))
    found = inverse.pseudo_inverse(operator, y, SHAPE).reshape(3, 48)
    # By rcond, singular values of 0 that are roundings stay 0.
    wanted = np.asarray(y).reshape(3, -1) @ np.linalg.pinv(dense.reshape(48, -1), rcond=1e-5)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_values_that_are_known():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(
        inverse.downsample(2).apply(x)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]]
    )
    shift = inverse.blur([[0.0, 0.0, 1.0]])  # the neighbour on the right, mirrored at the edge
    np.testing.assert_array_equal(shift.apply(x)[0, 0, :, 0], [1, 2, 3, 2])
    down = inverse.blur([[0.0], [0.0], [1.0]])
    np.testing.assert_array_equal(down.apply(x)[0, :, 0, 0], [4, 8, 12, 8])
    wave = jnp.cos(2 * jnp.pi * jnp.arange(4) / 4)[None, :, None, None] * jnp.ones((1, 4, 4, 1))
    coefficients = inverse.fourier_mask(jnp.ones((1, 4, 4, 1), bool)).apply(wave)
    wanted = np.zeros((4, 4, 2))
    wanted[[1, 3], 0, 0] = 2  # 16 / sqrt(16) / 2
    np.testing.assert_allclose(coefficients[0, :, :, 0], wanted, atol=1e-6)
    assert inverse.grey().apply(jnp.asarray([1.0, 2.0, 6.0]).reshape(1, 1, 1, 3)).item() == 3
    twice = inverse.compose(inverse.matrix(2 * jnp.eye(1)), inverse.nonlinear(jnp.square))
    assert twice.apply(jnp.full((1, 1), 3.0)).item() == 18
    assert isinstance(twice, inverse.NonlinearOperator)


@pytest.mark.parametrize("name", ["mask", "fourier_mask"])
def test_what_is_not_observed_has_no_influence(name):
    operator = OPERATORS[name]
    y = operator.apply(draw(0))
    broken = jnp.where(operator.observed, y, jnp.nan)
    for function in (inverse.adjoint, inverse.pseudo_inverse):
        np.testing.assert_array_equal(
            function(operator, broken, SHAPE), function(operator, y, SHAPE)
        )
    if name == "mask":
        hidden = jnp.where(OBSERVED, draw(0), jnp.nan)
        np.testing.assert_array_equal(operator.apply(hidden), y)
        np.testing.assert_array_equal(inverse.measure(jax.random.key(0), operator, hidden), y)


def test_a_measurement_has_its_noise_where_it_is_observed():
    keys = jax.random.split(jax.random.key(0), 2)
    operator, x = inverse.mask(jnp.arange(2000)[None] % 2 == 0), jnp.ones((2, 2000))
    y = inverse.measure(keys, operator, x, jnp.asarray([0.1, 1.0]))
    assert not y[:, 1::2].any()
    noise = np.asarray(y[:, ::2] - 1)
    np.testing.assert_allclose(noise.std(1) / [0.1, 1.0], 1, atol=4 / 2000**0.5)
    alone = inverse.measure(keys[1:], operator, x[1:], 1.0)
    np.testing.assert_array_equal(y[1:], alone)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: inverse.downsample(0), "factor must be"),
        (lambda: inverse.downsample(4).apply(draw(0)), "factor=4 must divide the images' sides, 6"),
        (lambda: inverse.blur(jnp.ones((2, 3))), "two odd sides, got shape .2, 3."),
        (lambda: inverse.blur(jnp.ones((3, 9))).apply(draw(0)), "6 x 4 are too small for a kernel"),
        (lambda: inverse.mask([[0.5]]), "mask must contain only"),
        (lambda: inverse.mask(OBSERVED).apply(draw(0, (3, 4, 4, 2))), "broadcast to its shape"),
        (lambda: inverse.fourier_mask(OBSERVED).apply(draw(0, (3, 48))), "must be images"),
        (lambda: inverse.matrix(VALUES).apply(draw(0, (3, 47))), "48 elements, got x of shape"),
        (lambda: inverse.matrix(VALUES[0]), "two axes, got shape .48,."),
        (lambda: inverse.compose(), "at least one"),
        (
            lambda: inverse.adjoint(halves(), draw(0, (3, 3, 4, 2)), (3, 6, 4, 1)),
            r"takes x of shape \[B, 6, 4, 2\], got .3, 6, 4, 1.",
        ),
        (
            lambda: inverse.adjoint(inverse.grey(), draw(0), SHAPE),
            r"y must have the shape of A x, .3, 6, 4, 1., got .3, 6, 4, 2.",
        ),
        (
            lambda: inverse.adjoint(inverse.nonlinear(jnp.square), draw(0), SHAPE),
            "operator must be a LinearOperator, got NonlinearOperator",
        ),
        (
            lambda: inverse.adjoint(inverse.mask(OBSERVED), jnp.ones(SHAPE, int), SHAPE),
            "y must be floating point, got int32",
        ),
        (
            lambda: inverse.measure(jax.random.key(0), inverse.grey(), jnp.ones(SHAPE, np.uint8)),
            "x must be floating point, got uint8",
        ),
        (
            lambda: inverse.measure(jax.random.key(0), inverse.grey(), draw(0), -1.0),
            "noise must be >= 0 and finite, got -1",
        ),
    ],
)
def test_mistakes_are_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
