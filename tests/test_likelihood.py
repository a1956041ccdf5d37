"""Log densities against closed forms, latents, and bits per dimension of known data."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import likelihood, scores, sde

SDES = {
    "ve": sde.VE(0.01, 50.0),
    "vp": sde.VP(0.1, 20.0),
    "subvp": sde.SubVP(0.1, 20.0),
}
MIXTURE = scores.gaussian_mixture([[-1.0, 0.5], [2.0, 1.0]], [0.3, 0.5], [0.4, 0.6])
END = 1e-5


def log_density(process, x, t):
    """Returns log p_t(x) of the mixture under an SDE, in nats `[B]`."""
    t = jnp.full(len(x), t)
    alpha = process.alpha(t)
    return MIXTURE.log_prob(x / alpha[:, None], process.sigma(t)) - 2 * jnp.log(alpha)


def with_exact_prior(process):
    """Returns the SDE with p_1 as its prior; the two differ by up to 0.07 nats here."""
    methods = {"prior_log_prob": lambda self, x: log_density(process, x, 1.0)}
    return type("Exact", (type(process),), methods)(*dataclasses.astuple(process))


def data(process, number):
    """Returns samples of the mixture at t = END."""
    t = jnp.full(number, END)
    x = MIXTURE.sample(jax.random.key(0), number)
    noise = jax.random.normal(jax.random.key(1), x.shape)
    return process.alpha(t)[:, None] * x + process.std(t)[:, None] * noise


@pytest.mark.parametrize("name", list(SDES))
def test_exact_log_prob_of_a_mixture_matches_the_closed_form(name):
    """The bound, in nats per dimension, is a hundred times the tolerance of a step."""
    process = with_exact_prior(SDES[name])
    score = sde.from_sigma_score(process, MIXTURE.score)
    x = data(process, 16)
    found = jax.jit(lambda x: likelihood.log_prob(None, process, score, x, exact=True))(x)
    np.testing.assert_allclose(found / 2, log_density(process, x, END) / 2, atol=1e-3)


def test_log_prob_estimates_of_a_mixture_are_unbiased():
    """The mean of 400 keys is within four standard errors; other examples change nothing."""
    process = with_exact_prior(SDES["vp"])
    score = sde.from_sigma_score(process, MIXTURE.score)
    # This x is near a mode. The other mode is not along an axis, so the Jacobian is not diagonal.
    x = jnp.tile(jnp.array([[-1.2, 0.3]]), (400, 1))
    keys = jax.random.split(jax.random.key(2), 400)
    estimate = jax.jit(lambda keys, x: likelihood.log_prob(keys, process, score, x))
    found = np.asarray(estimate(keys, x))
    expected = float(log_density(process, x, END)[0])
    error = found.std() / math.sqrt(400)
    assert error > 1e-3
    # The second term is the error of the exact trace.
    assert abs(found.mean() - expected) < 4 * error + 2e-3
    others = estimate(keys.at[1:].set(keys[0]), x.at[1:].add(1.0))
    np.testing.assert_array_equal(others[0], found[0])


def test_gaussian_projections_have_the_known_mean_and_variance():
    """For an anisotropic Gaussian under the real prior, the mean and variance of the estimate are known."""
    process, std = SDES["ve"], jnp.array([0.1, 0.3, 1.0, 2.0])

    def score(x, t):
        return -x / (std[None] ** 2 + process.std(t)[:, None] ** 2)

    spread = lambda t: jnp.sqrt(std**2 + process.std(jnp.float32(t)) ** 2)
    number, projections = 512, 4
    x = jnp.tile(spread(END)[None], (number, 1))
    estimate = jax.jit(
        lambda key, x: likelihood.log_prob(
            key,
            process,
            score,
            x,
            projection="gaussian",
            num_projections=projections,
            return_info=True,
        )
    )
    found, info = estimate(jax.random.key(3), x)
    # The divergence sums d log spread / dt over the axes; v^T J v weights each axis by v^2.
    growth = jnp.log(spread(1.0) / spread(END))
    expected = process.prior_log_prob(spread(1.0)[None])[0] + growth.sum()
    error = float(jnp.sqrt(2 * jnp.sum(growth**2) / projections))
    assert abs(float(found.mean() - expected)) < 4 * error / math.sqrt(number)
    # The standard deviation's relative error for 512 draws, with tails heavier than normal.
    assert abs(float(found.std()) / error - 1) < 6 / math.sqrt(2 * number)
    assert (info.evaluations >= 1 + 6 * 10).all()


def test_decode_inverts_encode_and_temperature_scales_latents():
    process = SDES["vp"]
    score = sde.from_sigma_score(process, MIXTURE.score)
    x = data(process, 8)

    @jax.jit
    def there_and_back(x):
        z = likelihood.encode(process, score, x)
        return z, likelihood.decode(process, score, z / 2, temperature=2.0)

    z, back = there_and_back(x)
    assert float(jnp.abs(z - x).max()) > 0.1
    # Some tens of steps add up to ten times the tolerance.
    np.testing.assert_allclose(back, x, atol=1e-4)


def test_bits_per_dim_of_known_distributions_is_their_code_length():
    """Dequantized bytes with probabilities q have density 256 q, and cost -log2 q bits."""
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.ones(256))
    images = rng.choice(256, size=(5, 4, 4, 1), p=q)
    bits = -np.log2(q)[images].mean(axis=(1, 2, 3))
    nats = np.log(256 * q)[images].sum(axis=(1, 2, 3))
    np.testing.assert_allclose(likelihood.bits_per_dim(nats, images.shape), bits, rtol=1e-5)
    # Scaling to [-1, 1] halves the density in every dimension.
    nats -= 16 * math.log(2)
    found = likelihood.bits_per_dim(nats, images.shape, width=2.0)
    np.testing.assert_allclose(found, bits, rtol=1e-5)
    found = likelihood.bits_per_dim(jnp.zeros(2), (2, 7), levels=32)
    np.testing.assert_allclose(found, 5.0, rtol=1e-6)


def test_interpolate_follows_the_arc():
    z0, z1 = jnp.zeros((2, 3)).at[0, 0].set(2.0), jnp.zeros((2, 3)).at[1, 2].set(2.0)
    found = likelihood.interpolate(z0, z1, 7)
    assert found.shape == (7, 2, 3)
    angle = np.linspace(0, np.pi / 2, 7)
    np.testing.assert_allclose(found[:, 0, 0], 2 * np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(found[:, 1, 2], 2 * np.sin(angle), atol=1e-6)
    np.testing.assert_allclose(likelihood.interpolate(z0, 3 * z0, 3)[:, 0, 0], [2, 4, 6], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda log_prob, x: log_prob(end=1.0), "start and end must differ, got 1.0 and 1.0"),
        (
            lambda log_prob, x: log_prob(num_projections=0),
            "num_projections must be an integer from 1 to",
        ),
        (
            lambda log_prob, x: log_prob(projection="sign"),
            r"projection must be one of \['rademacher', 'gaussian'\], got 'sign'",
        ),
        (
            lambda log_prob, x: likelihood.bits_per_dim(jnp.zeros(3), (2, 7)),
            r"shape must be that of the data, \(B, ...\), for log_prob \[B\], got \(2, 7\) and \(3,\)",
        ),
        (
            lambda log_prob, x: likelihood.bits_per_dim(jnp.zeros(2), (2, 7), width=0.0),
            "width must be",
        ),
        (
            lambda log_prob, x: likelihood.dequantize(jax.random.key(0), x),
            "images must be uint8, got float32",
        ),
        (
            lambda log_prob, x: likelihood.decode(SDES["ve"], None, x, temperature=0.0),
            "temperature must be a finite number > 0, got 0.0",
        ),
        (
            lambda log_prob, x: likelihood.interpolate(x, x, 1),
            "num must be an integer from 2 to .* got 1",
        ),
        (
            lambda log_prob, x: likelihood.interpolate(x, x[0], 3),
            r"z1 must have shape \(2, 3\), got \(3,\)",
        ),
    ],
)
def test_invalid_arguments_are_rejected(call, message):
    x = jnp.zeros((2, 3))

    def log_prob(**options):
        return likelihood.log_prob(jax.random.key(0), SDES["ve"], lambda x, t: x, x, **options)

    with pytest.raises(ValueError, match=message):
        call(log_prob, x)
