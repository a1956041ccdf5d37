"""Table 1 of EDM against its formulas in float64, and denoisers of Gaussian data in closed form."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from ncsn_jax import losses, models, objectives, preconditioning, scores, sde
from tests.models.comparison import run

SIGMAS = np.geomspace(0.002, 80, 25)
DATA = 0.4
TABLE = {
    "edm": preconditioning.edm(DATA),
    "vp": preconditioning.vp(),
    "ve": preconditioning.ve(),
}
NOISE = {
    "edm": preconditioning.edm_noise(DATA),
    "vp": preconditioning.vp_noise(),
    "ve": preconditioning.ve_noise(),
}
KEYS = jax.random.split(jax.random.key(1), 2_000)


def vp_sigma(t):
    return np.sqrt(np.exp(19.9 * t**2 / 2 + 0.1 * t) - 1)


def coefficients(name, s):
    """Returns c_skip, c_out, c_in and c_noise as table 1 has them."""
    one = np.ones_like(s)
    if name == "edm":
        total = s**2 + DATA**2
        return DATA**2 / total, s * DATA / np.sqrt(total), 1 / np.sqrt(total), np.log(s) / 4
    if name == "ve":
        return one, s, one, np.log(s / 2)
    time = (np.sqrt(0.1**2 + 2 * 19.9 * np.log(s**2 + 1)) - 0.1) / 19.9
    np.testing.assert_allclose(vp_sigma(time), s)
    return one, -s, 1 / np.sqrt(s**2 + 1), 999 * time


@pytest.mark.parametrize("name", TABLE)
def test_coefficients_are_those_of_table_1(name):
    for c, expected in zip(TABLE[name], coefficients(name, SIGMAS), strict=True):
        found = c(jnp.asarray(SIGMAS, jnp.float32))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=3e-7)


@pytest.mark.parametrize("name", TABLE)
def test_the_weight_makes_the_effective_weight_of_the_network_one(name):
    """lambda c_out^2 = 1 in every column (equation 8)."""
    sigma = jnp.asarray(SIGMAS, jnp.float32)
    np.testing.assert_allclose(
        NOISE[name].weight(sigma) * TABLE[name].c_out(sigma) ** 2, 1, rtol=1e-6
    )


def test_sigmas_are_those_of_table_1():
    u = np.linspace(0.001, 0.999, 50)
    expected = {
        "edm": np.exp(-1.2 + 1.2 * special.ndtri(u)),
        "ve": np.exp(np.log(0.02) + u * np.log(5000)),
        "vp": vp_sigma(1e-5 + (1 - 1e-5) * u),
    }
    for name, noise in NOISE.items():
        found = noise.sigma(jnp.asarray(u, jnp.float32))
        np.testing.assert_allclose(found, expected[name], rtol=1e-5)
    np.testing.assert_allclose(
        preconditioning.edm_noise(p_mean=0.3, p_std=2.0).sigma(jnp.float32(0.975)),
        np.exp(0.3 + 2 * special.ndtri(0.975)),
        rtol=1e-5,
    )


def test_drawn_sigmas_are_lognormal_and_bins_hold_equal_shares():
    objective = objectives.edm(None, TABLE["edm"], NOISE["edm"])
    sigma = run(objective.draw, KEYS)
    standard = (np.log(sigma) + 1.2) / 1.2
    assert abs(standard.mean()) < 4 / np.sqrt(len(KEYS))
    assert abs(standard.std() - 1) < 4 / np.sqrt(2 * len(KEYS))
    np.testing.assert_array_equal(objective.bin(jnp.asarray(objective.sigmas)), np.arange(10))
    assert np.all(np.diff(objective.sigmas) < 0)
    shares = np.bincount(objective.bin(sigma), minlength=10) / len(KEYS)
    np.testing.assert_allclose(shares, 0.1, atol=4 * np.sqrt(0.09 / len(KEYS)))


def test_a_denoiser_of_gaussian_data_gives_the_posterior_mean_and_the_score():
    """For N(m, c^2 I) and sigma_data = c, D(x) = (c^2 x + sigma^2 m) / (c^2 + sigma^2).

    So F is sigma m / (c sqrt(sigma^2 + c^2)), whatever x is.
    """
    mean = np.array([0.3, -0.8, 0.5])

    def network(x, c_noise):
        sigma = jnp.exp(4 * c_noise)[:, None]
        return sigma / (DATA * jnp.sqrt(sigma**2 + DATA**2)) * mean[None] + 0 * x

    sigma = np.float32(SIGMAS)
    x = np.random.default_rng(0).normal(size=(25, 3)) * np.sqrt(DATA**2 + SIGMAS[:, None] ** 2)
    x, s = np.float32(x), SIGMAS[:, None]
    denoise = preconditioning.denoiser(TABLE["edm"], network)
    np.testing.assert_allclose(
        denoise(x, sigma), (DATA**2 * x + s**2 * mean) / (DATA**2 + s**2), rtol=1e-5, atol=2e-6
    )
    exact = scores.gaussian_mixture([mean], [DATA], [1.0]).score(x, sigma)
    found = preconditioning.score_fn(TABLE["edm"], network)(x, sigma)
    # D - x has float32's rounding of x.
    np.testing.assert_allclose(found * s, exact * s, atol=2e-4)


@pytest.mark.parametrize(("name", "noise"), [("edm", "edm"), ("ve", "vp")])
def test_the_loss_is_half_of_the_papers_in_float64(name, noise):
    """For F(x, c) = sin(3 x) + c / 7: 1/2 lambda || D(y + n) - y ||^2."""
    model = types.SimpleNamespace(apply=lambda p, x, c: p * (jnp.sin(3 * x) + c[:, None] / 7))
    objective = objectives.edm(model, TABLE[name], NOISE[noise])
    y, keys = np.random.default_rng(0).normal(size=(25, 3)), KEYS[:25]
    sigma = jnp.asarray(SIGMAS, jnp.float32)
    score_fn = objective.score_fn(1.0, keys)
    found = objective.weight(sigma) * objective.loss(keys, score_fn, jnp.float32(y), sigma)
    z = np.stack([jax.random.normal(key, (3,)) for key in keys]).astype(float)
    s = SIGMAS[:, None]
    x = y + s * z
    c_skip, c_out, c_in, c_noise = coefficients(name, s)
    denoised = c_skip * x + c_out * (np.sin(3 * c_in * x) + c_noise / 7)
    weight = 1 / s**2 if noise == "vp" else (s**2 + DATA**2) / (s * DATA) ** 2
    expected = 0.5 * np.sum(weight * (denoised - y) ** 2, axis=1)
    np.testing.assert_allclose(found, expected, rtol=3e-3)


def test_vp_preconditioning_has_the_loss_of_the_vp_sde():
    """The baseline of the ablation is the objective of Song et al. (2021)."""
    model = types.SimpleNamespace(apply=lambda p, x, label: jnp.sin(3 * x) + label[:, None] / 999)
    process, keys = sde.VP(), KEYS[:20]
    objective = objectives.edm(model, TABLE["vp"], NOISE["vp"])
    t, x = jnp.linspace(0.05, 1.0, 20), jax.random.normal(jax.random.key(0), (20, 3))

    def both(keys, x, t):
        score_fn = models.time_score_fn(model, None, process)
        expected = losses.denoising_diffusion(keys, process, score_fn, x, t)
        return objective.loss(keys, objective.score_fn(None, keys), x, process.sigma(t)), expected

    found, expected = run(both, keys, x, t)
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    np.testing.assert_allclose(objective.weight(process.sigma(t)), 1, rtol=1e-6)


def test_parameters_out_of_range_are_refused():
    for make, words in (
        (lambda: preconditioning.edm(0.0), "sigma_data must be a finite number > 0, got 0.0"),
        (lambda: preconditioning.edm_noise(p_std=-1), "p_std must be a finite number > 0, got -1"),
        (lambda: preconditioning.ve_noise(2.0, 1.0), "sigma_max > sigma_min > 0"),
        (lambda: preconditioning.vp_noise(end=1.0), r"end must be in \(0, 1\), got 1.0"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
