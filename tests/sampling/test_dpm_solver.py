"""DPM-Solver++: another implementation's states, convergence, exact cases, distributions and partial runs."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ncsn_jax import scores, sigmas
from ncsn_jax.sampling import dpm_solver

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "data" / "dpm_solver.npz")
CHAINS = sorted(name.removesuffix("/states") for name in GOLDEN if name.endswith("10/zero/states"))
MEAN, STD = 0.6, 0.25


def score(x, sigma):
    """Returns the score of data N(MEAN, STD^2)."""
    return (MEAN - x) / (STD**2 + jnp.square(sigma).reshape(-1, *(1,) * (x.ndim - 1)))


@pytest.mark.parametrize("name", CHAINS)
def test_states_match_another_implementation(name, stored_noise):
    """The golden chain's last sigma is the 0 that this one adds; its sigmas are float32."""
    order, is_sde = int(name.split("/")[2]), "sde" in name
    mixture = scores.gaussian_mixture(*(GOLDEN[key] for key in ("means", "stds", "weights")))
    states, ladder = GOLDEN[f"{name}/states"], jnp.asarray(GOLDEN[f"{name}/sigmas"][:-1])
    if is_sde:
        stored_noise(GOLDEN[f"{name}/noise"])

    @jax.jit
    def step(x, denoised, i):
        options = {"order": order, "stochastic": is_sde, "denoised": denoised}
        key = jax.random.key(0)
        return dpm_solver(key, mixture.score, x, ladder, steps=(i, i + 1), **options)

    x = jnp.asarray(states[0], jnp.float32)
    denoised = jnp.zeros((order - 1, *x.shape))
    for i, wanted in enumerate(states[1:]):
        x, info = step(x, denoised, i)
        denoised = info.denoised
        np.testing.assert_allclose(x, wanted, atol=1e-6 * np.abs(states).max())
        assert info.evaluations.tolist() == [1] * len(x)


@pytest.mark.parametrize(("order", "measured"), [(1, 1), (2, 2), (3, 2)])
def test_errors_shrink_with_the_order_of_the_method(order, measured):
    """Twice the steps multiply the error by 2^-order; order 3, as published, by 2^-2.

    The steps that lower the order at the end are left out, and so is sigma = 0.
    """
    with jax.enable_x64(True):
        x, errors = jnp.asarray([[-3.0], [0.7], [5.0]]), []
        exact = MEAN + (np.asarray(x) - MEAN) * np.sqrt((STD**2 + 0.05**2) / (STD**2 + 5.0**2))
        for steps in (160, 320):
            ladder = jnp.geomspace(5.0, 0.05 * 0.01 ** (3 / steps), steps + 4)
            run = jax.jit(
                lambda x, ladder=ladder, steps=steps: dpm_solver(
                    jax.random.key(0), score, x, ladder, order=order, steps=(0, steps)
                )[0]
            )
            errors.append(np.abs(run(x) - exact).max())
    assert abs(np.log2(errors[0] / errors[1]) - measured) < 0.1


@pytest.mark.parametrize("order", [1, 2, 3])
def test_steps_are_exact_if_the_data_are_one_point(order):
    """Then D is that point. The flow scales the distance to it; the SDE leaves N(point, sigma^2) as it is."""
    point = lambda x, sigma: (MEAN - x) / jnp.square(sigma)[:, None]
    n, ladder = 20_000, jnp.asarray([3.0, 2.0, 0.5, 0.4, 0.01])
    x = MEAN + 3.0 * jax.random.normal(jax.random.key(0), (n, 1))

    @jax.jit
    def until(stop):
        part = {"order": order, "steps": (0, stop), "denoised": jnp.zeros((order - 1, *x.shape))}
        return [
            dpm_solver(jax.random.key(1), point, x, ladder, stochastic=stochastic, **part)[0]
            for stochastic in (False, True)
        ]

    for stop, sigma in enumerate([3.0, 2.0, 0.5, 0.4, 0.01, 0.0]):
        flow, found = until(stop)
        np.testing.assert_allclose(flow, MEAN + sigma / 3.0 * (x - MEAN), atol=4e-6)
        # Four standard errors of the mean and of the standard deviation.
        assert abs(float(found.mean()) - MEAN) < 4 * sigma / n**0.5 + 1e-6
        assert abs(float(found.std()) - sigma) < 4 * sigma / (2 * n) ** 0.5 + 1e-6


@pytest.mark.parametrize("stochastic", [False, True])
def test_samples_of_a_mixture_follow_its_distribution(stochastic):
    mixture, n = scores.gaussian_mixture([[-1.0], [1.5]], [0.3, 0.6], [0.4, 0.6]), 2000
    x = 50.0 * jax.random.normal(jax.random.key(0), (n, 1))
    ladder = sigmas.karras(50.0, 0.002, 100)
    run = jax.jit(lambda key, x: dpm_solver(key, mixture.score, x, ladder, stochastic=stochastic))
    found, info = run(jax.random.key(1), x)
    assert (np.asarray(info.evaluations) == 100).all()
    cdf = lambda x: 0.4 * stats.norm.cdf(x, -1.0, 0.3) + 0.6 * stats.norm.cdf(x, 1.5, 0.6)
    # Kolmogorov's statistic exceeds this with probability 0.001; 100 steps add a tenth of it.
    assert stats.kstest(np.asarray(found)[:, 0], cdf).statistic < 1.95 / np.sqrt(n)


def test_successive_parts_match_one_run_and_examples_do_not_depend_on_the_batch():
    keys = jax.random.split(jax.random.key(0), 6)
    x = 5.0 * jax.random.normal(jax.random.key(1), (6, 4))
    ladder = sigmas.karras(5.0, 0.01, 10)

    @jax.jit
    def part(keys, x, start, stop, denoised):
        options = {"order": 3, "stochastic": True, "denoised": denoised}
        return dpm_solver(keys, score, x, ladder, steps=(start, stop), **options)

    nothing = jnp.zeros((2, *x.shape))
    whole, _ = part(keys, x, 0, 10, nothing)
    found, denoised, evaluations = x, nothing, 0
    for start, stop in ((0, 3), (3, 3), (3, 9), (9, 10), (10, 10)):
        found, info = part(keys, found, start, stop, denoised)
        denoised, evaluations = info.denoised, evaluations + np.asarray(info.evaluations)
    np.testing.assert_array_equal(found, whole)
    assert (evaluations == 10).all()
    others = np.array([4, 1, 4, 4, 0, 5])
    found, _ = part(keys[others], x[others], 0, 10, nothing)
    np.testing.assert_array_equal(found, whole[others])


def test_without_the_past_a_part_begins_with_order_1():
    x, ladder = jnp.ones((2, 3)), sigmas.karras(5.0, 0.01, 6)
    first = [
        dpm_solver(jax.random.key(0), score, x, ladder, order=order, steps=(2, 3))[0]
        for order in (1, 3)
    ]
    np.testing.assert_array_equal(*first)


def test_the_flow_needs_no_key_and_the_score_is_traced_once():
    ladder = sigmas.karras(5.0, 0.01, 4)
    marked = lambda x, sigma: score(x, sigma) + 0 * jnp.sin(x)
    run = lambda key, x: dpm_solver(key, marked, x, ladder)[0]
    x = jnp.ones((2, 3))
    program = str(jax.make_jaxpr(run)(jax.random.key(0), x))
    assert program.count("= sin ") == 1 and "random" not in program
    # The map is affine, so its derivative equals a difference.
    slope = jax.grad(lambda x: run(jax.random.key(0), x).sum())(x)
    difference = run(jax.random.key(1), x) - run(jax.random.key(2), x - 1)
    np.testing.assert_allclose(slope, difference, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": jnp.asarray([0.1, 1.0])}, "sigmas must be positive and strictly decreasing"),
        ({"x": jnp.zeros((2, 3), int)}, "x must be floating point, got int32"),
        ({"order": 4}, "order must be .* got 4"),
        ({"steps": (0, 4)}, r"steps must be .* <= stop <= 3, got \(0, 4\)"),
        ({"denoised": jnp.zeros((2, 2, 3))}, r"denoised must have shape \(1, 2, 3\)"),
        ({"score_fn": lambda x, sigma: sigma}, "score_fn must return the shape of x"),
    ],
)
def test_invalid_arguments_are_rejected(change, message):
    arguments = {"score_fn": score, "x": jnp.zeros((2, 3)), "sigmas": jnp.asarray([2.0, 1.0, 0.1])}
    with pytest.raises(ValueError, match=message):
        dpm_solver(jax.random.key(0), **arguments | change)
