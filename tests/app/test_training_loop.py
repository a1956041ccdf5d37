"""Tests what training does at which step, with a simulated clock for steps, batches and samples."""

import json
import platform
import time

import jax
import numpy as np
import pytest

import run_lib
from ncsn_jax import training
from ncsn_jax._random import Stream
from ncsn_jax.app import (
    build,
    checkpoints,
    data,
    devices,
    feed,
    metrics,
    run_samplers,
    workdirs,
)
from ncsn_jax.errors import UserError
from tests import tiny
from tests.app.modes import runs
from tests.app.modes.runs import chains
from tests.recording import IMAGES

__all__ = ["chains"]

BATCH, CALL, SAMPLES = 1.0, 3.0, 1000.0  # seconds


def make_state(step):
    """Returns a state whose average is the step."""
    weights = {"params": {"weight": np.zeros(2, np.float32)}}
    average = {"params": {"weight": np.full(2, step, np.float32)}}
    return training.TrainState(np.asarray(step, np.int32), weights, average, ())


class Feed(feed.Feed):
    """Makes a batch on request, without a thread, and waits for it."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def take(self, is_computing):
        began = time.perf_counter()
        batch = self._make()
        self.waited += time.perf_counter() - began
        return batch


class World:
    """Records what happens in `events`. The loss of a step is its number, or NaN if it is in `bad`."""

    def __init__(self, patch, workdir):
        self.now, self.events, self.workdir = 5.0, [], workdir
        self.diverges, self.bad = False, []
        patch.setattr(time, "perf_counter", lambda: self.now)
        world = self

        class Steps:
            operations = memory = None

            def __init__(self, train_steps, state, images, seed, *, remat, packed):
                self.per_call = images.shape[1]

            to_devices, to_host = map(staticmethod, (devices.replicate, devices.to_host))

            def __call__(self, state, images, stop_signal):
                world.now += CALL
                first = int(devices.to_host(state.step))
                steps = np.arange(first + 1, first + 1 + self.per_call, dtype=np.float32)
                levels = np.ones((self.per_call, 2), np.float32)
                losses = np.where(np.isin(steps, world.bad), np.float32(np.nan), steps)
                found = training.Metrics(losses, 2 * steps, levels, levels)
                after = devices.replicate(make_state(first + self.per_call))
                return after, devices.replicate(found), devices.replicate(np.int32(stop_signal))

        class Chains:
            num_steps, evaluations, classes, value_range = 1, 1, None, ()

            def __init__(self, config):
                pass

            def run(self, params, indices, size, **_):
                world.now += SAMPLES
                weights = {float(a.ravel()[0]) for a in jax.tree.leaves(params)}
                world.events.append(("sample", indices, weights))
                if world.diverges:
                    raise UserError("a chain diverged")
                images = np.zeros((len(indices), 8, 8, 1), np.uint8)
                return run_samplers.Samples(images, None, [1] * len(indices))

        patch.setattr(data, "load", lambda *_, **__: data.Images(IMAGES))
        patch.setattr(run_lib, "Feed", Feed)
        patch.setattr(build, "make_init", lambda config: lambda key: make_state(0))
        patch.setattr(devices, "TrainSteps", Steps)
        patch.setattr(run_samplers, "Chains", Chains)
        patch.setattr(data.Batches, "__call__", self._before(data.Batches.__call__, self._batch))
        names = {"samples": "picture", "grid": "grid"}
        for owner, name, event in (
            (checkpoints.Checkpoints, "save", lambda store, step, state: ("save", step)),
            (checkpoints.Checkpoints, "wait", lambda store: ("wait",)),
            (metrics.Writer, "write_scalars", lambda writer, step, scalars: ("log", step)),
            (metrics.Writer, "write_image", lambda writer, step, tag, *_: (names[tag], step)),
            (metrics.Writer, "flush", lambda writer, now=False: ("flush", now)),
        ):
            keep = lambda *a, event=event, **k: self.events.append(event(*a, **k))
            patch.setattr(owner, name, self._before(getattr(owner, name), keep))

    @staticmethod
    def _before(real, act):
        return lambda *args, **options: (act(*args, **options), real(*args, **options))[1]

    def _batch(self, batches, step, num_steps):
        self.now += BATCH
        if step in (0, 24):
            self.events.append(("batch", step, num_steps))

    def train(self, **options):
        """Trains, and returns the events."""
        config, self.events = tiny.get_config(), []
        config.update_from_flattened_dict(
            {"training.steps_per_call": 2, "training.num_steps": 24, "training.log_every": 6}
            | {"training.checkpoint_every": 4, "training.sample_every": 10}
            | {"training.checkpoints_kept": 20}
            | {"sampling.preview_samples": 3, "sampling.num_samples": 2, "sampling.batch_size": 2}
            | {n if "." in n else f"training.{n}": value for n, value in options.items()}
        )
        run_lib.train(config, str(self.workdir))
        return self.events

    def steps(self):
        with checkpoints.Checkpoints(str(self.workdir), read_only=True) as store:
            return store.steps()


@pytest.fixture
def world(tmp_path, monkeypatch, closed_logs):
    return World(monkeypatch, tmp_path / "run")


def test_logs_saves_and_previews_happen_at_their_steps_in_order(world, capsys):
    """A step is saved before its preview; the last step has samples instead of a preview."""
    assert world.train() == [
        ("batch", 0, 2),
        *(("flush", True), ("save", 4)),
        *(("log", 6), ("flush", False)),
        *(("flush", True), ("save", 8)),
        *(("save", 10), ("wait",), ("sample", [0, 1, 2], {10.0}), ("picture", 10)),
        *(("log", 12), ("flush", True), ("save", 12)),
        *(("flush", True), ("save", 16)),
        *(("log", 18), ("flush", False)),
        *(("flush", True), ("save", 20)),
        *(("wait",), ("sample", [0, 1, 2], {20.0}), ("picture", 20)),
        *(("log", 24), ("flush", True), ("save", 24), ("wait",)),
        *(("sample", [0, 1], {24.0}), ("grid", 24), ("flush", False)),
    ]
    assert world.steps() == [24, 20, 16, 12, 10, 8, 4]
    lines = (world.workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [3.5, 9.5, 15.5, 21.5]
    for line in map(json.loads, lines):
        assert line["grad_norm"] == 2 * line["loss"]
        assert line["steps_per_second"] == 0.5 and line["input_share"] == 0.25
    output = capsys.readouterr().out.splitlines()
    for line in (
        "10 images of shape (8, 8, 1), from step 0",
        "step 6/24  loss 3.5  grad 7  0.5 steps/s  input 25 %  36 s left",
        "step 12/24  loss 9.5  grad 19  0.5 steps/s  input 25 %  24 s left",
        "step 24/24  loss 21.5  grad 43  0.5 steps/s  input 25 %  0 s left",
    ):
        assert line in output
    assert not any(line.startswith("estimate") for line in output)  # the log already shows it
    (line,) = (line for line in output if line.startswith("steps spend "))
    assert line.startswith("steps spend 25 % of the time waiting for images: they are mapped")


def test_the_run_time_is_estimated_once_if_the_first_log_line_is_late(world, capsys):
    world.train(log_every=24, sample_every=0)
    output = capsys.readouterr().out.splitlines()
    # 20 seconds have passed after the sixth call, at four seconds each.
    (line,) = (line for line in output if line.startswith("estimate"))
    assert line == "estimate: 24 s for the remaining 12 steps, excluding samples"


def test_a_run_resumes_after_its_newest_checkpoint(world, capsys):
    world.train()
    assert "already past" not in capsys.readouterr().out
    assert world.train(num_steps=26, checkpoint_every=26, log_every=26, sample_every=0) == [
        ("batch", 24, 2),
        *(("log", 26), ("flush", True), ("save", 26), ("wait",)),
        *(("sample", [0, 1], {26.0}), ("grid", 26), ("flush", False)),
    ]
    assert json.loads((world.workdir / "config.json").read_text())["training.num_steps"] == 26
    assert "from step 24" in capsys.readouterr().out
    assert (world.workdir / "log.txt").read_text().count("params/weight") == 1
    # The samples of step 26 already exist.
    assert world.train(num_steps=24) == [("grid", 26), ("flush", False)]
    output = capsys.readouterr().out
    assert "from step 26" in output and "already past config.training.num_steps=24" in output
    world.train(num_steps=26)
    assert "already past" not in capsys.readouterr().out


def test_a_missing_preview_is_made_when_a_run_resumes(world):
    options = dict(checkpoint_every=10, log_every=10)
    assert [event for event in world.train(num_steps=10, **options) if event[0] == "picture"] == []
    for num_steps in (14, 20):
        events = world.train(num_steps=num_steps, **options)
        made = [event for event in events if event[0] in ("sample", "picture", "save")]
        before = [("sample", [0, 1, 2], {10.0}), ("picture", 10)] if num_steps == 14 else []
        assert made == [*before, ("save", num_steps), ("sample", [0, 1], {float(num_steps)})]
    events = world.train(num_steps=24, sample_every=0)
    assert ("picture", 20) not in events
    events = world.train(num_steps=26, sample_every=10)  # step 24 has no preview
    assert not [event for event in events if event[0] == "picture"]
    world.train(num_steps=30, sample_every=10)
    (world.workdir / "samples" / "step_30" / "preview.png").write_text("")
    assert not [event for event in world.train(num_steps=34) if event[0] == "picture"]


@pytest.mark.parametrize(
    ("skip_nonfinite", "bad", "stops_at", "saved"),
    [
        (0, [4], 4, []),
        (0, [9], 9, [8, 4]),
        (1, [8, 9], 9, [8, 4]),
        (2, [5, 6, 7], 7, [4]),
        (2, [5, 6, 8, 9], None, [12, 10, 8, 4]),
    ],
)
def test_a_state_after_too_many_non_finite_steps_is_not_saved(
    skip_nonfinite, bad, stops_at, saved, world
):
    """A call has two steps; every fourth step is saved, and the tenth with its preview."""
    world.bad = bad
    options = dict(skip_nonfinite=skip_nonfinite, num_steps=12)
    if stops_at:
        newest = f"step {saved[0]}" if saved else "none"
        words = rf"the loss is nan .* at step {stops_at}; last good checkpoint: {newest}"
        with pytest.raises(UserError, match=words):
            world.train(**options)
    else:
        world.train(**options)
        lines = map(json.loads, (world.workdir / "metrics.jsonl").read_text().splitlines())
        assert [(line["skipped"], line["loss"]) for line in lines] == [(2, 2.5), (2, 10.0)]
    assert world.steps() == saved


def test_a_failed_preview_does_not_end_the_run(world, capsys):
    world.diverges = True
    with pytest.raises(UserError, match="a chain diverged"):  # raised by the samples at the end
        world.train()
    output = capsys.readouterr().out
    assert "no preview at step 10: a chain diverged" in output
    assert "no preview at step 20: a chain diverged" in output and world.steps()[0] == 24
    assert ("picture", 10) not in world.events


def test_a_directory_in_use_is_refused_and_leftovers_are_removed(world):
    leftover = f"x.npz.{platform.node()}.4194304.tmp"
    paths = [world.workdir / leftover, world.workdir / "samples" / "step_1" / leftover]
    paths[1].parent.mkdir(parents=True)
    for path in paths:
        path.write_text("torn")
    with (
        workdirs.lock(str(world.workdir)),
        pytest.raises(UserError, match="another process is training"),
    ):
        world.train(num_steps=2)
    assert not (world.workdir / "config.json").exists()
    world.train(**dict.fromkeys(("num_steps", "checkpoint_every", "log_every", "sample_every"), 2))
    assert not any(path.exists() for path in paths)


def test_previews_show_the_first_samples_of_the_ema_at_their_step(world, chains):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    world.train()
    told = [(c["indices"], c["size"], np.unique(jax.tree.leaves(c["params"]))) for c in chains]
    preview = [0, 1, 2], 3
    assert told == [(*preview, [10.0]), (*preview, [20.0]), ([0, 1], 2, [24.0])]
    assert all((c["task"], c["num_frames"]) == (Stream.SAMPLES, 0) for c in chains)
    samples = world.workdir / "samples"
    found = sorted(str(path.relative_to(samples)) for path in samples.glob("*/*.png"))
    assert found == ["step_10/preview.png", "step_20/preview.png", "step_24/grid.png"]
    three = runs.rows_of([runs.drawn(i) for i in range(3)], 2)
    for path in found[:2]:
        runs.assert_shows(str(samples / path), three, min_side=200)
    runs.assert_shows(str(samples / found[2]), three[:1])
    events = EventAccumulator(str(world.workdir))
    events.Reload()
    shown = events.Images("samples")
    assert [(e.step, e.height, e.width) for e in shown] == [(10, 19, 19), (20, 19, 19)]
    for event, path in zip([*shown, *events.Images("grid")], found, strict=True):
        assert event.encoded_image_string == (samples / path).read_bytes()


def test_a_finished_run_neither_compiles_nor_samples_again(world, chains):
    world.train()
    chains.clear()
    world.train()
    assert chains == [] and world.steps()[0] == 24
    assert (world.workdir / "log.txt").read_text().count("compiling the training step") == 1
