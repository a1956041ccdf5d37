"""The measures of samples against the figures of torch-fidelity, and against closed forms."""

import numpy as np
import pytest

from ncsn_jax import evaluation
from ncsn_jax.evaluation import _measures


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_measures_match_the_figures(golden):
    figures = golden("sample_metrics")
    one, two = figures["features_1"], figures["features_2"]
    found = {
        "fid": evaluation.frechet_distance(one, two),
        "kid": evaluation.kernel_distance(one, two),
        **dict(
            zip(("prc_precision", "prc_recall"), evaluation.precision_recall(one, two), strict=True)
        ),
        **dict(
            zip(("is_mean", "is_std"), evaluation.inception_score(figures["logits"]), strict=True)
        ),
    }
    for name, value in found.items():
        assert abs(value - figures[name]) < 1e-6, name


def test_measures_in_small_blocks_are_the_same(golden, monkeypatch):
    figures = golden("sample_metrics")
    one, two = figures["features_1"], figures["features_2"]
    kernel, shares = evaluation.kernel_distance(one, two), evaluation.precision_recall(one, two)
    monkeypatch.setattr(_measures, "_DISTANCES", 7 * 500)
    assert evaluation.precision_recall(one, two) == shares
    np.testing.assert_allclose(evaluation.kernel_distance(one, two), kernel, rtol=1e-12)


def test_frechet_distance_of_normal_distributions_is_the_closed_form(rng):
    """For C_1 = I and C_2 = diag(d^2) it is |m|^2 + sum (1 - d)^2."""
    scales = np.array([1.0, 2.0, 0.5])
    one = evaluation.Statistics(np.zeros(3), np.eye(3))
    two = evaluation.Statistics(np.array([1.0, 0.0, -2.0]), np.diag(scales**2))
    expected = 5.0 + ((1 - scales) ** 2).sum()
    assert abs(evaluation.frechet_distance(one, two) - expected) < 1e-12
    assert abs(evaluation.frechet_distance(two, one) - expected) < 1e-12


def test_frechet_distance_of_a_set_to_itself_is_zero(rng):
    features = rng.standard_normal((50, 80)) * 100  # fewer features than dimensions
    assert evaluation.frechet_distance(features, features) < 1e-6 * features.var()


def test_frechet_distance_takes_statistics_for_features(rng):
    one, two = rng.standard_normal((2, 40, 5))
    from_statistics = evaluation.frechet_distance(evaluation.statistics(one), two)
    assert from_statistics == evaluation.frechet_distance(one, two)


def test_frechet_distance_of_fewer_features_than_dimensions_is_that_of_their_covariance(rng):
    one, two = rng.normal(size=(100, 30)), rng.normal(size=(7, 30)) + 1
    expected = evaluation.frechet_distance(one, evaluation.statistics(two))
    assert abs(evaluation.frechet_distance(one, two) / expected - 1) < 1e-6


def test_the_standard_error_does_not_depend_on_the_order(rng):
    """For the mean it is near std / sqrt(N), also of sorted numbers."""
    x = np.sort(rng.standard_normal(1000))[:, None]
    error = evaluation.standard_error(np.mean, x)
    assert 0.5 < error * np.sqrt(1000) / x.std() < 1.6  # nine degrees of freedom


def test_kernel_distance_of_two_halves_of_a_distribution_is_unbiased(rng):
    values = [evaluation.kernel_distance(*rng.standard_normal((2, 60, 10))) for _ in range(200)]
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert np.min(values) < 0 < np.max(values)


def test_inception_score_of_equal_logits_is_one_and_of_distinct_classes_their_number():
    one, spread = evaluation.inception_score(np.tile([[3.0, 1.0, 0.0]], (20, 1)))
    assert abs(one - 1) < 1e-12 and spread < 1e-12
    certain, _ = evaluation.inception_score(np.tile([[1000.0, 0.0, 0.0]], (20, 1)))
    assert abs(certain - 1) < 1e-12
    classes = 1000.0 * np.eye(4)[np.arange(40) % 4]
    assert abs(evaluation.inception_score(classes, splits=5)[0] - 4) < 1e-9


def test_recall_shows_lost_modes_and_precision_foreign_samples():
    """Two rows of points, one apart, so every ball has radius 1."""
    row = np.arange(100.0)[:, None]
    real = np.concatenate([row, row + 1000])
    assert evaluation.precision_recall(row + 0.5, real, neighbours=1) == (1.0, 0.5)
    foreign = np.concatenate([real[:150] + 0.25, real[:50] + 500])
    assert evaluation.precision_recall(foreign, real, neighbours=1)[0] == 0.75


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: evaluation.frechet_distance(x, x[:, :2]), "the same dimension, got 3 and 2"),
        (lambda x: evaluation.kernel_distance(x, x[:, :2]), "the same dimension, got 3 and 2"),
        (lambda x: evaluation.frechet_distance(x, x[:1]), r"N >= 2, got shape \[1, 3\]"),
        (lambda x: evaluation.kernel_distance(x, x[0]), r"N >= 2, got shape \[3\]"),
        (lambda x: evaluation.frechet_distance(x, x * np.nan), "must be finite"),
        (lambda x: evaluation.inception_score(x, 6), "splits must be from 1 to .* 5, got 6"),
        (lambda x: evaluation.precision_recall(x, x, 5), "neighbours must be from 1 to 4, got 5"),
    ],
)
def test_invalid_arguments_are_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.arange(15.0).reshape(5, 3))
