"""Tests likelihoods and latents for scores in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_ve, digits_vp
from ncsn_jax import likelihood, sampling, sde
from ncsn_jax._random import Stream, example_keys, stream_key
from ncsn_jax.app import build, devices, run_flows
from ncsn_jax.images import center, dequantize, uncenter
from tests.app.modes import runs
from tests.app.modes.runs import gaussian
from tests.running import load_diffusion_config

__all__ = ["gaussian"]


@pytest.mark.parametrize("module", [digits_ve, digits_vp])
def test_bits_per_dimension_match_a_known_density(module, monkeypatch):
    """Pixels are N(0.5, 0.3^2) in [0, 1]; the SDE may see 2 x - 1."""
    config = load_diffusion_config(module, **{"likelihood.exact": True})
    config.likelihood.rtol = config.likelihood.atol = 1e-5
    config.model.sigma_begin = 50.0
    process, std = build.make_sde(config), 0.6 if config.data.centered else 0.3
    mean = 0.0 if config.data.centered else 0.5

    def score(x, sigma):
        return (mean - x) / (std**2 + sigma**2)[:, None, None, None]

    time_score_fn = sde.from_sigma_score(process, score)
    monkeypatch.setattr(build, "make_score_fn", lambda *_: (score, time_score_fn))
    images = np.random.default_rng(0).integers(60, 200, (3, 8, 8, 1), dtype=np.uint8)
    bits_per_dim = run_flows.on_devices(config, run_flows.bits_per_dim)
    found, _ = bits_per_dim(devices.replicate({}), images, 3, [0, 1, 2])
    keys = example_keys(stream_key(config.seed, Stream.LIKELIHOOD), jnp.arange(3), 2)[0]
    x = np.asarray(dequantize(keys, images))
    nats = np.mean((x - 0.5) ** 2, axis=(1, 2, 3)) / 2 / 0.09 + np.log(0.3 * np.sqrt(2 * np.pi))
    # The prior is not quite the distribution at t = 1, and the noise at t = 0 has sigma_min^2 / std^2 = 1e-3.
    np.testing.assert_allclose(found, 8 + nats / np.log(2), atol=3e-3)


def test_latents_of_a_gaussian_are_scaled_images(gaussian):
    """The flow keeps the number of standard deviations, from `end` to 1 and back."""
    config = runs.vp_config(
        **{"sampling.end": 1e-2, "sampling.temperature": 0.5},
        **{"sampling.rtol": 1e-5, "sampling.atol": 1e-5},
    )
    params = devices.replicate({})
    encode, decode = (run_flows.on_devices(config, f) for f in (run_flows.encode, run_flows.decode))
    x = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    ratio = gaussian.std(jnp.float32(1.0)) / gaussian.std(jnp.float32(1e-2))
    latents, to_encode = encode(params, x, 3)
    np.testing.assert_allclose(latents, ratio * center(x), atol=1e-3)
    images, to_decode = decode(params, latents, 3)
    np.testing.assert_allclose(images, uncenter(0.5 * center(x)), atol=1e-3)
    assert to_encode.shape == (3,) and (to_decode > 0).all()


def test_projections_are_drawn_from_the_second_key_of_an_image(monkeypatch):
    """The first key dequantizes the image."""

    def log_prob(key, process, score_fn, x, **_):
        info = sampling.SamplerInfo(*[jnp.zeros(len(x))] * len(sampling.SamplerInfo._fields))
        return jax.vmap(jax.random.uniform)(key), info

    monkeypatch.setattr(likelihood, "log_prob", log_prob)
    monkeypatch.setattr(build, "make_score_fn", lambda *_: (None, None))
    config, indices = load_diffusion_config(digits_ve, seed=3), [5, 0]
    images = np.zeros((2, 8, 8, 1), np.uint8)
    bits_per_dim = run_flows.on_devices(config, run_flows.bits_per_dim)
    found, _ = bits_per_dim(devices.replicate({}), images, 2, indices)
    keys = example_keys(stream_key(3, Stream.LIKELIHOOD), jnp.asarray(indices), 2)[1]
    nats = jax.vmap(jax.random.uniform)(keys)
    np.testing.assert_allclose(found, likelihood.bits_per_dim(nats, images.shape), rtol=1e-6)
