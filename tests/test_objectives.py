"""Objectives against their losses and noise, for networks in closed form."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import losses, objectives, sde, sigmas

LADDER = sigmas.geometric(2.0, 0.1, 5)
X = jax.random.normal(jax.random.key(0), (40, 3))
KEYS = jax.random.split(jax.random.key(1), 40)
VP = sde.VP(0.1, 20.0)


def network(apply):
    return types.SimpleNamespace(apply=apply)


# The score of N(0, 1) plus noise, as a network of the level's index.
EXACT = network(lambda params, x, level: -params * x / (1 + LADDER[level] ** 2)[:, None])


def test_ladder_draws_levels_and_bins_them_by_index():
    objective = objectives.ladder(EXACT, LADDER)
    np.testing.assert_array_equal(objective.sigmas, LADDER)
    np.testing.assert_array_equal(objective.bin(LADDER), np.arange(5))
    drawn = objective.draw(KEYS)
    np.testing.assert_array_equal(drawn, LADDER[objective.bin(drawn)])
    np.testing.assert_array_equal(drawn[7:9], objective.draw(KEYS[7:9]))


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_anneal_power_sets_the_weight_of_a_level(power):
    weight = objectives.ladder(EXACT, LADDER, anneal_power=power).weight
    np.testing.assert_allclose(weight(LADDER) * LADDER**2, LADDER**power, rtol=1e-6)
    assert objectives.ladder(EXACT, LADDER).weight is None


def test_ladder_loss_uses_the_score_at_the_level_of_each_example():
    objective = objectives.ladder(EXACT, LADDER)
    sigma = LADDER[jnp.arange(40) % 5]
    found = objective.loss(KEYS, objective.score_fn(0.5, KEYS), X, sigma)
    z = np.stack([jax.random.normal(key, (3,)) for key in KEYS])
    s = np.asarray(sigma)[:, None]
    residual = -s * 0.5 * (X + s * z) / (1 + s**2) + z
    np.testing.assert_allclose(found, 0.5 * np.sum(residual**2, axis=1), rtol=1e-4, atol=1e-5)


def test_exact_score_matching_perturbs_the_data():
    """For s(x) = -a x the loss is sigma^2 (a^2 ||x + sigma z||^2 / 2 - a D)."""
    sigma = jnp.linspace(0.2, 2.0, 40)
    found = objectives.LOSSES["sm"](KEYS, lambda x, sigma: -0.7 * x, X, sigma)
    z = np.stack([jax.random.normal(key, (3,)) for key in KEYS])
    s = np.asarray(sigma)
    square = np.sum((X + s[:, None] * z) ** 2, axis=1)
    np.testing.assert_allclose(found, s**2 * (0.49 * square / 2 - 2.1), rtol=1e-4, atol=1e-5)


def test_diffusion_bins_times_into_ten_labelled_by_their_largest_sigma():
    objective = objectives.diffusion(network(None), VP)
    t = jnp.asarray([1.0, 0.95, 0.85, 0.45, 0.05, 1e-5])
    np.testing.assert_array_equal(objective.bin(t), [0, 0, 1, 5, 9, 9])
    edges = jnp.linspace(1.0, 0.1, 10)
    np.testing.assert_allclose(objective.sigmas, VP.sigma(edges), rtol=1e-4)


@pytest.mark.parametrize("num_levels", [None, 30])
def test_diffusion_loss_uses_the_score_at_the_time_of_each_example(num_levels):
    """A network that returns std x has the score of N(0, 1) data under VP, -x."""
    stds = None if num_levels is None else VP.chain(num_levels)[1]

    def apply(params, x, label):
        if num_levels is None:
            return VP.std(label / 999)[:, None] * x
        return stds[jnp.round(label).astype(int)][:, None] * x

    objective = objectives.diffusion(network(apply), VP, num_levels=num_levels)
    t = objective.draw(KEYS)
    np.testing.assert_array_equal(t, losses.sample_times(KEYS, 40, num_levels=num_levels))
    found = objective.loss(KEYS, objective.score_fn(None, KEYS), X, t)
    expected = losses.denoising_diffusion(KEYS, VP, lambda x, t: -x, X, t, num_levels=num_levels)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_likelihood_weighting_turns_std_squared_into_g_squared():
    t = jnp.linspace(0.01, 1.0, 20)
    weight = objectives.diffusion(network(None), VP, likelihood_weighting=True).weight
    np.testing.assert_allclose(weight(t) * VP.std(t) ** 2, VP.beta(t), rtol=1e-5)
    assert objectives.diffusion(network(None), VP).weight is None
