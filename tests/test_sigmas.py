import math

import numpy as np
import pytest
from scipy import optimize, stats

from ncsn_jax import sde, sigmas


def test_geometric_ladder_has_a_constant_ratio_and_exact_ends():
    ladder = np.asarray(sigmas.geometric(50.0, 0.01, 232))
    assert ladder.dtype == np.float32 and ladder.shape == (232,)
    assert ladder[0] == np.float32(50.0) and ladder[-1] == np.float32(0.01)
    ratios = ladder[:-1].astype(np.float64) / ladder[1:]
    # Each sigma is rounded once, so a ratio is off by at most two half units in the last place.
    np.testing.assert_allclose(ratios, 5000 ** (1 / 231), rtol=2 * np.finfo(np.float32).eps)


def test_geometric_ladder_matches_the_original(golden):
    expected = golden("losses")["in/sigmas"]
    np.testing.assert_allclose(sigmas.geometric(1.0, 0.01, 10), expected, rtol=1.2e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.01, 1.0, 10), "sigma_begin=0.01 and sigma_end=1.0"),
        ((1.0, 1.0, 10), "sigma_begin > sigma_end"),
        ((1.0, 0.0, 10), "sigma_end > 0"),
        ((float("inf"), 0.1, 10), "sigma_begin=inf"),
        ((float("nan"), 0.1, 10), "sigma_begin=nan"),
        ((1.0, 0.01, 1), "num_levels must be an integer from 2 to .* got 1"),
        ((1.0, 0.01, 2.5), "num_levels must be an integer from 2 to .* got 2.5"),
        ((1.0, 0.9999999, 100), "not distinct in float32"),
    ],
)
def test_geometric_rejects_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sigmas.geometric(*arguments)


def test_karras_ladder_is_uniform_in_the_root_and_has_exact_ends():
    ladder = np.asarray(sigmas.karras(80.0, 0.002, 18))
    assert ladder.dtype == np.float32 and ladder.shape == (18,)
    assert ladder[0] == np.float32(80.0) and ladder[-1] == np.float32(0.002)
    steps = np.diff(ladder.astype(np.float64) ** (1 / 7))
    # The roots are at most 1.87, with a seventh of the relative rounding of their powers.
    np.testing.assert_allclose(steps, steps.mean(), atol=2 * 1.87 / 7 * 6e-8)
    np.testing.assert_allclose(sigmas.karras(3.0, 1.0, 5, rho=1), [3.0, 2.5, 2.0, 1.5, 1.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((80.0, 0.002, 18, 0.5), r"rho must be in \[1, 100\], got 0.5"),
        ((80.0, 0.002, 18, float("nan")), r"rho must be in \[1, 100\], got nan"),
        ((0.002, 80.0, 18), "sigma_begin=0.002 and sigma_end=80.0"),
        ((80.0, 0.002, 1), "num_levels must be an integer from 2 to .* got 1"),
        ((1.0, 0.9999999, 100), "not distinct in float32"),
    ],
)
def test_karras_rejects_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sigmas.karras(*arguments)


def test_schedules_are_uniform_in_their_variables_and_have_exact_ends():
    """ln sigma; t of sigma = tan(pi t / 2), whose log SNR is -2 ln tan(pi t / 2); the SDE's time."""
    np.testing.assert_array_equal(
        sigmas.exponential(80.0, 0.002, 9), sigmas.geometric(80, 0.002, 9)
    )
    cosine = np.asarray(sigmas.cosine(80.0, 0.002, 9))
    assert cosine.dtype == np.float32
    np.testing.assert_array_equal(cosine[[0, -1]], np.float32([80.0, 0.002]))
    np.testing.assert_allclose(np.diff(np.arctan(cosine.astype(np.float64)), 2), 0, atol=2e-7)
    vp = sde.VP(0.1, 20.0)
    times = vp.time(sigmas.from_sde(vp, 9, end=0.2))
    np.testing.assert_allclose(times, np.linspace(1, 0.2, 9), atol=1e-6)
    ve = sigmas.from_sde(sde.VE(0.01, 50.0), 9, end=1e-9)
    np.testing.assert_allclose(ve, sigmas.geometric(50.0, 0.01, 9), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sigmas.cosine(0.1, 1.0, 5), "sigma_begin=0.1 and sigma_end=1.0"),
        (lambda: sigmas.cosine(1.0, 0.1, 1), "num_levels must be an integer from 2 to .* got 1"),
        (lambda: sigmas.from_sde(sde.VP(), 5, end=1.0), "end must be .* got 1.0"),
        (lambda: sigmas.from_sde(None, 5), "sde must be .* got None"),
    ],
)
def test_schedules_reject_invalid_arguments(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize("count", [2, 100, 2500])
def test_largest_distance_matches_brute_force(count):
    """Uses several blocks, and outliers far from the mean but close to each other."""
    rng = np.random.default_rng(count)
    points = rng.standard_t(3, size=(count, 2, 3)).astype(np.float32)
    points[: count // 10] += 5
    flat = points.reshape(count, 6).astype(np.float64)
    pairs = np.concatenate([np.linalg.norm(flat - p, axis=1) for p in flat])
    assert sigmas.largest_distance(points) == pytest.approx(pairs.max(), rel=1e-5)


def test_largest_distance_finds_points_that_are_not_the_outermost():
    """1,100 points of radius 1, all sqrt(2) apart, and two opposite ones of radius 0.9.

    The two come last, in the second block of 1,024 points.
    """
    points = np.zeros((1102, 1101))
    points[:1100, :1100] = np.eye(1100)
    points[1100, 1100], points[1101, 1100] = 0.9, -0.9
    assert sigmas.largest_distance(points) == pytest.approx(1.8, rel=1e-6)


def test_largest_distance_of_known_points():
    assert sigmas.largest_distance([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]]) == pytest.approx(5.0)
    assert sigmas.largest_distance(np.zeros((3, 4))) == 0.0
    for scale, offset in ((1e19, 0.0), (1e-19, 0.0), (1.0, 1e8)):
        points = offset + scale * np.asarray([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]])
        assert sigmas.largest_distance(points) == pytest.approx(5 * scale, rel=1e-6)


@pytest.mark.parametrize("dimension", [5, 64, 3072, 196_608])
@pytest.mark.parametrize("overlap", [0.2, 0.5, 0.9])
def test_level_ratio_gives_the_requested_overlap(dimension, overlap):
    """Checks technique 2's formula in terms of the shells' means and standard deviations."""
    gamma = sigmas.level_ratio(dimension, overlap)
    lower = stats.norm(math.sqrt(dimension), math.sqrt(0.5))  # the radii at sigma_i = 1
    mean, deviation = gamma * math.sqrt(dimension), gamma * math.sqrt(0.5)
    mass = lower.cdf(mean + 3 * deviation) - lower.cdf(mean - 3 * deviation)
    assert gamma > 1 and mass == pytest.approx(overlap, abs=1e-9)


@pytest.mark.parametrize(("gamma", "steps"), [(1.0376, 5), (1.5, 100), (1.0045, 3), (3.0, 1)])
def test_step_size_minimises_the_variance_of_the_chain(gamma, steps):
    """The recursion of a chain's variance, Var <- (1 - a / 2 s^2)^2 Var + a, gives the same optimum."""
    sigma = 0.01

    def variance(epsilon):
        value = (gamma * sigma) ** 2
        for _ in range(steps):
            value = (1 - epsilon / (2 * sigma**2)) ** 2 * value + epsilon
        return value / sigma**2

    epsilon, found = sigmas.step_size(sigma, gamma, steps)
    assert found == pytest.approx(variance(epsilon), rel=1e-12)
    best = optimize.minimize_scalar(
        lambda log: abs(variance(math.exp(log)) - 1),
        bounds=(math.log(1e-4 * sigma**2), math.log(2 * sigma**2)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    # The variance is flat around its minimum, so only half the digits of float64 remain.
    assert epsilon == pytest.approx(math.exp(best.x), rel=1e-5)


def test_published_ladders_follow_level_ratio_and_step_size():
    """Lists image size, sigma_1, L, T and twice the step of NCSNv2's runs, whose overlap is 0.57."""
    for size, largest, count, steps, epsilon in (
        (32, 50, 232, 5, 1.24e-5),
        (64, 90, 500, 5, 6.6e-6),
        (128, 190, 1086, 3, 3.6e-6),
        (256, 348, 2311, 3, 1.8e-6),
    ):
        published = (largest / 0.01) ** (1 / (count - 1))
        ratio = sigmas.level_ratio(3 * size**2, overlap=0.567)
        assert math.log(ratio) == pytest.approx(math.log(published), rel=5e-3)
        assert sigmas.step_size(0.01, published, steps)[0] == pytest.approx(epsilon, rel=0.02)


def test_suggest_combines_the_three_techniques():
    corners = np.zeros((4, 8, 8, 1))
    corners[1], corners[2, 0, 0], corners[3, 0, 1] = 1.0, 0.5, -0.25
    distance = math.sqrt(63 + 1.25**2)
    found = sigmas.suggest(corners, sigma_end=0.02, steps_per_level=7)
    gamma = sigmas.level_ratio(64)
    count = 1 + round(math.log(distance / 0.02) / math.log(gamma))
    assert found.largest_distance == pytest.approx(distance, rel=1e-6)
    assert found.sigmas.shape == (count,)
    assert float(found.sigmas[0]) == pytest.approx(distance, rel=1e-6)
    assert float(found.sigmas[-1]) == np.float32(0.02)
    assert abs(math.log(found.ratio) / math.log(gamma) - 1) < 0.5 / (count - 1.5)
    epsilon, variance = sigmas.step_size(0.02, found.ratio, 7)
    assert (found.epsilon, found.variance_ratio) == (epsilon, variance)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sigmas.suggest(np.ones((5, 6))), "below the largest distance in the data, 0, got"),
        (lambda: sigmas.suggest(np.eye(6), sigma_end=0.0), "sigma_end must be above 0"),
        (lambda: sigmas.suggest(np.eye(6, dtype=np.uint8)), "must be floating point, .* got uint8"),
        (lambda: sigmas.suggest(np.eye(3)), "at least 5, got 3: below 5, .* use geometric"),
        (lambda: sigmas.suggest(np.eye(6), overlap=1.0), r"overlap must be in \(0, 0.99\), got 1"),
        (
            lambda: sigmas.suggest(np.eye(6), steps_per_level=0),
            "steps_per_level >= 1, all finite, got",
        ),
        (lambda: sigmas.largest_distance(np.eye(6)[:1]), "at least 2 points, got 1"),
        (lambda: sigmas.largest_distance([[np.nan], [0.0]]), "data must be finite"),
        (lambda: sigmas.largest_distance([[np.inf], [np.inf]]), "data must be finite"),
        (lambda: sigmas.largest_distance(np.ones(3)), r"data must be real, .* of shape \(3,\)"),
        (lambda: sigmas.largest_distance(np.ones((0, 3))), r"not empty, got .* of shape \(0, 3\)"),
        (lambda: sigmas.largest_distance(np.ones((2, 3), complex)), "data must be real"),
        (lambda: sigmas.level_ratio(math.inf), "dimension must be finite and at least 5"),
        (lambda: sigmas.suggest(np.eye(2, 6), sigma_end=1e-320), "all finite, got"),
        (lambda: sigmas.step_size(0.01, math.inf, 5), "all finite, got"),
    ],
)
def test_suggest_and_its_parts_reject_invalid_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("levels", [10**7, 10**5000], ids=["many", "digits"])
def test_ladders_too_large_for_memory_are_rejected(levels):
    with pytest.raises(ValueError, match=r"num_levels must be an integer from 2 to 1000000, got"):
        sigmas.geometric(1.0, 0.01, levels)


@pytest.mark.parametrize("begin", [1e39, 10**400], ids=["float", "int"])
def test_sigmas_beyond_float32_are_rejected(begin):
    with pytest.raises(ValueError, match=r"sigma_begin > sigma_end > 0, got sigma_begin="):
        sigmas.geometric(begin, 0.01, 2)
    with pytest.raises(ValueError, match="all finite, got"):
        sigmas.step_size(0.01, begin, 5)
