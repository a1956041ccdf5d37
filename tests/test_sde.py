"""The three SDEs against the authors' values, their differential equations and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import scores, sde

SDES = {
    "ve": sde.VE(0.01, 50.0),
    "vp": sde.VP(0.1, 20.0),
    "subvp": sde.SubVP(0.1, 20.0),
}


@pytest.fixture(params=list(SDES))
def named(request):
    return request.param, SDES[request.param]


def test_sde_functions_match_the_authors(named, golden):
    """Evaluates every function at the stored times, for a chain of 100 steps."""
    name, process = named
    figures = golden("sde")
    x, t = (jnp.asarray(figures[f"in/{n}"]).reshape(s) for n, s in (("x", (3, 2, 4, 4)), ("t", 3)))
    mean, std = process.marginal(x, t)
    f, g = process.discretize(x, t, 100)
    found = {
        "marginal_mean": mean,
        "marginal_std": std,
        "drift": process.drift(x, t),
        "diffusion": process.diffusion(t),
        "disc_f": f,
        "disc_G": g,
        "prior_logp": process.prior_log_prob(x),
    }
    # The authors' 1 - exp(-B) and similar terms lose three digits at t = 0.03.
    rtol = {"marginal_std": 1e-5, "disc_G": 1e-4}
    for field, value in found.items():
        expected = figures[f"out/{name}/{field}"]
        # So does x sqrt(1 - beta) - x, whose terms are as large as x.
        atol = 1.2e-7 * np.abs(x).max() if field == "disc_f" else 0.0
        np.testing.assert_allclose(
            value, expected, rtol=rtol.get(field, 2e-6), atol=atol, err_msg=field
        )


def test_marginals_solve_the_differential_equations(named):
    """Checks alpha' = rate alpha and (std^2)' = 2 rate std^2 + g^2 by automatic differentiation."""
    process = named[1]
    t = jnp.linspace(0.01, 1.0, 50)
    slope = lambda function: jax.vmap(jax.grad(function))(t)
    rate, g = process.drift_coefficient(t), process.diffusion(t)
    np.testing.assert_allclose(slope(process.alpha), rate * process.alpha(t), rtol=2e-5, atol=1e-6)
    variance = process.std(t) ** 2
    expected = 2 * rate * variance + g**2
    np.testing.assert_allclose(
        slope(lambda s: process.std(s) ** 2), expected, rtol=2e-4, atol=1e-5 * float(g.max()) ** 2
    )


def test_time_inverts_sigma(named):
    process = named[1]
    t = jnp.linspace(0.001, 1.0, 100)
    # A change dt multiplies sigma by exp(dt times its logarithmic slope).
    np.testing.assert_allclose(process.time(process.sigma(t)), t, rtol=1e-4, atol=1e-6)


def test_from_sigma_score_is_exact_for_a_mixture_and_to_sigma_score_inverts_it(named):
    """A mixture under the SDE is another mixture with a known score."""
    process = named[1]
    means, stds, weights = np.array([[-1.0, 0.5], [2.0, 1.0]]), np.array([0.3, 0.5]), [0.4, 0.6]
    mixture = scores.gaussian_mixture(means, stds, weights)
    x = jax.random.normal(jax.random.key(0), (200, 2)) * 2
    t = jnp.linspace(0.05, 1.0, 200)
    found = sde.from_sigma_score(process, mixture.score)(x, t)
    for i in range(0, 200, 20):
        alpha, std = float(process.alpha(t)[i]), float(process.std(t)[i])
        there = scores.gaussian_mixture(alpha * means, alpha * stds, weights)
        expected = there.score(x[i : i + 1], jnp.array([std]))
        np.testing.assert_allclose(found[i], expected[0], rtol=1e-4, atol=1e-5)
    back = sde.to_sigma_score(process, sde.from_sigma_score(process, mixture.score))
    sigma = process.sigma(t)
    np.testing.assert_allclose(back(x, sigma), mixture.score(x, sigma), rtol=1e-3, atol=1e-5)


def test_prior_samples_have_the_standard_deviation_and_density_of_the_prior(named):
    process = named[1]
    x = process.prior_sample(jax.random.key(0), (4, 100, 100))
    error = 4 * process.prior_std() / np.sqrt(2 * x.size)
    assert abs(float(jnp.std(x)) - process.prior_std()) < error
    direct = jax.scipy.stats.norm.logpdf(x, scale=process.prior_std()).sum(axis=(1, 2))
    np.testing.assert_allclose(process.prior_log_prob(x), direct, rtol=1e-5)


def test_chains_match_the_authors(golden):
    """The authors compute products of 100 numbers, and 1 minus them, in float32."""
    figures = golden("sde")
    alphas, stds = SDES["ve"].chain(100)
    np.testing.assert_array_equal(alphas, np.ones(100, np.float32))
    # The tolerance is the rounding of an exponent of about 8.5.
    np.testing.assert_allclose(stds, figures["out/ve/discrete_sigmas"], rtol=2e-6)
    alphas, stds = SDES["vp"].chain(100)
    squares = np.concatenate([[1.0], np.asarray(alphas, np.float64) ** 2])
    betas = 1 - squares[1:] / squares[:-1]
    np.testing.assert_allclose(betas, figures["out/vp/discrete_betas"], atol=5e-7)
    # The smallest is the root of 0.001, which 1 minus a float32 gives to within 1e-7.
    np.testing.assert_allclose(stds, figures["out/vp/sqrt_1m_alphas_cumprod"], atol=2e-6)
    np.testing.assert_allclose(alphas**2 + stds**2, 1, rtol=3e-7)


def test_vp_chain_converges_to_the_sde():
    """The error is of order 1 / N: twice the levels halve it."""
    process = SDES["vp"]
    error = [
        np.abs(process.chain(n)[0] - process.alpha(np.linspace(0, 1, n, dtype=np.float32))).max()
        for n in (1000, 2000)
    ]
    assert error[0] / error[1] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SDES["subvp"].chain(100), "num_levels: SubVP has no discrete chain, got 100"),
        (lambda: SDES["vp"].chain(20), "num_levels must be an integer from 21 to .* got 20"),
        (lambda: SDES["ve"].chain(2.0), "num_levels must be an integer from 1 to .* got 2.0"),
        (lambda: sde.VE(1.0, 1.0), "sigma_max > sigma_min > 0, got sigma_max=1.0"),
        (lambda: sde.VE(0.0, 1.0), "sigma_min > 0, got"),
        (
            lambda: sde.VP(0.0, 1.0),
            "beta_max >= beta_min > 0, got beta_max=1.0 and beta_min=0.0",
        ),
        (lambda: sde.SubVP(2.0, 1.0), "beta_max=1.0"),
    ],
)
def test_invalid_sdes_and_chains_are_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()
