"""Calls functions of the library with arguments of the wrong shape or type, or with non-finite values.

The names of their parameters determine the arguments.
"""

import inspect

import numpy as np

from tests.hostile import HUGE, NUMBERS, STRINGS, Failure, entry


def _array(rng):
    """Returns an array to replace another."""
    shapes = [(), (0,), (1,), (2,), (3,), (2, 2), (0, 2), (2, 0), (2, 2, 1), (1, 1, 1, 1)]
    # Not float64, about which jax itself warns.
    array = np.ones(rng.choice(shapes), rng.choice(["f4", "f4", "f4", "f2", "i4", "u1", "?"]))
    if array.dtype.kind == "f" and rng.random() < 0.3:
        array = array * np.float32(rng.choice([0, -1, np.nan, np.inf, -np.inf, 1e-38, 1e38]))
    return array


@entry(
    9,
    "ncsn_jax.scheduler",
    "ncsn_jax.losses",
    "ncsn_jax.scores",
    "ncsn_jax.likelihood",
    "diffrax",
    kind="library",
)
def make_library(case):
    """One of the functions with up to two arguments replaced; with none replaced it must accept."""
    import jax
    import jax.numpy as jnp

    from ncsn_jax import (
        likelihood,
        losses,
        preconditioning,
        sampling,
        scheduler,
        scores,
        sde,
        sigmas,
    )

    rng = case.rng
    scheme = scheduler.AnnealedLangevinDynamicsScheduler(3, 2, 0.1, 1.0, 1e-3)
    info = rng.random() < 0.5  # not available for a part of the steps
    # fmt: off
    functions = [
        sigmas.geometric, sigmas.suggest, sigmas.largest_distance, sigmas.level_ratio, sigmas.step_size,
        sigmas.karras, sampling.heun, sampling.predictor_corrector, sampling.known_pixels,
        sampling.known_grey, sampling.guided, sampling.classifier_free, losses.denoising_diffusion,
        losses.sample_times,
        sampling.langevin, sampling.annealed_langevin, sampling.inpaint, sampling.initial_samples,
        losses.sample_levels, losses.denoising_score_matching, losses.sliced_score_matching,
        losses.score_matching, scores.gaussian_mixture, scheduler.AnnealedLangevinDynamicsScheduler,
        scheme.set_timesteps, scheme.set_sigmas, scheme.step, scheme.add_noise,
        sampling.probability_flow, likelihood.log_prob, likelihood.encode, likelihood.decode,
        likelihood.bits_per_dim, likelihood.dequantize, likelihood.interpolate, preconditioning.edm,
        preconditioning.edm_noise, preconditioning.ve_noise, preconditioning.vp_noise,
    ]
    x = jnp.array([[0.5, 0.1], [0.9, 0.3]])
    good = {
        "key": jax.random.key(0), "x": x, "score_fn": lambda x, *_: -x, "sigma": jnp.ones(2),
        "sigmas": jnp.array([1.0, 0.5, 0.1]), "observed": x, "mask": jnp.zeros((2, 2)),
        "sigma_begin": 1.0, "sigma_end": 0.1, "num_levels": 3, "steps_per_level": 2, "overlap": 0.5,
        "dimension": 64, "ratio": 1.5, "step_size": 0.1, "num_steps": 3, "epsilon": 0.1, "denoise": True,
        "clip": (0.0, 1.0), "keep_observed": False, "scheme": "paper", "steps": None if info else (0, 3),
        "shape": (2, 6), "init": "data", "scale": 1.0, "batch_size": 2, "num_projections": 1,
        "means": jnp.ones((2, 2)), "stds": jnp.ones(2), "weights": jnp.ones(2) / 2, "num_train_timesteps": 3,
        "num_annealed_steps": 2, "sigma_min": 0.1, "sigma_max": 1.0, "sampling_eps": 1e-3,
        "num_inference_steps": 3, "model_output": x, "timestep": 1, "sample": x, "original_samples": x,
        "noise": x, "timesteps": jnp.array([0, 1]), "data": np.eye(2, 6, dtype=np.float32),
        "sde": sde.VE(0.1, 1.0), "z": x, "z0": x, "z1": x + 1, "num": 3, "start": 0.5, "end": 0.6,
        "rtol": 0.1, "atol": 0.1, "max_steps": 3, "exact": False, "projection": "gaussian",
        "temperature": 1.0, "log_prob": jnp.zeros(2), "levels": 256, "width": 1.0,
        "images": jnp.zeros((2, 3), jnp.uint8),
        "return_info": info, "num_frames": None, "rho": 7.0, "churn": 1.0, "churn_range": (0.0, 1.0),
        "churn_noise": 1.0, "second_order": True, "predictor": "ancestral",
        "corrector": "langevin", "snr": 0.1, "corrector_steps": 1, "average_step_size": False,
        "constrain": None, "grey": jnp.ones((1, 2, 2, 1)), "t": jnp.ones(2), "likelihood_weighting": False,
        "log_likelihood": lambda x, _: -x[:, 0], "sigma_data": 0.5, "p_mean": -1.2, "p_std": 1.2,
        "unconditional": lambda x, *_: -x, "interval": (0.0, 1.0),
    }
    # fmt: on
    function = rng.choice(functions)
    arguments = {name: good[name] for name in inspect.signature(function).parameters}
    changed = rng.choice([0, 1, 1, 1, 1, 1, 2, 2])
    for name in rng.sample(sorted(arguments), min(changed, len(arguments))):
        if name in ("sde", "constrain", "log_likelihood"):
            choices = [good[name]]
        elif name in ("score_fn", "unconditional"):
            choices = [lambda a, *_: a[:1], lambda *_: jnp.zeros(()), lambda a, *_: a * jnp.nan]
        elif name == "key":
            choices = [_array(rng), *(jax.random.split(good["key"], n) for n in (1, 2, 3))]
        elif isinstance(good[name], jax.Array | np.ndarray):
            choices = [_array(rng), good[name] * rng.choice([0, -1, jnp.nan, jnp.inf]), None]
        else:
            number = rng.choice(NUMBERS + HUGE)
            choices = [number, number, number, (0, number), (number, 1.0), _array(rng), None]
            if isinstance(good[name], str):
                choices = [*choices[-3:], rng.choice(STRINGS)]
        arguments[name] = rng.choice(choices)

    def call():
        try:
            jax.block_until_ready(function(**arguments))
        except ValueError as error:
            if not changed:
                raise Failure(f"refused what is sound: {error}") from error
            raise

    return call, None
