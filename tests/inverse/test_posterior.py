"""Tests of the posterior's score against closed forms for normal data and mixtures of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import posteriors
from ncsn_jax import inverse, sampling, scores, sde, sigmas
from ncsn_jax.inverse import METHODS, posterior_score

SHAPE, SIZE, COUNT = (2, 4, 2), 16, posteriors.COUNT
DATA, OPERATORS = posteriors.make_data(SHAPE), posteriors.make_operators(SHAPE)


def assert_is(samples, mean, cov):
    """Checks moments to four and a half standard errors: there are 136 of them."""
    assert max(posteriors.deviations(samples, mean, cov)) < 4.5


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("method", METHODS)
def test_the_score_is_the_closed_form(method, operator):
    operator, x = OPERATORS[operator], np.random.default_rng(0).normal(size=(3, *SHAPE))
    noises, levels = (0.01, 0.1, 1.0), np.asarray([0.1, 0.5, 2.0])
    problems, ys = zip(*(DATA.problem(operator, noise) for noise in noises), strict=True)
    given_y = posterior_score(
        DATA.score,
        operator,
        jnp.concatenate(ys),
        np.asarray(noises),
        method=method,
        data_std=0.7,
        iterations=3 * SIZE,
    )
    found = jax.jit(given_y)(jnp.asarray(x, jnp.float32), jnp.asarray(levels, jnp.float32))
    for i, one in enumerate(problems):
        p, q = posteriors.affine_score(one, method, levels[i], data_std=0.7)
        wanted = q - p @ x[i].ravel()
        # float32, and the condition number of S
        np.testing.assert_allclose(found[i].ravel(), wanted, atol=2e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("method, operator", [("dps", "grey"), ("pigdm", "mask"), ("mmps", "blur")])
def test_samples_have_the_moments_of_their_method(method, operator):
    """ "mmps" is the posterior itself; the others are biased as their formulas say."""
    operator = OPERATORS[operator]
    ladder = sigmas.exponential(30.0, 0.003, 40)
    # The score of "dps" is too steep for so few steps where the noise is small.
    noises = (0.3, 1.0) if method == "dps" else (0.01, 0.1, 1.0)
    problems, ys = zip(*(DATA.problem(operator, noise) for noise in noises), strict=True)
    repeated = np.repeat(np.arange(len(noises)), COUNT)

    @jax.jit
    def sample(key, noise, y):
        given_y = posterior_score(DATA.score, operator, y, noise, method=method, iterations=SIZE)
        x = ladder[0] * jax.random.normal(key, (len(y), *SHAPE))
        return sampling.heun(key, given_y, x, ladder)[0]

    x = sample(jax.random.key(0), np.asarray(noises)[repeated], jnp.concatenate(ys)[repeated])
    for i, one in enumerate(problems):
        assert_is(x[repeated == i], *posteriors.heun(one, method, np.asarray(ladder, np.float64)))
        # Apart from the start of the chain, only the number of steps keeps it from the posterior.
        mean, cov = posteriors.heun(one, "mmps", np.geomspace(300, 0.003, 300))
        exact, exact_cov = posteriors.posterior(one)
        np.testing.assert_allclose(mean, exact, atol=0.01 * np.sqrt(exact_cov.max()))
        np.testing.assert_allclose(cov, exact_cov, atol=0.01 * exact_cov.max())


def test_annealed_langevin_samples_the_posterior():
    """In closed form the chain of "langevin" tends to the posterior; its samples are the chain's."""
    one, y = DATA.problem(OPERATORS["matrix"], 0.1)
    exact, exact_cov = posteriors.posterior(one)
    end = 1e-3
    ladder = np.geomspace(5, end, 80)
    mean, cov = posteriors.annealed_langevin(one, "langevin", ladder, 0.5 * end**2, 200)
    np.testing.assert_allclose(mean, exact, atol=0.02 * np.sqrt(exact_cov.max()))
    np.testing.assert_allclose(cov, exact_cov, atol=0.02 * exact_cov.max())

    ladder = sigmas.geometric(5.0, 0.01, 20)

    @jax.jit
    def sample(key):
        y_each = jnp.broadcast_to(y, (COUNT, *y.shape[1:]))
        given_y = posterior_score(
            DATA.score, OPERATORS["matrix"], y_each, 0.1, method="langevin", iterations=5
        )
        x = ladder[0] * jax.random.normal(key, (COUNT, *SHAPE))
        return sampling.annealed_langevin(
            key, given_y, x, ladder, epsilon=0.5e-4, steps_per_level=20
        )

    wanted = posteriors.annealed_langevin(
        one, "langevin", np.asarray(ladder, np.float64), 0.5e-4, 20
    )
    assert_is(sample(jax.random.key(1)), *wanted)


def test_every_sampler_takes_it():
    """The data are N(0, 1), y = x_0 + z is 2, and x_0 given y is N(1, 1/2)."""
    process, count = sde.VE(0.01, 20.0), 1000
    ladder, key = sigmas.karras(20.0, 0.01, 20), jax.random.key(1)

    def given(y):
        operator = inverse.matrix([[1.0]])
        return posterior_score(
            lambda x, sigma: -x / (1 + sigma[:, None] ** 2), operator, y, 1.0, method="mmps"
        )

    def flow(x, y):  # solves each example by its own steps
        by_time = sde.from_sigma_score(process, given(y[None]))
        return sampling.probability_flow(process, by_time, x[None], rtol=1e-2, atol=1e-2)[0][0]

    @jax.jit
    def sample(x, y):
        by_time = sde.from_sigma_score(process, given(y))
        return {
            "heun": sampling.heun(key, given(y), x, ladder)[0],
            "dpm_solver": sampling.dpm_solver(key, given(y), x, ladder)[0],
            "predictor_corrector": sampling.predictor_corrector(
                key, process, by_time, x, num_steps=100, predictor="ancestral"
            )[0],
            "probability_flow": jax.vmap(flow)(x, y),
        }

    x = process.prior_sample(jax.random.key(0), (count, 1))
    for name, samples in sample(x, jnp.full((count, 1), 2.0)).items():
        # Three standard errors, and 0.02 for the steps
        np.testing.assert_allclose(samples.mean(), 1, atol=0.087, err_msg=name)
        np.testing.assert_allclose(samples.var(), 0.5, atol=0.087, err_msg=name)


def test_the_weights_of_modes_given_one_coordinate():
    """Two modes that the other coordinate tells apart: their weights given y_1 are those of Bayes' rule."""
    means, stds, prior = (
        np.asarray([[-1.0, -1.2], [1.0, 1.2]]),
        np.full(2, 0.5),
        np.asarray([0.3, 0.7]),
    )
    mixture = scores.gaussian_mixture(means, stds, prior)
    noise, y = 1.0, -0.5
    likelihood = prior * np.exp(-0.5 * (y - means[:, 0]) ** 2 / (stds**2 + noise**2))
    # The share of the hidden coordinate above 0, with that of each mode on the other side
    above = [0.5 * (1 + math.erf(m / s / 2**0.5)) for m, s in zip(means[:, 1], stds, strict=True)]
    wanted = likelihood @ above / likelihood.sum()
    ys = jnp.tile(jnp.asarray([[y, jnp.nan]]), (COUNT, 1))
    given_y = posterior_score(
        mixture.score, inverse.mask([[True, False]]), ys, noise, method="langevin", iterations=1
    )
    ladder = sigmas.geometric(4.0, 0.05, 15)

    @jax.jit
    def sample(key):
        x = ladder[0] * jax.random.normal(key, (COUNT, 2))
        return sampling.annealed_langevin(
            key, given_y, x, ladder, epsilon=0.5 * 0.05**2, steps_per_level=500
        )

    share = np.mean(np.asarray(sample(jax.random.key(0))[:, 1]) > 0)
    assert abs(share - wanted) < 3 * np.sqrt(wanted * (1 - wanted) / COUNT)


@pytest.mark.parametrize("method", METHODS)
def test_an_example_depends_on_itself_alone(method):
    operator, x = (
        inverse.blur(np.ones((3, 3)) / 9),
        jax.random.normal(jax.random.key(0), (3, 4, 4, 1)),
    )
    y, levels, noise = (
        operator.apply(x) + 0.1,
        jnp.asarray([0.1, 1, 5]),
        jnp.asarray([0.1, 0.2, 0.3]),
    )

    def given(y, noise):
        return posterior_score(
            lambda x, sigma: -jnp.tanh(x) / (1 + sigma[:, None, None, None] ** 2),
            operator,
            y,
            noise,
            method=method,
        )

    together = jax.jit(given(y, noise))(x, levels)
    alone = jax.jit(given(y[1:2], 0.2))(x[1:2], levels[1:2])
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-5, atol=1e-5)

    @jax.jit
    @jax.vmap
    def mapped(x, y, noise, sigma):
        return given(y[None], noise)(x[None], sigma[None])[0]

    np.testing.assert_allclose(mapped(x, y, noise, levels), together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_hidden_values_have_no_influence(method):
    seen = inverse.mask(jnp.asarray([[True, False, True]]))
    x, y = jnp.ones((2, 3)), jnp.asarray([[1.0, jnp.nan, 3.0], [4.0, jnp.inf, 6.0]])
    found, wanted = (
        posterior_score(lambda x, sigma: -x, seen, values, 0.1, method=method)(x, jnp.ones(2))
        for values in (y, jnp.nan_to_num(y))
    )
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, wanted)


def test_a_nonlinear_operator_is_linearised():
    """Of y = x^2 near x = 1 the score is that of the linear operator 2 x - 1."""
    x, sigma, y = jnp.ones((1, 1)), jnp.asarray([0.1]), jnp.full((1, 1), 1.3)
    square, line = inverse.nonlinear(jnp.square), inverse.matrix([[2.0]])
    for method in METHODS:
        # A score of 0 makes D(x) = x.
        found, wanted = (
            posterior_score(lambda x, s: 0 * x, operator, values, 0.5, method=method)(x, sigma)
            for operator, values in ((square, y), (line, y + 1))
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_nonlinear_operator_may_contain_an_adjoint_of_its_own(method):
    def call(x):  # JAX cannot differentiate it
        return jax.pure_callback(lambda x: 2 * x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    x, y = jnp.asarray([[0.5, 1.0]]), jnp.asarray([[1.3, 3.0]])
    found, wanted = (
        posterior_score(
            lambda x, s: -x,
            inverse.compose(inverse.nonlinear(jnp.square), twice),
            y,
            0.5,
            method=method,
        )(x, jnp.ones(1))
        for twice in (inverse.LinearOperator(call, call), inverse.matrix(2 * np.eye(2)))
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"method": "ddrm"}, "method must be 'langevin' or 'dps' or 'pigdm' or 'mmps', got 'ddrm'"),
        (
            {"operator": abs},
            "operator must be a LinearOperator, or made by `nonlinear`, got <built-in",
        ),
        ({"method": "dps", "noise": 0.0}, "noise must be > 0 for method='dps', got 0.0"),
        ({"noise": [0.1, 0.1, 0.1]}, "noise must have shape .2,., got .3,."),
        ({"noise": float("nan")}, "noise must be >= 0 and finite, got nan"),
        ({"data_std": 0.0}, "data_std must be"),
        ({"iterations": 0}, "iterations must be an integer from 1"),
        ({"y": jnp.ones((2, 3))}, "y must have the shape of A x, .2, 2., got .2, 3."),
        ({"y": jnp.ones((2, 2), int)}, "y must be floating point, got int32"),
    ],
)
def test_mistakes_are_refused_in_one_line(change, message):
    operator = inverse.mask([[True, False]])
    arguments = {
        "operator": operator,
        "y": jnp.ones((2, 2)),
        "noise": 0.1,
        "method": "mmps",
    } | change
    with pytest.raises(ValueError, match=message) as error:
        posterior_score(lambda x, sigma: -x, **arguments)(jnp.ones((2, 2)), jnp.ones(2))
    assert "\n" not in str(error.value)
