"""Heun's method: the algorithm by hand, its order, exact distributions and partial runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ncsn_jax import scores, sigmas
from ncsn_jax.sampling import heun

MEAN, STD = 0.6, 0.25


def score(x, sigma):
    """Returns the score of data N(MEAN, STD^2)."""
    return (MEAN - x) / (STD**2 + jnp.square(sigma).reshape(-1, *(1,) * (x.ndim - 1)))


def flow(x, begin, end):
    """Returns the exact solution of the probability flow for that data."""
    return MEAN + (x - MEAN) * np.sqrt((STD**2 + end**2) / (STD**2 + begin**2))


@pytest.mark.parametrize(("second_order", "order"), [(True, 2), (False, 1)])
def test_errors_shrink_with_the_order_of_the_method(second_order, order):
    """Twice the steps multiply the error by 2^-order, in float64 and without the step to sigma = 0.

    The observed order is off by about a step, log(100) / 160 = 0.03.
    """
    with jax.enable_x64(True):
        x = jnp.asarray([[-3.0], [0.7], [5.0]])
        errors = []
        for steps in (160, 320):
            ladder = jnp.geomspace(5.0, 0.05, steps + 1)
            run = functools.partial(heun, second_order=second_order, steps=(0, steps))
            found, info = jax.jit(run, static_argnums=1)(jax.random.key(0), score, x, ladder)
            assert (np.asarray(info.evaluations) == order * steps).all()
            errors.append(np.abs(found - flow(np.asarray(x), 5.0, 0.05)).max())
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.1


@pytest.mark.parametrize("second_order", [True, False])
def test_samples_match_algorithm_2(second_order, stored_noise):
    """Writes out Algorithm 2 in float64, with the same noise and churn at the middle levels only."""
    rng = np.random.default_rng(0)
    start, noise = 3 * rng.normal(size=(2, 5)), rng.normal(size=(4, 2, 5))
    ladder = np.array([3.0, 1.0, 0.4, 0.1])
    # Both evaluations of a step draw noise, and the second multiplies it by zero.
    stored_noise(np.repeat(noise, 2, axis=0)[:-1] if second_order else noise)
    denoised = lambda x, sigma: (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)

    x, evaluations = start, 0
    for i, sigma in enumerate(ladder):
        after = ladder[i + 1] if i < 3 else 0.0
        # 1 / 4 is below sqrt(2) - 1.
        gamma = 1 / 4 if 0.4 <= sigma <= 1 else 0.0
        raised = sigma + gamma * sigma
        x = x + np.sqrt(raised**2 - sigma**2) * 1.1 * noise[i]
        slope = (x - denoised(x, raised)) / raised
        moved = x + (after - raised) * slope
        evaluations += 1
        if second_order and after > 0:
            other = (moved - denoised(moved, after)) / after
            moved = x + (after - raised) * (slope + other) / 2
            evaluations += 1
        x = moved

    found, info = heun(
        jax.random.key(0),
        score,
        jnp.asarray(start, jnp.float32),
        jnp.asarray(ladder, jnp.float32),
        churn=1.0,
        churn_range=(0.4, 1.0),
        churn_noise=1.1,
        second_order=second_order,
    )
    # float32 rounds numbers as large as the start, 10, some ten times.
    np.testing.assert_allclose(found, x, atol=1e-5)
    assert (np.asarray(info.evaluations) == evaluations).all()
    assert info.evaluations.shape == (2,) and info.evaluations.dtype == jnp.int32


def test_churn_raises_sigma_by_at_most_a_factor_of_sqrt_2():
    """Even with huge churn, the score is never evaluated at more than sqrt(2) times a sigma."""
    given = []

    def recording(x, sigma):
        jax.debug.callback(lambda sigma: given.append(float(sigma[0])), sigma, ordered=True)
        return score(x, sigma)

    ladder = jnp.asarray([2.0, 1.0])
    heun(jax.random.key(0), recording, jnp.zeros((1, 1)), ladder, churn=1e9)
    jax.effects_barrier()
    np.testing.assert_allclose(given, [2 * np.sqrt(2), 1.0, np.sqrt(2)], rtol=1e-6)


@pytest.mark.parametrize("churn", [0.0, 20.0])
def test_samples_of_a_mixture_follow_its_distribution(churn):
    mixture, n = scores.gaussian_mixture([[-1.0], [1.5]], [0.3, 0.6], [0.4, 0.6]), 2000
    x = 50.0 * jax.random.normal(jax.random.key(0), (n, 1))
    ladder = sigmas.karras(50.0, 0.002, 100)
    run = jax.jit(lambda key, x: heun(key, mixture.score, x, ladder, churn=churn))
    found, info = run(jax.random.key(1), x)
    assert (np.asarray(info.evaluations) == 199).all()
    cdf = lambda x: 0.4 * stats.norm.cdf(x, -1.0, 0.3) + 0.6 * stats.norm.cdf(x, 1.5, 0.6)
    # Kolmogorov's statistic exceeds this with probability 0.001; 100 steps add a tenth of it.
    assert stats.kstest(np.asarray(found)[:, 0], cdf).statistic < 1.95 / np.sqrt(n)


def test_successive_parts_match_one_run_and_examples_do_not_depend_on_the_batch():
    keys = jax.random.split(jax.random.key(0), 6)
    x = 5.0 * jax.random.normal(jax.random.key(1), (6, 4))
    ladder = sigmas.karras(5.0, 0.01, 10)

    @jax.jit
    def part(keys, x, start, stop):
        return heun(keys, score, x, ladder, churn=3.0, steps=(start, stop))

    whole, info = part(keys, x, 0, 10)
    assert (np.asarray(info.evaluations) == 19).all()
    found, evaluations = x, 0
    for start, stop in ((0, 3), (3, 3), (3, 9), (9, 10), (10, 10)):
        found, info = part(keys, found, start, stop)
        evaluations += np.asarray(info.evaluations)
    np.testing.assert_array_equal(found, whole)
    assert (evaluations == 19).all()
    others = np.array([4, 1, 4, 4, 0, 5])
    np.testing.assert_array_equal(part(keys[others], x[others], 0, 10)[0], whole[others])


def test_without_churn_the_key_does_not_matter_and_the_score_is_traced_once():
    ladder = sigmas.karras(5.0, 0.01, 4)
    marked = lambda x, sigma: score(x, sigma) + 0 * jnp.sin(x)
    run = lambda key, x: heun(key, marked, x, ladder)[0]
    x = jnp.ones((2, 3))
    program = str(jax.make_jaxpr(run)(jax.random.key(0), x))
    assert program.count("= sin ") == 1 and "random" not in program
    # The map is affine, so its derivative equals a difference.
    slope = jax.grad(lambda x: run(jax.random.key(0), x).sum())(x)
    difference = run(jax.random.key(1), x) - run(jax.random.key(2), x - 1)
    np.testing.assert_allclose(slope, difference, rtol=1e-5)


def test_one_level_gives_the_expected_clean_data():
    x = jnp.asarray([[1.0], [-2.0]])
    found, info = heun(jax.random.key(0), score, x, jnp.asarray([0.5]))
    expected = (STD**2 * x + 0.25 * MEAN) / (STD**2 + 0.25)
    # A difference of numbers of about 2.
    np.testing.assert_allclose(found, expected, atol=2 * 1.2e-7)
    assert info.evaluations.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": jnp.asarray([0.1, 1.0])}, "sigmas must be positive and strictly decreasing"),
        ({"sigmas": jnp.asarray([1.0, 0.0])}, "sigmas must be positive and strictly decreasing"),
        ({"x": jnp.zeros((2, 3), int)}, "x must be floating point, got int32"),
        ({"churn": -1.0}, "churn must be in \\[0, 1e\\+09\\], got -1.0"),
        ({"churn_noise": float("nan")}, "churn_noise must be in .* got nan"),
        ({"churn_range": (2.0, 1.0)}, r"churn_range must be \(low, high\) .* got \(2.0, 1.0\)"),
        ({"churn_range": 1.0}, r"churn_range must be \(low, high\) .* got 1.0"),
        ({"churn_range": (0.0, 1e39)}, "churn_range must be .* a float32, got"),
        ({"steps": (0, 4)}, r"steps must be .* <= stop <= 3, got \(0, 4\)"),
        ({"score_fn": lambda x, sigma: sigma}, "score_fn must return the shape of x"),
    ],
)
def test_invalid_arguments_are_rejected(change, message):
    arguments = {"score_fn": score, "x": jnp.zeros((2, 3)), "sigmas": jnp.asarray([2.0, 1.0, 0.1])}
    with pytest.raises(ValueError, match=message):
        heun(jax.random.key(0), **arguments | change)
