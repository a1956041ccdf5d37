"""Samplers, losses and the scheduler in half precision and float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import likelihood, losses, sampling, sde, sigmas
from ncsn_jax.scheduler import AnnealedLangevinDynamicsScheduler

# The data are N(0, 1).
N = 2000
SDES = {"ve": sde.VE(0.01, 20.0), "vp": sde.VP()}
LADDER = sigmas.geometric(20.0, 0.01, 40)


def sigma_score(x, sigma):
    return -x / (1 + sigma[:, None] ** 2)


def log_density(x, sigma):
    return -0.5 * jnp.sum(x**2, axis=1) / (1 + sigma**2)


def time_score(process):
    return sde.from_sigma_score(process, sigma_score)


def inpainted(key, x):
    known, mask = jnp.full((N, 1), 50.0), jnp.zeros((N, 1))
    options = {"epsilon": 4e-5, "steps_per_level": 20, "scheme": "ncsnv2"}
    return sampling.inpaint(key, sigma_score, x, LADDER, known, mask, **options)


def corrected(name, key, x, predictor="reverse_diffusion", **options):
    process = SDES[name]
    return sampling.predictor_corrector(
        key, process, time_score(process), x, predictor=predictor, num_steps=1000, **options
    )[0]


SAMPLERS = {
    "langevin": lambda key, x: sampling.langevin(
        key, lambda x: -x, x / 20, step_size=0.02, num_steps=1000
    ),
    "annealed_langevin": lambda key, x: sampling.annealed_langevin(
        key, sigma_score, x, LADDER, epsilon=4e-5, steps_per_level=20, denoise=True
    ),
    "inpaint": inpainted,
    "heun": lambda key, x: sampling.heun(key, sigma_score, x, LADDER, churn=20.0)[0],
    "predictor_corrector ve": functools.partial(
        corrected, "ve", corrector="annealed_langevin", snr=0.1
    ),
    "predictor_corrector vp": lambda key, x: corrected("vp", key, x / 20, "euler_maruyama"),
    "known_pixels": lambda key, x: corrected(
        "ve", key, x, constrain=sampling.known_pixels(SDES["ve"], x, jnp.zeros_like(x))
    ),
    "guided": lambda key, x: sampling.heun(
        key, sampling.guided(lambda x, sigma: 0 * x, log_density), x, LADDER
    )[0],
    "decode, by probability_flow": lambda key, x: likelihood.decode(
        SDES["vp"], time_score(SDES["vp"]), x / 20
    ),
}


# Each sampler's own tests cover float32.
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_samples_the_data_and_keeps_the_type_of_x(name, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        x = SDES["ve"].prior_sample(jax.random.key(0), (N, 1)).astype(dtype)
        x = jax.jit(SAMPLERS[name])(jax.random.key(1), x)
        assert x.dtype == dtype
        std = float(jnp.std(x.astype(jnp.float32)))
    # The finite steps change it by a few percent, for any type.
    assert abs(std - 1) < 5 / np.sqrt(2 * N) + 0.04


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_losses_and_log_prob_of_half_precision_images_are_float32(dtype):
    """With D = 2^18, losses and log densities exceed the largest float16."""
    key, process = jax.random.key(0), SDES["vp"]
    x, level = jnp.zeros((1, 2**18), dtype), jnp.full(1, 0.5, dtype)
    zero = lambda x, _: 0 * x
    for found in (
        losses.denoising_score_matching(key, zero, x, level),
        losses.denoising_diffusion(key, process, zero, x, level),
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, 2**17, rtol=5 * np.sqrt(2 / 2**18))
    if dtype == jnp.bfloat16:
        return  # compiling one solver is enough
    nats = likelihood.log_prob(key, process, lambda x, t: -x, x)
    assert nats.dtype == jnp.float32
    np.testing.assert_allclose(nats, -(2**17) * np.log(2 * np.pi), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_scheduler_computes_in_float32_and_keeps_the_type_of_x(dtype):
    """Takes one step at the largest and smallest sigma of a published range."""
    scheduler = AnnealedLangevinDynamicsScheduler(232, 5, 0.01, 50.0, 1e-5)
    x, key = jnp.ones((4, 3), dtype), jax.random.key(0)
    for t in (0, 231):
        fine = scheduler.step(key, -x.astype(jnp.float32), t, x.astype(jnp.float32))
        found = scheduler.step(key, -x, t, x).prev_sample
        assert found.dtype == dtype
        assert (found == fine.prev_sample.astype(dtype)).all()
    noisy = scheduler.add_noise(x, x, jnp.asarray([0, 1, 2, 231]))
    assert noisy.dtype == dtype
    assert (noisy[:, 0] == (1 + scheduler.sigmas[jnp.asarray([0, 1, 2, 231])]).astype(dtype)).all()
