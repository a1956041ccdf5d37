"""Tests the samplers' starts and arguments, and the settings that identify their samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_vp
from ncsn_jax import sde, sigmas
from ncsn_jax._random import Stream
from ncsn_jax.app import build, samplers, schema
from tests.recording import draw
from tests.running import load_config, load_diffusion_config


@pytest.mark.parametrize("method", schema.METHODS)
def test_a_method_runs_only_its_sampler(method, record):
    draw(load_config(**{"sampling.method": method}))
    assert set(record.calls) & set(schema.METHODS) == {method}


@pytest.mark.parametrize(
    ("method", "changes", "expected"),
    [
        ("annealed_langevin", {"steps_per_level": 3}, 2 * 3 + 1),
        ("annealed_langevin", {"steps_per_level": 3, "denoise": False}, 2 * 3),
        ("predictor_corrector", {"corrector_steps": 2}, 5),
        ("predictor_corrector", {"corrector": "langevin", "corrector_steps": 2}, 5 * 3),
        ("predictor_corrector", {"corrector": "langevin", "predictor": "none"}, 5),
        ("heun", {}, 9),  # the last step is of first order
        ("euler", {}, 5),
        ("dpm_solver", {"order": 3}, 5),
        ("probability_flow", {}, None),
    ],
)
def test_evaluations_follow_from_the_steps(method, changes, expected):
    changes = {"method": method, "num_steps": 5, "snr": 0.1} | changes
    config = load_config(**{f"sampling.{name}": value for name, value in changes.items()})
    assert samplers.make(config).evaluations == expected


SETTINGS = {
    "annealed_langevin": (
        "epsilon",
        "steps_per_level",
        "denoise",
        "clip",
        "init",
        "dtype",
        "precision",
    ),
    "predictor_corrector": (
        *(
            "predictor",
            "corrector",
            "snr",
            "corrector_steps",
            "num_steps",
            "end",
            "denoise",
            "dtype",
            "precision",
        ),
    ),
    "probability_flow": ("rtol", "atol", "end", "temperature", "dtype", "precision"),
    "heun": ("num_steps", "schedule", "rho", "churn", "dtype", "precision"),
    "euler": ("num_steps", "schedule", "rho", "churn", "dtype", "precision"),
    "dpm_solver": (*("num_steps", "schedule", "rho", "order", "stochastic", "dtype", "precision"),),
}


@pytest.mark.parametrize("method", SETTINGS)
def test_settings_hold_everything_that_determines_the_samples(method):
    """The settings are stored with the samples, so that different samples are not mixed."""
    config = load_config(**{"sampling.method": method, "seed": 3})
    flat = schema.flatten(config)
    fields = ["sampling.method", *(f"sampling.{name}" for name in SETTINGS[method]), "seed"]
    assert samplers.settings(config) == {field: flat[field] for field in fields}
    config = load_diffusion_config(**{"sampling.method": method})
    along_sigmas = {"model.sigma_begin", "model.sigma_end", "model.num_levels"}
    by_time = ("predictor_corrector", "probability_flow")
    more = set() if method in by_time else along_sigmas
    assert samplers.settings(config).keys() == set(fields) | more


@pytest.mark.parametrize(
    ("schedule", "fields"),
    [("karras", {"rho"}), ("exponential", set()), ("cosine", set()), ("sde", {"end"})],
)
def test_settings_hold_the_fields_of_the_schedule_only(schedule, fields):
    config = load_config(**{"sampling.method": "dpm_solver", "sampling.schedule": schedule})
    found = {name.removeprefix("sampling.") for name in samplers.settings(config)}
    assert found & {"rho", "end"} == fields


def test_guidance_takes_two_evaluations_for_one():
    labelled = {"sampling.method": "heun", "sampling.num_steps": 5, "data.labels": True}
    some = (0.1, 1)
    for scale, interval, count in (
        *((1, (), 9), (0, (), 9), (2, (), 18)),
        *((1, some, 9), (0, some, 18), (2, some, 18)),
    ):
        changes = {"sampling.guidance": float(scale), "sampling.guidance_interval": interval}
        assert samplers.make(load_config(**labelled | changes)).evaluations == count


def normal(keys, shape=(8, 8, 1)):
    return np.stack([jax.random.normal(key, shape) for key in keys])


KEYS = jax.random.split(jax.random.key(0), 2)


@pytest.mark.parametrize(
    ("module", "method", "std"),
    [
        (None, "heun", 5.0),
        (digits_vp, "heun", 10.0),
        (digits_vp, "dpm_solver", 10.0),
        (None, "predictor_corrector", 5.0),
        (digits_vp, "predictor_corrector", 1.0),
        (None, "probability_flow", 15.0),
        (digits_vp, "probability_flow", 3.0),
    ],
)
def test_chains_start_with_the_noise_scale_of_their_sde(module, method, std, record):
    """sigma_begin along sigmas, else the prior's, times temperature for the probability flow."""
    config = load_diffusion_config(
        module, **{"sampling.method": method, "sampling.temperature": 3.0, "sampling.num_steps": 30}
    )
    found, _ = draw(config)
    found = found[0] if method == "dpm_solver" else found
    np.testing.assert_allclose(found, std * normal(KEYS), rtol=1e-5)


def test_schedules_run_from_sigma_begin_or_over_the_times_of_the_sde():
    """The sigmas of VP are those of its times; for a ladder the SDE's are geometric."""
    of = lambda config, name: build.make_sampling_sigmas(
        load_diffusion_config(config, **{"sampling.schedule": name, "sampling.num_steps": 5})
    )
    for name in ("karras", "exponential", "cosine"):
        ladder = np.asarray(of(digits_vp, name))
        np.testing.assert_array_equal(ladder[[0, -1]], np.float32([10.0, 0.02]))
        np.testing.assert_array_equal(ladder, getattr(sigmas, name)(10.0, 0.02, 5))
    vp = sde.VP()
    times = np.linspace(1, 1e-3, 5, dtype=np.float32)
    np.testing.assert_allclose(of(digits_vp, "sde"), vp.sigma(times), rtol=1e-5)


@pytest.mark.parametrize(
    ("init", "centered", "expected"),
    [
        ("normal", False, lambda z: 5 * z),
        ("centred_normal", False, lambda z: 0.5 + 5 * z),
        # sigma_begin is in units of [-1, 1], where 1/2 is 0 and N(0, sigma) begins at -1.
        ("centred_normal", True, lambda z: 5 * z),
        ("normal", True, lambda z: 5 * z - 1),
    ],
)
def test_annealed_chains_start_in_the_range_of_the_sde(init, centered, expected, record):
    changes = {"sampling.method": "annealed_langevin", "sampling.init": init}
    found, _ = draw(load_diffusion_config(**changes, **{"data.centered": centered}))
    np.testing.assert_allclose(found, expected(normal(KEYS)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", [True, False])
def test_predictor_corrector_ends_with_the_exact_observed_pixels(keep, record):
    changes = {"sampling.method": "predictor_corrector", "inpainting.keep_observed": keep}
    mask = np.zeros((2, 8, 8, 1), bool)
    mask[:, :4] = True
    start, end = draw(load_config(**changes), Stream.INPAINTING, jnp.full(mask.shape, 0.25), mask)
    np.testing.assert_array_equal(end, np.where(mask & keep, 0.25, start))


@pytest.mark.parametrize("method", ["annealed_langevin", "predictor_corrector"])
def test_observed_images_are_centred_like_the_sde(method, record):
    known = jnp.full((2, 8, 8, 1), 0.25), jnp.ones((2, 8, 8, 1), bool)
    changes = {"sampling.method": method, "sampling.num_steps": 30}
    _, end = draw(load_diffusion_config(digits_vp, **changes), Stream.INPAINTING, *known)
    if method == "predictor_corrector":
        np.testing.assert_array_equal(end, -0.5)
    else:
        np.testing.assert_array_equal(record.calls["inpaint"][0]["observed"], -0.5)


def test_grey_images_to_colorize_are_centred_like_the_sde(record):
    changes = {"sampling.method": "predictor_corrector", "sampling.num_steps": 30}
    config = load_diffusion_config(digits_vp, **changes, **{"data.channels": 3})
    draw(config, Stream.COLORIZATION, jnp.full((2, 8, 8, 1), 0.25))
    np.testing.assert_array_equal(record.calls["known_grey"][0]["grey"], -0.5)
