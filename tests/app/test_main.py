"""Modes on a finished run, in this process: to be found with their modules under tests/app/modes."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import run_lib
from ncsn_jax.app import build
from ncsn_jax.errors import UserError
from tests.running import (
    load_config,
)


def test_the_annealing_is_filmed_and_samples_are_beside_their_neighbours(sampled):
    config, workdir = sampled
    config.sampling.gif = True
    run_lib.nearest(config, str(workdir))
    directory = workdir / "samples" / "step_60"
    with Image.open(directory / "annealing.gif") as gif:
        # 2 levels of 2 steps and the denoising; 8 samples in rows of 3, enlarged by 15.
        assert gif.n_frames == 5 and gif.size == (15 * 28, 15 * 28)
        gif.seek(4)
        last = np.asarray(gif.convert("L"))[::15, ::15]
    samples = np.load(directory / "samples.npz")["samples"]
    np.testing.assert_array_equal(last[1:9, 1:9], samples[0, ..., 0])
    with Image.open(directory / "filmstrip.png") as strip:
        assert strip.size[0] < strip.size[1]  # 5 columns, 8 rows
    with np.load(directory / "nearest.npz") as found:
        images = build.load_images(config)
        distances = np.linalg.norm(
            (samples[3] / 255 - images / 255).reshape(len(images), -1), axis=1
        )
        assert found["distances"][3, 0] == pytest.approx(distances.min())
        assert found["indices"][3, 0] == distances.argmin() and found["indices"].shape == (12, 6)
    with Image.open(directory / "nearest.png") as picture:
        assert picture.size[0] < picture.size[1]  # 7 columns, 12 rows


@pytest.mark.parametrize("keep", [True, False])
def test_inpainting_completes_the_test_split(sampled, keep):
    config, workdir = sampled
    config.inpainting.mask = "box"
    config.inpainting.keep_observed = keep
    run_lib.inpaint(config, str(workdir))
    directory = workdir / "inpainting" / "step_60"
    with np.load(directory / "completions.npz") as found:
        originals, observed, completions = (
            found[name] for name in ("originals", "masks", "completions")
        )
    np.testing.assert_array_equal(originals, build.load_images(config, "test")[:3])
    assert completions.shape == (3, 4, 8, 8, 1) and completions.dtype == np.uint8
    known = np.broadcast_to(observed[:, None], completions.shape)
    same = completions == originals[:, None]
    assert same[known].all() == keep and not same[~known].all()
    assert (completions[:, 0] != completions[:, 1]).any()
    with Image.open(directory / "completions.png") as picture:
        assert picture.size[0] == picture.size[1] // 28 * 55  # 6 columns, 3 rows of 9 pixels, and 1
    before = (directory / "completions.npz").read_bytes()
    config.inpainting.mask = "left"
    with pytest.raises(UserError, match=r"holds samples made otherwise: images and masks is"):
        run_lib.inpaint(config, str(workdir))
    assert (directory / "completions.npz").read_bytes() == before


def test_sampling_mistakes_are_named(sampled, tmp_path):
    config, workdir = sampled
    config.sampling.name = "wild"
    config.sampling.epsilon = 1e38
    with pytest.raises(
        UserError, match=r"not finite after \d of 5 steps: .*epsilon=1e\+38 is too large"
    ):
        run_lib.sample(config, str(workdir))
    config.sampling.name, config.sampling.epsilon = "saturated", 10.0
    run_lib.sample(config, str(workdir))
    assert "of the pixels lie far outside [0, 1]" in (workdir / "log.txt").read_text()
    config.inpainting.mask = "no/such.png"
    with pytest.raises(UserError, match="config.inpainting.mask='no/such.png' is neither"):
        run_lib.inpaint(config, str(workdir))
    with pytest.raises(UserError, match="holds no run: train first"):
        run_lib.inpaint(config, str(tmp_path / "nothing"))


def test_suggest_prints_a_ladder_that_can_be_used_as_it_is(capsys):
    run_lib.suggest(load_config())
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
    np.testing.assert_allclose([float(s) for s in printed.split()], ladder, rtol=1e-3)
    images = build.load_images(config) / 255
    flat = images.reshape(len(images), -1)
    distances = [np.linalg.norm(flat - point, axis=1).max() for point in flat]
    assert ladder[0] == pytest.approx(max(distances), rel=1e-3)
