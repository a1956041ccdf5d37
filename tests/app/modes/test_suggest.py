"""Tests `--mode=suggest` on the digits."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import run_lib
from configs import digits, digits_vp
from ncsn_jax import sigmas
from ncsn_jax.app import build
from ncsn_jax.app.data import Images
from ncsn_jax.app.modes import suggest as suggest_mode
from ncsn_jax.errors import UserError
from tests.recording import IMAGES
from tests.running import load_config


@pytest.mark.parametrize(("module", "width"), [(digits, 1), (digits_vp, 2)])
def test_suggest_prints_flags_that_can_be_used_unchanged(module, width, capsys):
    """The second configuration's images are in [-1, 1]."""
    run_lib.suggest(module.get_config())
    output = capsys.readouterr().out
    (line,) = re.findall(r"^--config.*", output, re.MULTILINE)
    overrides = dict(re.findall(r"--config\.(\S+)=(\S+)", line))
    assert set(overrides) == {
        "model.sigma_begin",
        "model.sigma_end",
        "model.num_levels",
        "sampling.epsilon",
        "sampling.steps_per_level",
    }
    config = load_config(**{name: json.loads(value) for name, value in overrides.items()})
    ladder = np.asarray(build.make_sigmas(config))
    (printed,) = re.findall(r"ladder: (.*)", output)
    shown, printed = ladder, printed.split()
    if len(ladder) > 20:
        assert printed.pop(4) == "..."
        shown = np.concatenate([ladder[:4], ladder[-4:]])
    np.testing.assert_allclose([float(s) for s in printed], shown, rtol=1e-3)
    images = build.load_images(config)[:] / 255
    flat = images.reshape(len(images), -1)
    distances = [np.linalg.norm(flat - point, axis=1).max() for point in flat]
    assert ladder[0] == pytest.approx(width * max(distances), rel=1e-3)
    of_images = sigmas.suggest(
        np.float32(width * images),
        sigma_end=config.model.sigma_end,
        steps_per_level=config.sampling.steps_per_level,
    )
    assert config.sampling.epsilon == pytest.approx(of_images.epsilon, rel=1e-3)


@pytest.mark.parametrize("name", ["ncsn", "ncsnv2"])
def test_each_number_matches_the_library(name, monkeypatch, capsys):
    """Memory holds four of the ten images, so every third is compared."""
    changes = {"model.name": name, "model.sigma_end": 0.07, "sampling.steps_per_level": 11}
    changes |= {"sampling.epsilon": 0.25, "model.sigma_begin": 0.9, "model.num_levels": 4}
    monkeypatch.setattr(build.data, "load", lambda *_, **__: Images(IMAGES))
    monkeypatch.setattr(suggest_mode, "_NUMBERS_TO_COMPARE", 4 * 64)
    run_lib.suggest(load_config(**changes))
    lines = capsys.readouterr().out.splitlines()
    found = sigmas.suggest(IMAGES[::3] / np.float32(255), sigma_end=0.07, steps_per_level=11)
    begin, count = found.sigmas[0], len(found.sigmas)
    assert lines == [
        "10 images of shape (8, 8, 1) in [0, 1]; comparing all pairs of 4 of them, evenly spaced",
        f"largest distance between two images: {begin:.4g} (NCSNv2, technique 1)",
        f"ratio of neighbouring sigmas in 64 dimensions: {found.ratio:.5g} (technique 2)",
        "variance after a level, for 11 steps, in units of its noise: "
        f"{found.variance_ratio:.4g} (technique 4)",
        "ladder: " + " ".join(f"{sigma:.4g}" for sigma in found.sigmas),
        "",
        f"--config.model.sigma_begin={begin:.4g} --config.model.num_levels={count} "
        f"--config.model.sigma_end=0.07 --config.sampling.epsilon={found.epsilon:.4g} "
        "--config.sampling.steps_per_level=11",
        "",
        f"with these, a sample takes {11 * count} network evaluations; "
        "a different --config.sampling.steps_per_level needs a different epsilon",
        *[
            "sigmas this large need a network whose output is divided by sigma: --config.model.name=ncsnv2"
        ]
        * (name == "ncsn"),
        "the configuration has sigmas from 0.9 to 0.07 in 4 levels, and epsilon 0.25",
    ]


def test_a_smallest_sigma_above_all_distances_is_refused(monkeypatch):
    monkeypatch.setattr(build.data, "load", lambda *_, **__: Images(IMAGES))
    with pytest.raises(UserError, match="config.model.sigma_end=50.0, for these images: sigma_end"):
        run_lib.suggest(load_config(**{"model.sigma_end": 50.0, "model.sigma_begin": 60.0}))


def test_suggest_names_skipped_files_as_training_does(tmp_path, capsys):
    for i in range(2):
        Image.fromarray(np.full((8, 8), 200 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    run_lib.suggest(load_config(**{"data.dataset": "image_folder", "data.data_dir": str(tmp_path)}))
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.startswith(
        f"data.data_dir={str(tmp_path)!r}: left out 1 file(s) that are not PNG, JPEG, "
    )
    assert "(notes.txt)" in first and second.startswith("2 images of shape (8, 8, 1)")
