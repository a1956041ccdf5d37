"""Tests which images the modes work on, and where results are stored."""

import contextlib
import re

import numpy as np
import pytest
from PIL import Image

import run_lib
from ncsn_jax.app import build, data, storage
from ncsn_jax.app.modes import nearest, sample, shared
from tests.app.modes import runs


@pytest.mark.parametrize(("crop_size", "side"), [(0, 12), (-1, 12), (10, 10)])
def test_own_images_are_cropped_and_resized_like_a_training_directory(crop_size, side, tmp_path):
    """If the training images are not cropped, the largest squares of one's own images are used."""
    expected = []
    for i in range(3):
        image = Image.fromarray(runs.drawn(i, (12, 16, 3)))
        image.save(tmp_path / f"{i}.png")
        left, top = (16 - side) // 2, (12 - side) // 2
        square = image.convert("L").crop((left, top, left + side, top + side))
        expected.append(np.asarray(square.resize((8, 8), Image.Resampling.BILINEAR))[..., None])
    config = runs.ladder_config(**{"data.crop_size": crop_size, "inpainting.images": str(tmp_path)})
    for count in (1, 2, 5):
        found = shared.load_originals(config, "", count)
        np.testing.assert_array_equal(found, expected[:count])


def test_skipped_files_among_own_images_are_named(tmp_path, caplog):
    Image.fromarray(runs.drawn(0)[..., 0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    Image.new("LA", (8, 8)).save(tmp_path / "c.png")
    config = runs.ladder_config(**{"inpainting.images": str(tmp_path), "data.background": 70})
    with caplog.at_level("WARNING", "ncsn_jax"):
        found = shared.load_originals(config, "", 2)
    np.testing.assert_array_equal(found, [runs.drawn(0), np.full((8, 8, 1), 70)])
    assert (
        f"{tmp_path}: 1 with transparency, on data.background=70; 1 unreadable (b.png"
        in caplog.text
    )


def test_originals_are_the_first_images_of_the_test_split():
    expected = data.load("digits", "", 8, 1, split="test")
    found = shared.load_originals(runs.ladder_config(), "", 3)
    np.testing.assert_array_equal(found, expected[:3])
    assert len(shared.load_originals(runs.ladder_config(), "", 10_000)) == len(expected)
    assert not np.array_equal(found, build.load_images(runs.ladder_config())[:3])


def test_results_are_stored_by_kind_step_and_name():
    config = runs.ladder_config()
    loaded = shared.Loaded(config, "run", 12, None)
    assert loaded.directory("samples") == "run/samples/step_12"
    config.sampling.name = "fine"
    assert loaded.directory("inpainting") == "run/inpainting/step_12_fine"
    found = loaded.settings("sampling.rtol", "likelihood.split")
    assert found == {"sampling.rtol": 1e-3, "likelihood.split": "test", "seed": 7, "step": 12}


SOLVED = "as many network evaluations as the tolerance needs"


@pytest.mark.parametrize(
    ("mode", "changes", "lines"),
    [
        (
            "sample",
            {"sampling.gif": True},
            [
                "sampling: 5 images in batches of 3, 9 network evaluations each",
                "wrote {run}/samples/step_4_log/samples.npz and grid.png",
                "wrote annealing.gif and filmstrip.png there",
            ],
        ),
        (
            "inpaint",
            {"inpainting.num_images": 2, "inpainting.num_completions": 4},
            [
                "completing 2 images, 4 times each, from step 4",
                "inpainting: 8 images in batches of 3, 9 network evaluations each",
                "wrote completions.npz and completions.png to {run}/inpainting/step_4_log",
            ],
        ),
        (
            "interpolate",
            {"interpolation.num_pairs": 3, "interpolation.num_steps": 2},
            [
                f"interpolation: 3 pairs in batches of 1, {SOLVED}",
                "wrote interpolation.png and interpolation.npz to {run}/interpolation/step_4_log",
            ],
        ),
        (
            "likelihood",
            {"likelihood.num_images": 4},
            [
                f"likelihood: 4 images in batches of 3, {SOLVED}",
                "2.7500 bits per dimension of 4 images of 'test', standard error 1.0104, 16 evaluations "
                "each; wrote bits_per_dim.npz and summary.json to {run}/likelihood/step_4_log",
            ],
        ),
    ],
)
def test_the_log_says_what_is_made_and_where_it_is_written(
    mode, changes, lines, ladder_run, chains, flows
):
    config = runs.ladder_config(**changes | {"sampling.name": "log"})
    for more in (False, True):
        before = storage.read(f"{ladder_run}/log.txt") if more else b""
        getattr(run_lib, mode)(config, ladder_run)
        found = storage.read(f"{ladder_run}/log.txt")[len(before) :].decode()
        expected = [line.format(run=ladder_run) for line in lines]
        if more:
            made = re.compile(r": (\d+ \w+) in batches of .*")
            expected = [made.sub(r": all \1 already exist", line) for line in expected]
        places = [found.index(line) for line in expected]
        assert places == sorted(places)


def test_evaluations_chosen_by_a_solver_are_averaged(vp_run, chains, monkeypatch):
    """Samples 0 to 4 took 7 to 11."""
    monkeypatch.setattr(runs.Chains, "evaluations", None)
    run_lib.sample(runs.vp_config(**{"sampling.name": "solver"}), vp_run)
    log = storage.read(f"{vp_run}/log.txt").decode()
    assert f"sampling: 5 images in batches of 3, {SOLVED}" in log
    assert re.search(r"(?<!, )9 network evaluations each\n", log)


def test_progress_counts_only_the_missing_results(ladder_run, chains, flows, monkeypatch):
    bars = []

    @contextlib.contextmanager
    def progress(what, total, *unit):
        bars.append([what, total, *unit, 0])

        def advanced(steps):
            bars[-1][-1] += steps

        yield advanced

    for module in (shared, sample, nearest):
        monkeypatch.setattr(module, "progress", progress)
    config = runs.ladder_config(
        **{"sampling.name": "bars", "sampling.gif": True, "likelihood.num_images": 4},
        **{"interpolation.num_pairs": 3, "interpolation.num_steps": 2},
    )
    film = ["filming", 5, 5]
    for count, made, steps in [(5, 5, 10), (6, 1, 5), (10, 4, 10)]:  # a chain has 5 steps
        config.sampling.num_samples = count
        run_lib.nearest(config, ladder_run)
        compared = ["comparing", 1500, "images", 1500]
        assert bars == [["sampling", steps, "steps", steps], film, compared]
        log = storage.read(f"{ladder_run}/log.txt").decode()
        assert re.findall(r"sampling: (\d+) images", log)[-1] == str(made)
        bars.clear()
    run_lib.interpolate(config, ladder_run)
    run_lib.likelihood(config, ladder_run)
    assert bars == [["interpolation", 3, "pairs", 3], ["likelihood", 4, "images", 4]]
