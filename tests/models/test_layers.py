"""Single layers against the original implementations and their formulas."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax.models import layers
from tests.models.comparison import assert_close, nhwc


@pytest.mark.parametrize(
    ("name", "function"), [("avgpool5", layers.average_pool5), ("maxpool5", layers.max_pool5)]
)
def test_pooling_matches_the_original(golden, name, function):
    g = golden("layers")
    assert_close(function(jnp.asarray(nhwc(g[f"in/{name}/0"]))), nhwc(g[f"out/{name}"]))


def test_upsampling_matches_the_original(golden):
    g = golden("layers")
    names = [key.removeprefix("out/") for key in g if key.startswith("out/bilinear")]
    assert len(names) == 6
    for name in names:
        expected = nhwc(g[f"out/{name}"])
        found = layers.resize_bilinear(jnp.asarray(nhwc(g[f"in/{name}/0"])), expected.shape[1:3])
        assert_close(found, expected)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_pooled_convolution_is_the_pooled_output_of_the_convolution(kernel_size):
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    whole, pooled = (layers.Conv(5, kernel_size, pooled=pooled) for pooled in (False, True))
    params = whole.init(jax.random.key(1), x)
    expected = layers.mean_pool(whole.apply(params, x))
    actual = pooled.apply(params, x)
    # The bound is the rounding of 36 products summed in a different order.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=36 * 2**-24 * jnp.abs(expected).max())


def test_pooled_convolution_rejects_odd_sides_and_other_options():
    x = jnp.zeros((1, 4, 5, 3))
    with pytest.raises(ValueError, match="multiples of 2, got 4x5"):
        layers.Conv(5, pooled=True).init(jax.random.key(0), x)
    for options in ({"dilation": 2}, {"stride": 2}, {"padding": (1, 1)}):
        with pytest.raises(ValueError, match="cannot have a dilation, stride or padding"):
            layers.Conv(5, pooled=True, **options).init(jax.random.key(0), x[:, :, :4])


def test_initializer_draws_the_numbers_of_a_draw_of_that_size(monkeypatch):
    """Sizes are below, at and above the drawn lengths."""
    monkeypatch.setattr(layers, "_LENGTHS", [64, 256])
    before = layers._draw._cache_size()
    key = jax.random.key(5)
    shapes, bounds = ((3,), (8, 8), (5, 13), (3, 3, 4, 7), (257,)), (0.25, 1 / 33.9)
    for shape, bound in itertools.product(shapes, bounds):
        expected = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        drawn = layers._uniform_init(bound)(key, shape)
        assert drawn.dtype == np.float32
        # The compiler may round the product and sum once or twice.
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=np.spacing(np.float32(bound)))
    assert layers._draw._cache_size() - before == 3


def test_elu_and_its_derivatives_match_their_formulas():
    x = jnp.asarray([-3.0, -0.5, 0.0, 0.25, 2.0])
    negative = np.exp(np.minimum(x, 0))
    np.testing.assert_allclose(layers.elu(x), np.where(x > 0, x, negative - 1), rtol=1e-6)
    first = jax.vmap(jax.grad(layers.elu))
    np.testing.assert_allclose(first(x), np.where(x > 0, 1, negative), rtol=1e-6)
    second = jax.vmap(jax.grad(jax.grad(layers.elu)))
    np.testing.assert_allclose(second(x), np.where(x > 0, 0, negative), rtol=1e-6)


def test_convolution_is_initialised_like_the_original():
    kernel = layers.Conv(64).init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))["params"]
    bound = 1 / np.sqrt(9 * 32)
    for name in ("kernel", "bias"):
        values = np.asarray(kernel[name])
        assert np.abs(values).max() <= bound
        # The variance of n uniform values has a relative standard error of sqrt(4 / (5 n)).
        error = values.var() / (bound**2 / 3) - 1
        assert abs(error) < 4 * np.sqrt(0.8 / values.size)


def test_upsampling_aligns_the_corners():
    x = jnp.asarray([0.0, 3.0]).reshape(1, 2, 1, 1)
    y = layers.resize_bilinear(x, (4, 1))
    np.testing.assert_allclose(np.asarray(y).ravel(), [0, 1, 2, 3], atol=1e-6)
    ramp = jnp.arange(7.0)[None, :, None, None] * jnp.arange(5.0)[None, None, :, None]
    y = np.asarray(layers.resize_bilinear(ramp, (13, 9)))[0, :, :, 0]
    np.testing.assert_allclose(y, np.outer(np.arange(13) / 2, np.arange(9) / 2), atol=1e-5)


def test_average_pooling_counts_the_border_as_zeros():
    y = np.asarray(layers.average_pool5(jnp.ones((1, 6, 6, 1))))[0, :, :, 0]
    count = np.array([3, 4, 5, 5, 4, 3])
    np.testing.assert_allclose(y, np.outer(count, count) / 25, rtol=1e-6)
