"""`--mode=sample` on eight devices against one call of the library's sampler on one."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import run_lib
from ncsn_jax import images, sampling, sigmas
from ncsn_jax._random import Stream
from ncsn_jax.app import storage
from ncsn_jax.errors import UserError
from tests.app.modes import runs

INDICES = range(5)

# No value is a default of the library or the application.
METHODS = {
    "heun": {"sampling.num_steps": 5, "sampling.rho": 5.0, "sampling.churn": 2.0},
    "predictor_corrector": {
        "sampling.predictor": "euler_maruyama",
        "sampling.corrector": "langevin",
        "sampling.snr": 0.1,
        "sampling.corrector_steps": 2,
        "sampling.num_steps": 21,
        "sampling.end": 1e-2,
        "sampling.denoise": False,
    },
    "probability_flow": {"sampling.end": 1e-2, "sampling.temperature": 0.8},
    "annealed_langevin": {
        "sampling.steps_per_level": 2,
        "sampling.epsilon": 1e-5,
        "sampling.denoise": False,
        "sampling.clip": (0.3, 0.8),
        "sampling.init": "uniform",
    },
}


def by_library(config, workdir):
    """Returns the samples that a configuration of METHODS describes."""
    process, sigma_score_fn, time_score_fn = runs.library(config, workdir)
    start, key = runs.keys(Stream.SAMPLES, INDICES)
    options, model = config.sampling, config.model
    prior = runs.normal(start) * (1.0 if config.data.centered else model.sigma_begin)

    def heun():
        ladder = sigmas.karras(model.sigma_begin, model.sigma_end, 5, 5.0)
        x = model.sigma_begin * runs.normal(start)
        return sampling.heun(key, sigma_score_fn, x, ladder, churn=2.0)[0]

    def predictor_corrector():
        return sampling.predictor_corrector(
            *(key, process, time_score_fn, prior),
            predictor="euler_maruyama",
            corrector="langevin",
            snr=0.1,
            corrector_steps=2,
            num_steps=21,
            end=1e-2,
            denoise=False,
        )[0]

    def probability_flow():
        solve = functools.partial(sampling.probability_flow, process, time_score_fn)
        return solve(0.8 * prior, rtol=1e-3, atol=1e-3, end=1e-2)[0]

    def annealed_langevin():
        clip = [images.center(c, config.data.centered) for c in (0.3, 0.8)]
        x = sampling.initial_samples(start, (5, *runs.SHAPE), "uniform")
        ladder = sigmas.geometric(model.sigma_begin, model.sigma_end, model.num_levels)
        return sampling.annealed_langevin(
            *(key, sigma_score_fn, images.center(x, config.data.centered), ladder),
            epsilon=1e-5,
            steps_per_level=2,
            clip=tuple(clip),
        )

    return runs.as_bytes(config, jax.jit(locals()[options.method])())


@pytest.mark.parametrize(
    ("method", "kind"),
    [*((m, "vp") for m in METHODS), ("heun", "ladder"), ("annealed_langevin", "ladder")],
)
def test_samples_are_those_of_the_library_on_one_device(method, kind, vp_run, ladder_run):
    make, workdir = {
        "vp": (runs.vp_config, vp_run),
        "ladder": (runs.ladder_config, ladder_run),
    }[kind]
    config = make(**METHODS[method] | {"sampling.method": method, "sampling.name": method})
    run_lib.sample(config, workdir)
    directory = f"samples/step_{runs.STEP}_{method}"
    found = runs.read(workdir, directory, "samples.npz")["samples"]
    runs.assert_alike(found, by_library(config, workdir))
    settings = json.loads(storage.read(f"{workdir}/{directory}/settings.json"))
    assert settings["seed"] == runs.SEED and settings["step"] == runs.STEP
    assert (
        settings.items()
        >= {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in METHODS[method].items()
        }.items()
    )


def test_more_samples_are_added_and_other_settings_are_refused(vp_run):
    make = functools.partial(runs.vp_config, **{"sampling.name": "more"})
    run_lib.sample(make(**{"sampling.num_samples": 2}), vp_run)
    directory = f"samples/step_{runs.STEP}_more"
    first = runs.read(vp_run, directory, "samples.npz")["samples"]
    run_lib.sample(make(), vp_run)
    found = runs.read(vp_run, directory, "samples.npz")["samples"]
    assert len(found) == 5
    np.testing.assert_array_equal(found[:2], first)
    for changes, message in [
        ({"sampling.num_steps": 4}, "sampling.num_steps is 5 there and 4 here"),
        ({"seed": 8}, "seed is 7 there and 8 here"),
    ]:
        with pytest.raises(UserError, match=message):
            run_lib.sample(make(**changes), vp_run)


def test_a_film_ends_with_the_samples(ladder_run):
    config = runs.ladder_config(
        **{"sampling.gif": True, "sampling.name": "film", "sampling.steps_per_level": 4},
        **{"sampling.num_samples": 9, "sampling.batch_size": 9},
    )
    run_lib.sample(config, ladder_run)
    directory = f"{ladder_run}/samples/step_{runs.STEP}_film"
    samples = runs.read(directory, "samples.npz")["samples"]
    with Image.open(f"{directory}/annealing.gif") as gif:
        # 3 levels of 4 steps and the denoising; 9 samples in rows of 3, enlarged by 15.
        assert gif.n_frames == 13 and gif.size == (15 * 28, 15 * 28)
        gif.seek(12)
        last = np.asarray(gif.convert("L"))[::15, ::15]
    for i, sample in enumerate(samples):
        top, left = 1 + 9 * (i // 3), 1 + 9 * (i % 3)
        np.testing.assert_array_equal(last[top : top + 8, left : left + 8], sample[..., 0])
    with Image.open(f"{directory}/filmstrip.png") as strip:
        assert strip.size == (6 * 109, 6 * 73)  # 12 frames of each of 8 samples, enlarged by 6


def test_pixels_far_outside_are_warned_of(ladder_run, tmp_path):
    workdir = str(shutil.copytree(ladder_run, tmp_path / "run"))
    run_lib.sample(runs.ladder_config(**{"sampling.epsilon": 10.0}), workdir)
    assert "of the pixels lie far outside [0, 1]" in storage.read(f"{workdir}/log.txt").decode()


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no run: train first"):
        run_lib.sample(runs.ladder_config(), str(tmp_path / "nothing"))
