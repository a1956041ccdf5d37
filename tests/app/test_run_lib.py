"""Tests whole training runs, in this process against the library, and as `main.py`."""

import functools
import json
import re
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from PIL import Image

import ncsn_jax
import run_lib
from ncsn_jax import evaluation, objectives, sigmas, training
from ncsn_jax.app import build, checkpoints, data, workdirs
from tests import tiny
from tests.app.conftest import close_logs
from tests.running import (
    ROOT,
    command,
    environment,
    final_state,
    kill_at,
    load_diffusion_config,
    run,
)

SEED = 5
# As in the configuration of `short_run`.
OPTIMIZER = dict(
    learning_rate=0.004, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.01, warmup_steps=3
)


@pytest.fixture(scope="module", params=[1, 5], ids=["single_steps", "five_steps_per_call"])
def short_run(request, tmp_path_factory):
    """Trains ten steps on eight devices in this process; returns the work directory."""
    config = tiny.get_config()
    config.seed = SEED
    config.model.update(num_levels=3, sigma_begin=0.9, sigma_end=0.1, ema_decay=0.7)
    config.optim.update(OPTIMIZER, schedule="cosine")
    config.data.update(random_flip=True, dequantize=False)
    config.training.update(
        steps_per_call=request.param,
        num_steps=10,
        log_every=5,
        checkpoint_every=5,
        checkpoints_kept=1,
        keep_every=0,
        sample_every=0,
        grad_clip=50.0,
        anneal_power=1.5,
    )
    config.sampling.num_samples = 1
    workdir = tmp_path_factory.mktemp("short") / "run"
    run_lib.train(config, str(workdir))
    close_logs()
    return workdir


@functools.cache
def ten_steps():
    """Returns the states and metrics of ten single steps by the library alone, on one device."""
    ladder = sigmas.geometric(0.9, 0.1, 3)
    network = tiny.Tiny(4, ladder)
    optimizer = training.make_optimizer(**OPTIMIZER, decay_steps=10, grad_clip=50.0)
    objective = objectives.ladder(network, ladder, anneal_power=1.5)
    key = jax.random.fold_in(jax.random.key(SEED), 0)
    states = [training.make_init(network, optimizer, (8, 8, 1), ema=True)(key)]
    step = jax.jit(
        functools.partial(
            training.train_step,
            objective=objective,
            optimizer=optimizer,
            ema_decay=0.7,
            random_flip=True,
            dequantize=False,
        )
    )
    batches = data.Batches(data.load("digits", "", 8, 1, split="train"), SEED, 8)
    metrics = []
    for k in range(10):
        state, measured = step(states[-1], batches(k)[0], SEED)
        states.append(state)
        metrics.append(measured)
    return states, jax.tree.map(lambda *a: np.stack(a), *metrics)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), a, b)


def test_steps_per_call_does_not_change_the_final_state(short_run):
    """Every field that enters a step differs from the default."""
    states, _ = ten_steps()
    with checkpoints.Checkpoints(str(short_run), read_only=True) as store:
        assert store.steps() == [10]
        found = store.restore(10, jax.tree.map(np.asarray, states[0]))
    assert_close(found, states[10])
    average = states[0].params
    for later in states[1:]:
        average = jax.tree.map(lambda a, p: 0.7 * a + 0.3 * p, average, later.params)
    assert_close(found.ema_params, average)


def test_log_lines_hold_means_since_the_previous_line(short_run):
    _, metrics = ten_steps()
    lines = [json.loads(line) for line in (short_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10]
    for line, window in zip(lines, (slice(0, 5), slice(5, 10)), strict=True):
        assert line["loss"] == pytest.approx(metrics.loss[window].mean(), rel=1e-3)
        assert line["grad_norm"] == pytest.approx(metrics.grad_norm[window].mean(), rel=1e-3)
        total = metrics.level_loss[window].sum(axis=0)
        share = total / metrics.level_count[window].sum(axis=0) / (64 / 2)
        names = [f"loss_by_level/{i:04d}_sigma_{s}" for i, s in enumerate(("0.9", "0.3", "0.1"))]
        assert [line[name] for name in names] == pytest.approx(list(share), rel=1e-3)
    assert f"step 10/10  loss {lines[1]['loss']:.4g}" in (short_run / "log.txt").read_text()


def test_keep_every_keeps_checkpoints_for_good(tmp_path, closed_logs):
    config = tiny.get_config()
    config.training.update(
        num_steps=10, checkpoint_every=2, checkpoints_kept=1, keep_every=4, sample_every=0
    )
    config.sampling.num_samples = 1
    run_lib.train(config, str(tmp_path))
    with checkpoints.Checkpoints(str(tmp_path), read_only=True) as store:
        assert sorted(store.steps()) == [4, 8, 10]


@pytest.fixture(params=[1, 8])
def finished(request, uninterrupted):
    """Returns a run on one device or on eight: (devices, workdir, output)."""
    return request.param, *uninterrupted(request.param)


def test_a_run_writes_all_its_files(finished):
    devices, workdir, output = finished
    assert f"devices: {devices} x cpu on 1 host(s)" in output
    assert "FLOP per step and device" in output and "memory per device" in output
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


def test_a_killed_and_restarted_run_is_bit_identical_on_eight_devices(uninterrupted, tmp_path):
    """`test_faults.py` and `test_storage.py` kill runs on one."""
    reference, _ = uninterrupted(8)
    kill_at("step 40/60", tmp_path, devices=8)
    result = run(tmp_path, devices=8)
    assert result.returncode == 0, result.stderr
    # The saves up to step 20 were complete, because the save of step 30 waited for them.
    assert int(re.search(r"from step (\d+)", result.stdout)[1]) >= 20
    expected, found = final_state(reference), final_state(tmp_path)
    assert expected[0] == found[0] == 60
    jax.tree.map(np.testing.assert_array_equal, expected[1], found[1])


def test_samples_do_not_depend_on_batches_or_devices(uninterrupted):
    """Other batches and devices differ by float32 rounding, at most one grey level."""
    workdir, _ = uninterrupted(8)
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


@pytest.mark.parametrize("skip_nonfinite", [0, 2])
def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_good_state(workdir, skip_nonfinite):
    """The parameters of a good checkpoint are scaled until all later steps overflow."""
    step, state = final_state(workdir)
    huge = jax.tree.map(lambda a: a * np.float32(1e30), state.params)
    with checkpoints.Checkpoints(str(workdir), keep=3) as store:
        store.save(step + 2, state._replace(params=huge, step=np.asarray(step + 2, np.int32)))
    result = run(
        workdir,
        "--config.training.num_steps=80",
        "--config.training.checkpoints_kept=3",
        f"--config.training.skip_nonfinite={skip_nonfinite}",
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    found = re.search(r"the loss is \S+ and the gradient norm is \S+ at step (\d+); ", line)
    assert int(found[1]) == 63 + skip_nonfinite
    assert line.endswith("; last good checkpoint: step 62")
    with checkpoints.Checkpoints(str(workdir), read_only=True) as store:
        assert store.steps() == [62, 60, 50]
        jax.tree.map(np.testing.assert_array_equal, store.restore(60, state), state)


def test_several_steps_per_call_work_on_own_images_without_an_ema(tmp_path):
    """This runs the loop's other branches, on a directory of images."""
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
    more = run(tmp_path / "run", *arguments, "--config.training.num_steps=30", devices=2)
    assert more.returncode == 0, more.stderr  # although the cache holds programs of the first run
    assert "from step 20" in more.stdout and "step 30/30" in more.stdout


def test_the_library_imports_only_jax_and_training_never_imports_tensorflow():
    """All other packages are hidden, and importing TensorFlow fails."""
    script = """
import importlib, sys

class Hidden:
    names = ()

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(f"{name} is hidden")

hidden = Hidden()
sys.meta_path.insert(0, hidden)
for hidden.names, modules in CASES:
    for module in modules.split():
        importlib.import_module(module)
"""
    # Fewer packages are hidden each time, so an earlier case imports none that a later one hides.
    others = ("optax", "orbax", "ml_collections", "clu", "PIL", "tensorflow")
    cases = [
        (
            ("flax", "absl", *others),
            "ncsn_jax.sampling ncsn_jax.sigmas ncsn_jax.losses ncsn_jax.scores",
        ),
        (others, "ncsn_jax.models"),
        (
            ("tensorflow",),
            "run_lib ncsn_jax.app.data.digits tensorboard.summary.writer.record_writer",
        ),
    ]
    code = script.replace("CASES", repr(cases))
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr


def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path, monkeypatch, closed_logs):
    """There is dropout, whose keys depend on step and example, and a preview between the parts.

    One of them evaluates itself while it trains.
    """
    monkeypatch.setitem(build.MODELS, "ncsnpp", tiny.TinyDiffusion)
    config, states = load_diffusion_config(), []
    assert config.ncsnpp.dropout == 0.1
    config.optim.schedule = "constant"  # its parts are shorter runs
    config.training.checkpoint_every = config.training.sample_every = 2
    config.evaluation.update(features="pixels", num_samples=10)
    config.sampling.num_samples = 10
    for name, parts, config.evaluation.every in (("whole", [4], 0), ("parts", [2, 4], 2)):
        for config.training.num_steps in parts:
            run_lib.train(config, str(tmp_path / name))
        states.append(workdirs.load(config, str(tmp_path / name))[1])
    jax.tree.map(np.testing.assert_array_equal, *states)
    previews = [tmp_path / name / "samples/step_2/preview.png" for name in ("whole", "parts")]
    assert previews[0].read_bytes() == previews[1].read_bytes()
    text = (tmp_path / "parts/metrics.jsonl").read_text()
    (found,) = re.findall(r'"step": 4, "evaluation/frechet_pixels_10": ([\d.]+)', text)
    made = np.load(tmp_path / "whole/samples/step_4/samples.npz")["samples"]
    pixels = [x.reshape(len(x), -1) / 255 for x in (build.load_images(config)[:], made)]
    assert float(found) == pytest.approx(evaluation.frechet_distance(*pixels), rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"optim.name": "muon", "model.ema_power": (0.05, 0.1), "training.keep_every": 2},
        {"optim.name": "schedule_free", "model.ema_decay": 0.0},
    ],
    ids=lambda changes: changes["optim.name"],
)
def test_runs_of_other_optimizers_resume_bit_for_bit(changes, tmp_path, monkeypatch, closed_logs):
    monkeypatch.setitem(build.MODELS, "tiny", tiny.Tiny)
    config, states = tiny.get_config(), []
    config.training.update(batch_size=16, microbatches=2, checkpoint_every=2, skip_nonfinite=1)
    config.training.update(sample_every=0, log_every=2)
    config.update_from_flattened_dict(changes | {"sampling.num_samples": 1})
    for name, parts in (("whole", [4]), ("parts", [2, 4])):
        for config.training.num_steps in parts:
            run_lib.train(config, str(tmp_path / name))
        states.append(workdirs.load(config, str(tmp_path / name))[1])
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert len(states[0].averages) == len(config.model.ema_power)
    if config.optim.name == "schedule_free":
        expected = optax.contrib.schedule_free_eval_params(states[0].opt_state, states[0].params)
        found = ncsn_jax.load_run(str(tmp_path / "parts")).params
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_jax_settings_do_not_change_the_run(uninterrupted, tmp_path):
    """They change neither the training nor the samples, and the run can still be opened."""
    settings = {
        "JAX_ENABLE_X64": "1",
        "JAX_DEFAULT_PRNG_IMPL": "rbg",
        "JAX_THREEFRY_PARTITIONABLE": "0",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_DEFAULT_MATMUL_PRECISION": "bfloat16",
        "JAX_TRANSFER_GUARD": "disallow",
        "JAX_DISABLE_JIT": "1",
    }
    done = subprocess.run(
        command(tmp_path),
        cwd=ROOT,
        env=environment() | settings,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    expected, found = (final_state(workdir) for workdir in (uninterrupted(1)[0], tmp_path))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    samples = [
        np.load(workdir / "samples" / "step_60" / "samples.npz")["samples"]
        for workdir in (uninterrupted(1)[0], tmp_path)
    ]
    np.testing.assert_array_equal(*samples)


def test_missing_devices_are_reported_on_one_line(tmp_path):
    done = subprocess.run(
        command(tmp_path),
        cwd=ROOT,
        env=environment() | {"JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: JAX finds no devices for $JAX_PLATFORMS='cuda'")
