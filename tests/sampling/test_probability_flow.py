"""The probability flow against the flow of Gaussian data, which is known, and its count of evaluations."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import sde
from ncsn_jax.sampling import probability_flow

SDES = {
    "ve": sde.VE(0.01, 50.0),
    "vp": sde.VP(0.1, 20.0),
    "subvp": sde.SubVP(0.1, 20.0),
}
MEAN, STD = jnp.array([1.0, 0.5, 0.0, -1.0]), jnp.array([0.1, 0.3, 1.0, 2.0])


def moments(process, t):
    """Mean and standard deviation `[B, 4]` at t `[B]`."""
    alpha, std = (a[:, None] for a in (process.alpha(t), process.std(t)))
    return alpha * MEAN[None], jnp.sqrt((alpha * STD[None]) ** 2 + std**2)


def score_of(process):
    def score(x, t):
        mean, std = moments(process, t)
        return (mean - x) / std**2

    return score


def exact_flow(process, x, start, end):
    """The flow keeps the distance from the mean in standard deviations, of each axis by itself."""
    (mean, std), (mean1, std1) = (moments(process, jnp.full(len(x), t)) for t in (start, end))
    return mean1 + (x - mean) / std * std1


# Rounding decides which steps of a solver meet its tolerance, so these compile as users' programs do.
OPTIMIZED = {"xla_backend_optimization_level": 3}


@pytest.fixture(scope="module")
def decoded():
    """Eight samples of each SDE, their priors, and what was spent on them."""
    found = {}
    for name, process in SDES.items():
        z = process.prior_sample(jax.random.key(0), (8, 4))
        flow = lambda z, p=process: probability_flow(p, score_of(p), z)
        if name == "ve":  # one sample on each simulated device
            x, info = jax.pmap(flow)(z[:, None])
            found[name] = z, x[:, 0], info.evaluations[:, 0]
        else:
            x, info = jax.jit(flow, compiler_options=OPTIMIZED)(z)
            found[name] = z, x, info.evaluations
    return found


@pytest.mark.parametrize("name", list(SDES))
def test_samples_follow_the_exact_flow(name, decoded):
    """Each sample, within a hundred times the tolerance: about 15 steps, and its growth along the flow."""
    z, x, evaluations = decoded[name]
    assert evaluations.dtype == jnp.int32
    assert ((np.asarray(evaluations) - 1) % 6 == 0).all()
    np.testing.assert_allclose(x, exact_flow(SDES[name], z, 1.0, 1e-5), atol=1e-3)


def test_errors_follow_the_tolerance():
    """In float64, with a ten thousandth of the tolerance and of the bound above."""
    process = SDES["subvp"]
    with jax.enable_x64(True):
        z = process.prior_sample(jax.random.key(0), (8, 4))
        flow = jax.jit(
            lambda z: probability_flow(process, score_of(process), z, rtol=1e-9, atol=1e-9)
        )
        x, _ = flow(z)
        assert x.dtype == jnp.float64
        np.testing.assert_allclose(x, exact_flow(process, z, 1.0, 1e-5), atol=1e-7)


def test_evaluations_are_counted_and_a_sample_does_not_depend_on_its_batch(decoded):
    """Calls that the compiled program made for one sample alone; its batch's program gave the same."""
    process, calls = SDES["vp"], []

    def score(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return score_of(process)(x, t)

    z, x, evaluations = decoded["vp"]
    flow = jax.jit(lambda z: probability_flow(process, score, z), compiler_options=OPTIMIZED)
    alone, info = flow(z[:1])
    jax.effects_barrier()
    assert len(calls) == int(info.evaluations[0]) == int(evaluations[0])
    # Rounding only: other sizes may be compiled to sums in another order.
    np.testing.assert_allclose(alone[0], x[0], rtol=1e-5, atol=1e-6)


def test_failures_are_nan_and_counted_and_those_of_one_example_alone():
    """One example whose score is not finite, one that needs more than the steps allowed, and a sound one."""
    process = SDES["ve"]
    calls = []

    def score(x, t):
        jax.debug.callback(lambda: calls.append(1))
        stiff = -1e6 * jnp.sin(1e4 * x)
        return jnp.where(x > 5, jnp.nan, jnp.where(x > 3, stiff, 0 * x))

    flow = jax.jit(lambda x: probability_flow(process, score, x, start=0.5, end=0.6, max_steps=20))
    x, info = flow(jnp.array([[10.0, 10.0], [4.0, 4.0], [1.0, 2.0]]))
    assert np.isnan(x[:2]).all()
    assert set(np.asarray(info.evaluations[:2])) == {1 + 6 * 20}
    # The first example's first step is always rejected, and its start not repeated.
    jax.effects_barrier()
    assert len(calls) == 1 + 6 * 20
    np.testing.assert_array_equal(x[2], [1.0, 2.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sde": None}, "sde must be VE, VP, SubVP or another SDE, got None"),
        ({"start": 0.0}, r"start must be a number in \(0, 1\], got 0.0"),
        ({"end": 1.5}, r"end must be a number in \(0, 1\], got 1.5"),
        ({"end": 1.0}, "start and end must differ, got 1.0 and 1.0"),
        ({"rtol": -1.0}, r"rtol must be a number in \[0, 1\), got -1.0"),
        ({"atol": 0.0}, "atol must be a finite number > 0, got 0.0"),
        ({"atol": float("nan")}, "atol must be a finite number > 0, got nan"),
        ({"max_steps": 0}, "max_steps must be an integer from 1 to"),
        ({"x": jnp.zeros((2, 3), int)}, "x must be floating point, got int32"),
        ({"x": jnp.zeros((2, 0))}, r"x must not be empty, got shape \(2, 0\)"),
        ({"x": 1.0}, r"x must be an array \[B, ...\], got 1.0"),
        (
            {"score_fn": lambda x, t: t},
            r"score_fn must return the shape of x, \(1, 3\), got \(1,\)",
        ),
    ],
)
def test_bad_arguments_are_refused(options, message):
    arguments = {"sde": SDES["ve"], "x": jnp.zeros((2, 3)), "score_fn": lambda x, t: x, **options}
    with pytest.raises(ValueError, match=message):
        probability_flow(**arguments)


def test_a_missing_diffrax_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match="needs diffrax: pip install 'diffrax>=0.7'"):
        probability_flow(SDES["ve"], lambda x, t: x, jnp.zeros((2, 3)))
