"""Keys and numbers in every accepted form: legacy keys, NumPy scalars and traced numbers."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import classifier, images, likelihood, losses, sampling, scores, sde, sigmas
from ncsn_jax.scheduler import AnnealedLangevinDynamicsScheduler

VE, VP = sde.VE(0.01, 10.0), sde.VP()
LADDER = sigmas.geometric(10.0, 0.1, 3)
MIXTURE = scores.gaussian_mixture([[-1.0, 0.0], [1.0, 1.0]], [0.5, 1.0], [0.3, 0.7])
X = jnp.linspace(-1.0, 1.0, 8).reshape(4, 2)
SIGMA = jnp.full(4, 0.5)


def score(x, t):
    return -x


def corrected(key):
    options = {"corrector": "langevin", "snr": 0.1, "num_steps": 3}
    constrain = sampling.known_pixels(VE, X, jnp.ones((1, 2)))
    return sampling.predictor_corrector(key, VE, score, X, constrain=constrain, **options)[0]


TAKE_KEYS = {
    "langevin": lambda key: sampling.langevin(key, lambda x: -x, X, step_size=0.1, num_steps=2),
    "annealed_langevin": lambda key: sampling.annealed_langevin(
        key, score, X, LADDER, steps_per_level=2
    ),
    "inpaint": lambda key: sampling.inpaint(
        key, score, X, LADDER, X, jnp.asarray([[1, 0]]), steps_per_level=2
    ),
    "predictor_corrector": corrected,
    "heun": lambda key: sampling.heun(key, score, X, LADDER, churn=1.0)[0],
    "euler": lambda key: sampling.euler(key, score, X, LADDER, churn=1.0)[0],
    "dpm_solver": lambda key: sampling.dpm_solver(key, score, X, LADDER, stochastic=True)[0],
    "known_pixels": lambda key: sampling.known_pixels(VE, X, jnp.ones((1, 2)))(key, X, X, SIGMA)[0],
    "initial_samples": lambda key: sampling.initial_samples(key, (4, 2)),
    "denoising_score_matching": lambda key: losses.denoising_score_matching(key, score, X, SIGMA),
    "denoising_diffusion": lambda key: losses.denoising_diffusion(key, VE, score, X, SIGMA),
    "sliced_score_matching": lambda key: losses.sliced_score_matching(key, score, X, SIGMA),
    "sample_levels": lambda key: losses.sample_levels(key, LADDER, 4),
    "sample_times": lambda key: losses.sample_times(key, 4),
    "log_prob": lambda key: likelihood.log_prob(key, VP, score, X, rtol=0.1, atol=0.1),
    "dequantize": lambda key: images.dequantize(key, np.zeros((4, 2), np.uint8)),
    "prior_sample": lambda key: VE.prior_sample(key, (4, 2)),
    "sample": lambda key: MIXTURE.sample(key, 4),
    "step": lambda key: (
        AnnealedLangevinDynamicsScheduler(3, 2, 0.1, 1.0, 1e-3).step(key, X, 0, X).prev_sample
    ),
    "classifier.loss": lambda key: classifier.loss(
        key, VE, lambda x, t: x, X, jnp.zeros(4, int), SIGMA
    )[0],
}


@pytest.mark.parametrize("name", TAKE_KEYS)
def test_legacy_keys_act_like_typed_keys(name):
    """One key or several trace to the same program, which is not compiled here."""
    call = TAKE_KEYS[name]
    several = jax.random.split(jax.random.key(3), 4)
    for key in (jax.random.PRNGKey(3), jax.random.key_data(several)):
        typed = jax.jit(lambda data: call(jax.random.wrap_key_data(data))).lower(key)
        found = jax.jit(lambda data: call(data)).lower(key)
        assert found.as_text() == typed.as_text()
        assert found.out_info.shape[0] == 4


def test_every_public_function_with_a_key_is_tested():
    for module in (sampling, losses, images, likelihood):
        for name in module.__all__:
            function = getattr(module, name)
            if inspect.isfunction(function) and "key" in inspect.signature(function).parameters:
                # langevin_update, the paper's formula, checks nothing.
                assert name in TAKE_KEYS or name == "langevin_update"


def test_numpy_scalars_are_accepted_and_keep_results_float32():
    key, small, two = jax.random.key(0), np.float32(0.125), np.int64(2)
    double, steps, size = np.float64, np.int64(4), np.float64(0.125)

    def results():
        x = X.astype(jnp.float32)
        return [
            sampling.langevin(key, lambda x: -x, x, step_size=size, num_steps=two),
            sampling.annealed_langevin(
                key, score, x, LADDER, epsilon=size, steps_per_level=two, clip=(-size, size)
            ),
            sampling.heun(key, score, x, LADDER, churn=size, steps=(np.int64(0), two))[0],
            sampling.predictor_corrector(
                key,
                sde.VE(small, double(8)),
                score,
                x,
                corrector="annealed_langevin",
                snr=size,
                corrector_steps=two,
                num_steps=steps,
                end=size,
            )[0],
            likelihood.decode(
                sde.VP(size, two), score, x, temperature=size, rtol=size, atol=size, end=size
            ),
            losses.sample_times(key, steps, end=size),
            losses.sample_times(key, steps, num_levels=steps),
            losses.denoising_diffusion(key, VE, score, x, jnp.ones(4), num_levels=steps),
            losses.sliced_score_matching(key, score, x, jnp.ones(4), two),
            sigmas.karras(double(8), size, steps, rho=two),
            sigmas.geometric(double(8), size, steps),
            sde.VP(size, two).chain(steps)[1],
            AnnealedLangevinDynamicsScheduler(steps, two, size, double(1), size).step_size,
        ]

    with jax.enable_x64(True):
        found = jax.eval_shape(results)
    assert {a.dtype for a in found} == {jnp.dtype(jnp.float32)}


def over_snr(snr):
    options = {"corrector": "langevin", "snr": snr, "num_steps": 5}
    return sampling.predictor_corrector(jax.random.key(0), VE, score, X, **options)[0]


def over_sigma_max(predictor):
    def run(sigma_max):
        process = sde.VE(0.01, sigma_max)
        x = process.prior_sample(jax.random.key(1), (4, 2))
        x = sampling.predictor_corrector(
            jax.random.key(0), process, score, x, predictor=predictor, num_steps=5, end=1e-3
        )[0]
        return x, process.prior_log_prob(x), process.time(SIGMA), *process.chain(3)

    return run


def over_beta_max(beta_max):
    process = sde.VP(0.1, beta_max)
    x = process.prior_sample(jax.random.key(1), (4, 2))
    x = sampling.predictor_corrector(jax.random.key(0), process, score, x, num_steps=50)[0]
    return x, *process.chain(50), sde.SubVP(0.1, beta_max).std(SIGMA)


def over_end(end):
    x = sampling.predictor_corrector(jax.random.key(0), VE, score, X, num_steps=5, end=end)[0]
    solved = likelihood.decode(VP, score, X, end=end, temperature=1 - end)
    return x, solved, losses.sample_times(jax.random.key(0), 4, end=end)


@pytest.mark.parametrize(
    ("run", "values"),
    [
        (over_snr, [0.05, 0.1, 0.2]),
        (over_sigma_max("reverse_diffusion"), [5.0, 10.0]),
        (over_sigma_max("ancestral"), [5.0, 10.0]),
        (over_beta_max, [5.0, 20.0]),
        (over_end, [0.02, 0.3]),
    ],
)
def test_vmap_over_a_parameter_matches_single_runs(run, values):
    together = jax.jit(jax.vmap(run))(jnp.asarray(values))
    alone = jax.jit(lambda: run(values[-1]))()  # one value, as each compiles again
    for found, expected in zip(*map(jax.tree.leaves, (together, alone)), strict=True):
        np.testing.assert_allclose(found[-1], expected, rtol=2e-4, atol=2e-5)
