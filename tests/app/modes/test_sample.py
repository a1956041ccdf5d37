"""Compares `--mode=sample` on eight devices with one call of the library's sampler on one."""

import functools
import os
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

# Every value differs from the defaults of the library and the application.
METHODS = {
    "heun": {"sampling.num_steps": 5, "sampling.rho": 5.0, "sampling.churn": 2.0},
    "dpm_solver": {
        "sampling.num_steps": 5,
        "sampling.schedule": "cosine",
        "sampling.order": 3,
        "sampling.stochastic": True,
    },
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

    def dpm_solver():
        ladder = sigmas.cosine(model.sigma_begin, model.sigma_end, 5)
        x, options = model.sigma_begin * runs.normal(start), {"order": 3, "stochastic": True}
        return sampling.dpm_solver(key, sigma_score_fn, x, ladder, **options)[0]

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
def test_samples_match_the_library_on_one_device(method, kind, vp_run, ladder_run):
    make, workdir = {
        "vp": (runs.vp_config, vp_run),
        "ladder": (runs.ladder_config, ladder_run),
    }[kind]
    config = make(**METHODS[method] | {"sampling.method": method, "sampling.name": method})
    run_lib.sample(config, workdir)
    directory = f"samples/step_{runs.STEP}_{method}"
    found = runs.read(workdir, directory, "samples.npz")["samples"]
    runs.assert_alike(found, by_library(config, workdir))


def test_more_samples_are_added_and_different_settings_are_refused(vp_run):
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
        **{"sampling.num_samples": 9, "sampling.batch_size": 12},
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


def test_pixels_far_outside_the_range_cause_a_warning(ladder_run, tmp_path):
    workdir = str(shutil.copytree(ladder_run, tmp_path / "run"))
    run_lib.sample(runs.ladder_config(**{"sampling.epsilon": 10.0}), workdir)
    assert "of the pixels lie far outside [0, 1]" in storage.read(f"{workdir}/log.txt").decode()


def test_far_outside_is_measured_in_units_of_pixels(vp_run, gaussian, tmp_path):
    """In [-1, 1] the standard deviation is 0.6 * 4.5 and 3 counts as far, as it is for 27 % of the pixels."""
    workdir = str(shutil.copytree(vp_run, tmp_path / "run"))
    changes = {"sampling.method": "probability_flow", "sampling.temperature": 4.5}
    run_lib.sample(runs.vp_config(**changes), workdir)
    log = storage.read(f"{workdir}/log.txt").decode()
    assert "samples.npz" in log and "far outside" not in log


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no run: train first"):
        run_lib.sample(runs.ladder_config(), str(tmp_path / "nothing"))


# What determines the samples of METHODS besides: fields of the method that keep their value of SMALL, and a
# tuple as JSON has it.
MORE = {
    "heun": {"sampling.schedule": "karras"},
    "probability_flow": {"sampling.rtol": 1e-3, "sampling.atol": 1e-3},
    "annealed_langevin": {"sampling.clip": [0.3, 0.8]},
}
# Of an SDE on which the samplers along sigmas depend and training does not.
LADDER = {"model.sigma_begin": 10.0, "model.sigma_end": 0.02, "model.num_levels": 6}
OTHER = {
    "sampling.num_steps": 20,
    "sampling.rho": 6.0,
    "sampling.churn": 0.0,
    "sampling.schedule": "exponential",
    "sampling.order": 2,
    "sampling.stochastic": False,
    "sampling.predictor": "reverse_diffusion",
    "sampling.corrector": "annealed_langevin",
    "sampling.snr": 0.2,
    "sampling.corrector_steps": 1,
    "sampling.end": 2e-2,
    "sampling.denoise": True,
    "sampling.rtol": 1e-2,
    "sampling.atol": 1e-2,
    "sampling.temperature": 1.0,
    "sampling.epsilon": 2e-5,
    "sampling.steps_per_level": 3,
    "sampling.clip": (),
    "sampling.init": "normal",
    "sampling.dtype": "bfloat16",
    "sampling.precision": "high",
    "model.sigma_begin": 9.0,
    "model.sigma_end": 0.01,
    "model.num_levels": 7,
}


@pytest.mark.parametrize("method", METHODS)
def test_different_sampling_settings_are_refused(method, vp_run, chains):
    config = runs.vp_config(
        **METHODS[method] | {"sampling.method": method, "sampling.name": f"{method}_apart"}
    )
    run_lib.sample(config, vp_run)
    expected = METHODS[method] | MORE.get(method, {})
    expected |= {"sampling.method": method, "sampling.dtype": "float32"}
    expected |= {"sampling.precision": "default"}
    if method in ("heun", "dpm_solver", "annealed_langevin"):
        expected |= LADDER
    others = {field: OTHER[field] for field in expected if field != "sampling.method"}
    others["sampling.method"] = "probability_flow" if method == "heun" else "heun"
    expected |= {"seed": 7, "step": 4}
    assert runs.settings(f"{vp_run}/samples/step_4_{method}_apart") == expected
    runs.assert_others_are_refused(run_lib.sample, config, vp_run, others)
    others = {
        "sampling.batch_size": 2,
        "sampling.name": f"{method}_other",
        "sampling.preview_samples": 2,
    }
    config.update_from_flattened_dict(others)
    run_lib.sample(config, vp_run)  # a different name has its own directory


def test_the_ladder_of_a_run_is_not_a_sampling_setting(ladder_run, chains):
    config = runs.ladder_config(**{"sampling.name": "ladder", "sampling.epsilon": 1e-4})
    run_lib.sample(config, ladder_run)
    assert runs.settings(f"{ladder_run}/samples/step_4_ladder") == {
        "sampling.method": "annealed_langevin",
        "sampling.epsilon": 1e-4,
        "sampling.steps_per_level": 2,
        "sampling.denoise": True,
        "sampling.clip": [],
        "sampling.init": "uniform",
        "sampling.dtype": "float32",
        "sampling.precision": "default",
        "seed": 7,
        "step": 4,
    }


def test_existing_samples_are_not_made_again(ladder_run, chains):
    config = runs.ladder_config(**{"sampling.name": "counted"})
    directory = f"{ladder_run}/samples/step_4_counted"
    # Requested count, batches made, stored count, columns of the grid.
    for count, made, there, columns in [
        (5, [[0, 1, 2], [3, 4]], 5, 3),
        (2, [], 5, 3),
        (9, [[5, 6, 7], [8]], 9, 3),
        (102, [list(range(i, i + 3)) for i in range(9, 102, 3)], 102, 10),
    ]:
        config.sampling.num_samples = count
        chains.clear()
        run_lib.sample(config, ladder_run)
        assert [call["indices"] for call in chains] == made
        assert all((c["size"], c["known"], c["num_frames"]) == (3, (), 0) for c in chains)
        assert all((c["seed"], c["task"]) == (7, Stream.SAMPLES) for c in chains)
        assert sorted(os.listdir(directory)) == [
            "cost.json",
            "grid.png",
            "samples.npz",
            "settings.json",
        ]
        found, expected = runs.read(directory, "samples.npz"), [runs.drawn(i) for i in range(there)]
        assert list(found) == ["samples"]
        np.testing.assert_array_equal(found["samples"], expected)
        runs.assert_shows(f"{directory}/grid.png", runs.rows_of(expected[:100], columns))
    runs.assert_ema(chains[-1]["params"], config, ladder_run)


@pytest.mark.parametrize(("count", "size", "filmed"), [(9, 40, 9), (40, 12, 12), (40, 40, 36)])
def test_a_film_shows_how_the_first_samples_evolve(count, size, filmed, ladder_run, chains):
    name = f"film_{count}_{size}"
    config = runs.ladder_config(
        **{"sampling.gif": True, "sampling.name": name},
        **{"sampling.num_samples": count, "sampling.batch_size": size},
    )
    run_lib.sample(config, ladder_run)
    film = chains[-1]
    told = (film["indices"], film["size"], film["num_frames"])
    assert told == (list(range(filmed)), min(count, size), 60)
    runs.assert_ema(film["params"], config, ladder_run)
    directory = f"{ladder_run}/samples/step_4_{name}"
    written = [
        "annealing.gif",
        "cost.json",
        "filmstrip.png",
        "grid.png",
        "samples.npz",
        "settings.json",
    ]
    assert sorted(os.listdir(directory)) == written
    columns = {9: 3, 12: 4, 36: 6}[filmed]
    with Image.open(f"{directory}/annealing.gif") as gif:
        assert gif.n_frames == 60 and gif.info["loop"] == 0
        for f in (0, 1, 58, 59):
            gif.seek(f)
            assert gif.info["duration"] == (2000 if f == 59 else 60)
            frame = [runs.drawn(i, frame=f + 1) for i in range(filmed)]
            runs.assert_shows(np.asarray(gif.convert("L")), runs.rows_of(frame, columns))
    shown = np.round(np.linspace(0, 59, 12)).astype(int)  # both ends, and ten between
    expected = [[runs.drawn(i, frame=f + 1) for f in shown] for i in range(8)]
    runs.assert_shows(f"{directory}/filmstrip.png", expected)
