"""Power-function averages, against their closed form and figures of the paper."""

import jax
import numpy as np
import pytest

from ncsn_jax import averages

GAMMAS = [averages.gamma_of_width(width) for width in (0.05, 0.1)]


def profile(step, gamma, num_steps):
    """Returns the weight of each of `num_steps` steps in the average after `step` of them."""
    share = lambda k: np.minimum(k / step, 1) ** (gamma + 1)
    k = np.arange(1, num_steps + 1)
    return share(k) - share(k - 1)


def test_widths_and_gammas_are_those_of_the_paper():
    np.testing.assert_allclose(GAMMAS, [16.97, 6.94], atol=0.005)
    assert averages.gamma_of_width(averages.MAX_WIDTH) == pytest.approx(0, abs=1e-9)
    for width in (0.001, 0.02, 0.13, 0.28):
        found = averages.width_of_gamma(averages.gamma_of_width(width))
        assert found == pytest.approx(width, rel=1e-9)


def test_the_width_is_the_relative_standard_deviation_of_the_weights():
    steps, weights = np.arange(1, 10_001), profile(10_000, GAMMAS[1], 10_000)
    mean = steps @ weights
    assert np.sqrt((steps - mean) ** 2 @ weights) / 10_000 == pytest.approx(0.1, rel=1e-4)


def test_updates_give_the_closed_form_whatever_the_first_average():
    params = np.random.default_rng(0).standard_normal((30, 3)).astype(np.float32)
    found = {"a": np.full(3, 1e6, np.float32)}
    update = jax.jit(averages.update)
    for step, a in enumerate(params, start=1):
        found = update(found, {"a": a}, step, GAMMAS[0])
    np.testing.assert_allclose(found["a"], profile(30, GAMMAS[0], 30) @ params, rtol=1e-5)


def test_late_updates_are_accurate_in_float32():
    found = averages.update(np.float32(0), np.float32(1), 3_000_001, GAMMAS[1])
    assert found == pytest.approx(profile(3_000_001, GAMMAS[1], 3_000_001)[-1], rel=1e-5)


def test_other_widths_are_reconstructed_from_snapshots():
    """The parameters drift and fluctuate; there are forty snapshots of two averages."""
    rng, params = np.random.default_rng(0), [np.full(50, 5.0)]
    for _ in range(1999):
        params.append(0.995 * params[-1] + 0.2 * rng.standard_normal(50))
    steps, gammas = np.repeat(np.arange(50, 2001, 50), 2), GAMMAS * 40
    snapshots = [
        {"a": np.float32(profile(step, gamma, 2000) @ params)}
        for step, gamma in zip(steps, gammas, strict=True)
    ]
    for width in (0.07, 0.1, 0.13, 0.15):
        gamma = averages.gamma_of_width(width)
        wanted = profile(2000, gamma, 2000)
        weights = averages.weights(steps, gammas, 2000, gamma)
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        found = averages.combine(iter(snapshots), weights)["a"]
        assert found.dtype == np.float32
        direct = wanted @ params
        error = np.linalg.norm(found - direct) / np.linalg.norm(direct - params[-1])
        assert error < 1e-3, width
        fitted = weights @ [profile(*about, 2000) for about in zip(steps, gammas, strict=True)]
        expected = np.linalg.norm(fitted - wanted) / np.linalg.norm(wanted)
        mismatch = averages.mismatch(weights, steps, gammas, 2000, gamma)
        # The sums over steps replace integrals; rounding of the squares leaves 1e-7.
        assert mismatch == pytest.approx(expected, rel=0.15, abs=1e-6)


def test_a_snapshot_of_the_wanted_average_has_all_the_weight():
    found = averages.weights([500, 500, 1000, 1000], GAMMAS * 2, 1000, GAMMAS[0])
    np.testing.assert_allclose(found, [0, 0, 1, 0], atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: averages.gamma_of_width(0.3), "width must be a number in"),
        (lambda: averages.width_of_gamma(-0.1), "gamma must be a finite number >= 0"),
        (lambda: averages.weights([0], [1.0], 10, 1.0), "steps must be"),
        (lambda: averages.weights([5], [np.nan], 10, 1.0), "gammas"),
    ],
)
def test_impossible_profiles_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
