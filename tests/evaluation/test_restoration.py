"""PSNR, SSIM and coverage against closed forms, and SSIM against a loop over its windows."""

import numpy as np
import pytest

from ncsn_jax import evaluation


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_psnr_is_that_of_the_mean_square_of_each_pair(rng):
    x = rng.uniform(size=(3, 8, 8, 3))
    noisy = x + np.asarray([0.1, 0.0, 0.01])[:, None, None, None]
    np.testing.assert_allclose(evaluation.psnr(x, noisy), [20, np.inf, 40])
    np.testing.assert_allclose(evaluation.psnr(255 * x, 255 * noisy, 255), [20, np.inf, 40])


def by_loop(one, two, peak, size):
    """Returns the SSIM of two images `[H, W]` as the paper defines it."""
    at = np.arange(size) - size // 2
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    found = []
    for i in range(one.shape[0] - size + 1):
        for j in range(one.shape[1] - size + 1):
            x, y = (a[i : i + size, j : j + size] for a in (one, two))
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            xy = (window * (x - mx) * (y - my)).sum()
            above = (2 * mx * my + c1) * (2 * xy + c2)
            found.append(above / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.mean(found)


@pytest.mark.parametrize(("side", "window"), [(16, 11), (11, 11), (10, 9), (7, 7)])
def test_ssim_is_the_mean_over_windows_and_channels(side, window, rng):
    one = rng.uniform(size=(2, side, side, 3))
    two = one + 0.2 * rng.standard_normal(one.shape)
    expected = [
        np.mean([by_loop(a[..., c], b[..., c], 1, window) for c in range(3)])
        for a, b in zip(one, two, strict=True)
    ]
    np.testing.assert_allclose(evaluation.ssim(one, two), expected, rtol=1e-10)
    np.testing.assert_allclose(evaluation.ssim(two, one), expected, rtol=1e-10)
    np.testing.assert_allclose(evaluation.ssim(255 * one, 255 * two, 255), expected, rtol=1e-10)
    turned = evaluation.ssim(one.swapaxes(1, 2)[:, ::-1], two.swapaxes(1, 2)[:, ::-1])
    np.testing.assert_allclose(turned, expected, rtol=1e-10)


def test_ssim_of_a_rectangle_has_a_window_for_each_side(rng):
    """The images do not change along their columns, so the window's height does not matter."""
    one, two = rng.uniform(size=(2, 1, 1, 16, 1))
    tall, flat = (
        evaluation.ssim(*(np.tile(a, (1, height, 1, 1)) for a in (one, two))) for height in (16, 5)
    )
    np.testing.assert_allclose(tall, flat, rtol=1e-10)


def test_ssim_of_constant_images_compares_their_means():
    """It is (2 a b + C_1) / (a^2 + b^2 + C_1); the variances are 0."""
    a, b = 0.3, 0.8
    one, two = np.full((1, 12, 12, 1), a), np.full((1, 12, 12, 1), b)
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    np.testing.assert_allclose(evaluation.ssim(one, two), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("count", "level", "nominal"),
    [
        (19, 0.9, 0.9),
        (1, 0.9, 0.0),
        (8, 0.9, 7 / 9),
        (39, 0.9, 0.9),
        (3, 0.01, 0.0),
        (2, 0.01, 1 / 3),
    ],
)
def test_the_nominal_coverage_is_that_of_equally_likely_ranks(count, level, nominal, rng):
    """To five standard errors of a share of 40,000."""
    x = rng.standard_normal((count + 1, 40_000))
    found, expected = evaluation.coverage(x[1:], x[0], level)
    assert abs(expected - nominal) < 1e-12
    assert abs(found - nominal) <= 5 * np.sqrt(nominal * (1 - nominal) / 40_000)


def test_coverage_shows_samples_that_vary_too_little_or_too_much(rng):
    x = rng.standard_normal((20, 1000))
    low, high = (evaluation.coverage(scale * x[1:], x[0])[0] for scale in (0.5, 2.0))
    assert low < 0.75 and high > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: evaluation.psnr(x, x[:1]), r"both of one shape, got \[2, 8, 8, 1\] and \[1, 8"),
        (lambda x: evaluation.psnr(x, x, 0), "data_range must be a finite number > 0, got 0"),
        (lambda x: evaluation.ssim(x[..., 0], x[..., 0]), r"must be \[N, H, W, C\], both of one"),
        (
            lambda x: evaluation.ssim(x, x, np.nan),
            "data_range must be a finite number > 0, got nan",
        ),
        (lambda x: evaluation.coverage(x, x), r"\[S, ...\] of a truth \[...\], got shapes \[2, 8"),
        (lambda x: evaluation.coverage(x, x[0], 1.0), r"level must be in \(0, 1\), got 1.0"),
    ],
)
def test_invalid_arguments_are_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((2, 8, 8, 1)))
