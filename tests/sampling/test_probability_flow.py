"""The probability flow against the exact flow of Gaussian data, and its count of evaluations."""

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
    """Returns the mean and standard deviation `[B, 4]` at t `[B]`."""
    alpha, std = (a[:, None] for a in (process.alpha(t), process.std(t)))
    return alpha * MEAN[None], jnp.sqrt((alpha * STD[None]) ** 2 + std**2)


def score_of(process):
    def score(x, t):
        mean, std = moments(process, t)
        return (mean - x) / std**2

    return score


def exact_flow(process, x, start, end):
    """Along each axis, the flow keeps the distance from the mean in standard deviations."""
    (mean, std), (mean1, std1) = (moments(process, jnp.full(len(x), t)) for t in (start, end))
    return mean1 + (x - mean) / std * std1


# Rounding decides which steps meet the tolerance, so these programs compile as users' do.
OPTIMIZED = {"xla_backend_optimization_level": 3}


@pytest.fixture(scope="module")
def decoded():
    """Returns eight latents of each SDE, their samples, and the NFE of each."""
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
    """The bound is a hundred times the tolerance: about 15 steps, whose errors grow along the flow."""
    z, x, evaluations = decoded[name]
    assert evaluations.dtype == jnp.int32
    assert ((np.asarray(evaluations) - 1) % 6 == 0).all()
    np.testing.assert_allclose(x, exact_flow(SDES[name], z, 1.0, 1e-5), atol=1e-3)


def test_smaller_tolerances_give_smaller_errors():
    """In float64, a ten thousandth of the tolerance meets a ten thousandth of the bound above."""
    process = SDES["subvp"]
    with jax.enable_x64(True):
        z = process.prior_sample(jax.random.key(0), (8, 4))
        flow = jax.jit(
            lambda z: probability_flow(process, score_of(process), z, rtol=1e-9, atol=1e-9)
        )
        x, _ = flow(z)
        assert x.dtype == jnp.float64
        np.testing.assert_allclose(x, exact_flow(process, z, 1.0, 1e-5), atol=1e-7)


def test_evaluations_are_counted_and_samples_do_not_depend_on_the_batch(decoded):
    """Counts the calls of a compiled program for one sample; the program for its batch reports the same."""
    process, calls = SDES["vp"], []

    def score(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return score_of(process)(x, t)

    z, x, evaluations = decoded["vp"]
    flow = jax.jit(lambda z: probability_flow(process, score, z), compiler_options=OPTIMIZED)
    alone, info = flow(z[:1])
    jax.effects_barrier()
    assert len(calls) == int(info.evaluations[0]) == int(evaluations[0])
    # Only rounding differs: other sizes may compile to sums in another order.
    np.testing.assert_allclose(alone[0], x[0], rtol=1e-5, atol=1e-6)


def test_failed_examples_are_nan_with_their_evaluations_and_leave_others_alone():
    """One example has a non-finite score, one needs more than `max_steps`, and one succeeds."""
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
    # The first example's first step is always rejected, and its start is not evaluated again.
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
def test_invalid_arguments_are_rejected(options, message):
    arguments = {"sde": SDES["ve"], "x": jnp.zeros((2, 3)), "score_fn": lambda x, t: x, **options}
    with pytest.raises(ValueError, match=message):
        probability_flow(**arguments)


def test_missing_diffrax_raises_import_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match="needs diffrax: pip install 'diffrax>=0.7'"):
        probability_flow(SDES["ve"], lambda x, t: x, jnp.zeros((2, 3)))
