"""The application from the outside: `main.py` in processes of its own, on a network of a few channels."""

import functools
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

import run_lib
from ncsn_jax.app import build, checkpoints
from ncsn_jax.errors import UserError
from tests import tiny
from tests.running import (
    ROOT,
    command,
    environment,
    final_state,
    load_config,
    run,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Returns a function from a number of devices to (workdir, output) of an uninterrupted run."""

    @functools.cache
    def make(devices):
        workdir = tmp_path_factory.mktemp(f"on{devices}")
        result = run(workdir, devices=devices)
        assert result.returncode == 0, result.stderr
        return workdir, result.stdout

    return make


@pytest.fixture(scope="module", params=[1, 8])
def finished(request, uninterrupted):
    """Such a run on one device, and one on eight: (devices, workdir, output)."""
    return request.param, *uninterrupted(request.param)


def test_a_run_writes_what_it_should(finished):
    devices, workdir, output = finished
    assert f"devices: {devices} x cpu on 1 host(s)" in output
    assert "multiply-adds per image" in output and "memory per device" in output
    assert re.search(r"step 60/60  loss \S+  grad \S+  \S+ steps/s  input \S+ %  0 s left", output)
    log = (workdir / "log.txt").read_text()
    assert log.count("step 20/60") == 1
    assert "params/Conv_0/bias" in log and "params/Conv_0/bias" not in output
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 60]
    assert set(lines[0]) >= {"loss", "grad_norm", "steps_per_second", "loss_by_level/0000_sigma_1"}
    samples = np.load(workdir / "samples" / "step_60" / "samples.npz")["samples"]
    assert samples.shape == (12, 8, 8, 1) and samples.dtype == np.uint8
    assert (workdir / "samples" / "step_60" / "grid.png").exists()
    assert (workdir / "samples" / "step_40" / "preview.png").exists()
    assert json.loads((workdir / "config.json").read_text())["training.batch_size"] == 8
    assert final_state(workdir)[0] == 60


def test_tensorboard_reads_the_events(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished[1]))
    events.Reload()
    lines = [json.loads(line) for line in (finished[1] / "metrics.jsonl").read_text().splitlines()]
    found = [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars("loss")]
    assert [(line["step"], line["loss"]) for line in lines] == found
    (picture,) = events.Images("samples")
    preview = finished[1] / "samples" / "step_40" / "preview.png"
    assert picture.step == 40 and picture.encoded_image_string == preview.read_bytes()


def test_loss_curves_are_drawn(workdir):
    draw = [sys.executable, "-m", "ncsn_jax.app.pictures", "losses"]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120}
    result = subprocess.run([*draw, str(workdir)], **options)
    assert result.returncode == 0, result.stderr
    with Image.open(workdir / "losses.png") as picture:
        assert picture.size == (1000, 400)
    result = subprocess.run([*draw, "no_such_run"], **options)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1


def test_kill_and_restart_give_the_same_bits(finished, tmp_path):
    devices, reference, _ = finished
    for wanted in ("step 20/60", "step 40/60") if devices == 1 else ("step 40/60",):
        process = subprocess.Popen(
            command(tmp_path),
            cwd=ROOT,
            env=environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            for line in process.stdout:
                if line.startswith(wanted):
                    break
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    result = run(tmp_path, devices=devices)
    assert result.returncode == 0, result.stderr
    assert int(re.search(r"from step (\d+)", result.stdout)[1]) >= 10
    expected, found = final_state(reference), final_state(tmp_path)
    assert expected[0] == found[0] == 60
    jax.tree.map(np.testing.assert_array_equal, expected[1], found[1])


def test_samples_do_not_depend_on_batches_or_devices(finished):
    """The same indices in other batches on other devices: float32 rounding, so one grey level."""
    _, workdir, _ = finished
    base = np.load(workdir / "samples" / "step_60" / "samples.npz")["samples"]
    result = run(
        workdir,
        "--mode=sample",
        "--config.sampling.batch_size=16",
        "--config.sampling.num_samples=20",
        "--config.sampling.name=other",
        devices=2,
    )
    assert result.returncode == 0, result.stderr
    other = np.load(workdir / "samples" / "step_60_other" / "samples.npz")["samples"]
    assert other.shape == (20, 8, 8, 1)
    assert np.abs(other[:12].astype(int) - base).max() <= 1


@pytest.fixture
def workdir(uninterrupted, tmp_path):
    """A copy of a finished run on one device, to be changed."""
    return shutil.copytree(uninterrupted(1)[0], tmp_path / "copy")


def test_more_steps_are_allowed_and_another_configuration_is_not(workdir):
    result = run(workdir, "--config.training.num_steps=70", "--config.sampling.num_samples=1")
    assert result.returncode == 0 and final_state(workdir)[0] == 70
    result = run(workdir, "--config.model.features=8", "--config.optim.learning_rate=0.5")
    assert result.returncode == 1
    assert "model.features is 4 there and 8 here" in result.stderr
    assert "optim.learning_rate is 0.002 there and 0.5 here" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(workdir):
    """The parameters of a good checkpoint are scaled until the next step overflows."""
    step, state = final_state(workdir)
    huge = jax.tree.map(lambda a: a * np.float32(1e30), state.params)
    with checkpoints.Checkpoints(str(workdir), keep=3) as store:
        store.save(step + 2, state._replace(params=huge, step=np.asarray(step + 2, np.int32)))
    result = run(workdir, "--config.training.num_steps=80", "--config.training.checkpoints_kept=3")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert re.search(r"the loss is \S+ and the gradient's norm \S+ at step 63; stopped", line)
    assert line.endswith("the last good checkpoint is that of step 62")
    with checkpoints.Checkpoints(str(workdir), read_only=True) as store:
        assert store.steps() == [62, 60, 50]
        jax.tree.map(np.testing.assert_array_equal, store.restore(60, state), state)


def test_several_steps_per_call_without_an_average_on_own_images(tmp_path):
    """The other branches of the loop, on a directory of images; a changed directory is refused."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (12, 10), dtype=np.uint8)).save(pictures / f"{i}.png")
    arguments = [
        "--config.data.dataset=image_folder",
        f"--config.data.data_dir={pictures}",
        "--config.data.crop_size=-1",
        "--config.model.ema_decay=0.0",
        "--config.training.steps_per_call=5",
        "--config.training.num_steps=20",
        "--config.training.skip_nonfinite=3",
    ]
    result = run(tmp_path / "run", *arguments, devices=2)
    assert result.returncode == 0, result.stderr
    assert "3 images of shape (8, 8, 1), from step 0" in result.stdout
    (pictures / "2.png").unlink()
    result = run(tmp_path / "run", *arguments, devices=2)
    assert result.returncode == 1 and "holds a run on other images" in result.stderr


@pytest.fixture
def sampled(uninterrupted, tmp_path):
    """A copy of the run on eight devices and a configuration that samples from it in this process."""
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted(8)[0], workdir)
    config = tiny.get_config()
    config.inpainting.num_images, config.inpainting.num_completions = 3, 4
    yield config, workdir
    for handler in logging.getLogger("ncsn_jax").handlers:
        handler.close()


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


def test_the_maths_needs_only_jax_and_training_never_imports_tensorflow():
    """With every other package hidden, and with a TensorFlow that fails when imported."""
    script = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden}:
            raise ImportError(f"{{name}} is hidden")

sys.meta_path.insert(0, Hidden())
import {modules}
"""
    cases = [
        (
            ("flax", "optax", "orbax", "ml_collections", "clu", "PIL", "absl", "tensorflow"),
            "ncsn_jax.sampling, ncsn_jax.sigmas, ncsn_jax.losses, ncsn_jax.scores",
        ),
        (("optax", "orbax", "ml_collections", "clu", "PIL", "tensorflow"), "ncsn_jax.models"),
        (
            ("tensorflow",),
            "run_lib, ncsn_jax.app.data.digits, tensorboard.summary.writer.record_writer",
        ),
    ]
    for hidden, modules in cases:
        code = script.format(hidden=set(hidden), modules=modules)
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stderr
