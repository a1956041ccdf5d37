"""Tests guidance by a second score on mixtures of Gaussians, whose guided density is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ncsn_jax import scores
from ncsn_jax.sampling import classifier_free, langevin

# Two classes in the plane, and all data.
CLASS = scores.gaussian_mixture([[1.0, 0.5], [2.0, -1.0]], [0.3, 0.5], [0.5, 0.5])
ALL = scores.gaussian_mixture(
    [[1.0, 0.5], [2.0, -1.0], [-2.0, 0.0]], [0.3, 0.5, 0.6], [0.25, 0.25, 0.5]
)
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)
SIGMA = jnp.asarray([0.1, 0.2, 0.5, 0.5, 1.0, 3.0])


@pytest.mark.parametrize("scale", [-1.0, 0.5, 3.0])
def test_the_guided_score_is_the_gradient_of_the_guided_log_density(scale):
    def log_density(x):
        given, without = CLASS.log_prob(x, SIGMA), ALL.log_prob(x, SIGMA)
        return jnp.sum(without + scale * (given - without))

    found = classifier_free(CLASS.score, ALL.score, scale)(X, SIGMA)
    np.testing.assert_allclose(found, jax.grad(log_density)(X), rtol=1e-4, atol=1e-4)


def test_each_example_may_have_its_own_scale():
    found = classifier_free(CLASS.score, ALL.score, jnp.arange(6.0))(X, SIGMA)
    for i in range(6):
        alone = classifier_free(CLASS.score, ALL.score, float(i))(X, SIGMA)[i]
        np.testing.assert_allclose(found[i], alone, rtol=1e-5, atol=1e-6)


def test_outside_the_interval_the_score_is_the_conditional_one_bit_for_bit():
    given, without = CLASS.score(X, SIGMA), ALL.score(X, SIGMA)
    for scale, inside in (
        (0.0, without),
        (3.0, classifier_free(CLASS.score, ALL.score, 3.0)(X, SIGMA)),
    ):
        found = classifier_free(CLASS.score, ALL.score, scale, (0.2, 1.0))(X, SIGMA)
        expected = np.where((SIGMA >= 0.2) & (SIGMA <= 1.0), inside.T, given.T).T
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("scale", [1, 1.0, np.float32(1)])
def test_scales_of_one_and_zero_are_the_given_functions(scale):
    assert classifier_free(CLASS.score, ALL.score, scale, (0.2, 1.0)) == CLASS.score
    assert classifier_free(CLASS.score, ALL.score, 0 * scale) == ALL.score


def test_langevin_dynamics_samples_the_guided_density():
    """p_u = N(0, 4) and p_c = N(1, 1) at scale 2: precision 2/1 - 1/4, and the mean is 2 over it."""
    count = 2000
    given, without = (
        scores.gaussian_mixture([[mean]], [std], [1.0]) for mean, std in ((1.0, 1.0), (0.0, 2.0))
    )
    guided = classifier_free(given.score, without.score, 2.0)

    def sample(key):
        zeros = jnp.zeros(count)
        return langevin(
            key, lambda x: guided(x, zeros), jnp.ones((count, 1)), step_size=0.05, num_steps=300
        )

    x = np.asarray(jax.jit(sample)(jax.random.key(0)))[:, 0]
    precision = 2 / 1 - 1 / 4
    expected = stats.norm(2 / precision, precision**-0.5).cdf
    # Kolmogorov's statistic exceeds the first term with probability 0.001; the second is the step's bias.
    assert stats.kstest(x, expected).statistic < 1.95 / np.sqrt(count) + 0.006


@pytest.mark.parametrize(
    ("scale", "interval", "message"),
    [
        (math.nan, (0, 1), "scale must be finite, got nan"),
        ("2", (0, 1), "scale must be a number, got '2'"),
        (2.0, (1, 1), r"interval must be \(low, high\) with .* low < high"),
    ],
)
def test_invalid_arguments_are_rejected(scale, interval, message):
    with pytest.raises(ValueError, match=message):
        classifier_free(CLASS.score, ALL.score, scale, interval)
