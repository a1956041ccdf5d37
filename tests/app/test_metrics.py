"""Tests a run's metrics in the log, in `metrics.jsonl` and in TensorBoard."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ncsn_jax import training
from ncsn_jax.app import devices, metrics
from ncsn_jax.errors import UserError

SIGMAS = np.array([1.0, 0.1])


class Store:
    """Stands in for checkpoints whose newest step is 3."""

    def wait(self):
        pass

    def steps(self):
        return [3]


def measured(loss, grad_norm, level_loss, level_count):
    """Returns the metrics of one call of several steps, as the devices hold them."""
    values = (np.asarray(a, np.float32) for a in (loss, grad_norm, level_loss, level_count))
    return devices.replicate(training.Metrics(*values))


def test_scalars_are_means_and_losses_by_level_are_relative_to_a_zero_score():
    """The loss of a zero score of 4x4 pixels is 8."""
    window = metrics.Window(SIGMAS, (4, 4, 1), 0)
    window.add(2, measured([8, 4], [1, 2], [[24, 4], [0, 4]], [[3, 1], [0, 2]]), Store())
    window.add(3, measured([3], [6], [[0, 4]], [[0, 1]]), Store())
    scalars = window.scalars(0.0)
    assert scalars["loss"] == 5 and scalars["grad_norm"] == 3
    assert scalars["loss_by_level/0000_sigma_1"] == 24 / 3 / 8
    assert scalars["loss_by_level/0001_sigma_0.1"] == 12 / 4 / 8
    assert "skipped" not in scalars


def test_many_levels_are_written_in_ten_groups():
    """With 23 levels, the first three groups have three. A zero score's loss for 4x2x3 numbers is 12."""
    sigmas, level = np.geomspace(10, 0.1, 23), np.arange(23)
    window = metrics.Window(sigmas, (4, 2, 3), 0)
    window.add(1, measured([1], [1], [level * 12.0], [level > 0]), Store())
    found = {k: v for k, v in window.scalars(0.0).items() if k.startswith("loss_by_level/")}
    firsts = [0, 3, 6, 9, 11, 13, 15, 17, 19, 21]
    assert list(found) == [f"loss_by_level/{i:04d}_sigma_{sigmas[i]:.3g}" for i in firsts]
    assert list(found.values()) == [1.5, 4, 7, 9.5, 11.5, 13.5, 15.5, 17.5, 19.5, 21.5]


def test_restarting_a_window_resets_it():
    window = metrics.Window(SIGMAS, (4, 4, 1), 0, skip_nonfinite=1)
    window.add(2, measured([8, np.nan], [1, 2], [[24, 4], [0, 4]], [[3, 1], [0, 2]]), Store())
    window.restart(2)
    window.add(3, measured([3], [6], [[4, 0]], [[1, 0]]), Store())
    scalars = window.scalars(0.0)
    assert scalars["loss"] == 3 and scalars["grad_norm"] == 6 and scalars["skipped"] == 0
    assert scalars["loss_by_level/0000_sigma_1"] == 0.5 and scalars["input_share"] == 0
    assert "loss_by_level/0001_sigma_0.1" not in scalars  # no example had this level


def test_speed_and_time_left_exclude_pauses(monkeypatch):
    now = 100.0
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now)
    window = metrics.Window(SIGMAS, (4, 4, 1), 10)
    window.add(20, measured([8], [1.5], [[24, 4]], [[3, 1]]), Store())
    now += 4.0
    with window.paused():
        now += 1000.0
    scalars = window.scalars(1.0)
    assert scalars["steps_per_second"] == 2.5 and scalars["input_share"] == 0.25
    assert window.time_for(25) == "10 s"
    line = "step 20/45  loss 8  grad 1.5  2.5 steps/s  input 25 %  10 s left"
    assert window.line(20, 45, scalars) == line


def test_non_finite_steps_are_counted_until_too_many_in_a_row():
    window = metrics.Window(SIGMAS, (4, 4, 1), 0, skip_nonfinite=2)

    def add(step, *loss):
        levels = np.stack([loss, loss], axis=1)
        window.add(step, measured(loss, np.ones(len(loss)), levels, np.ones_like(levels)), Store())

    add(4, 8.0, np.nan, np.inf, 4.0)
    scalars = window.scalars(0.0)
    assert scalars["loss"] == 6.0 and scalars["skipped"] == 2
    assert scalars["loss_by_level/0000_sigma_1"] == 6.0 / 8
    add(5, np.nan)
    assert window.scalars(0.0)["skipped"] == 3
    window.restart(5)
    add(6, np.nan)
    assert np.isnan(window.scalars(0.0)["loss"]) and "nan" in window.line(6, 9, window.scalars(0.0))
    message = "the loss is inf and the gradient norm is 1.0 at step 7; last good checkpoint: step 3"
    with pytest.raises(UserError, match=message):
        add(8, np.inf, 1.0)


@pytest.mark.parametrize(("loss", "grad_norm"), [(2.0, np.nan), (np.inf, 1.0)])
def test_a_non_finite_loss_or_gradient_stops_the_run(loss, grad_norm):
    class Empty(Store):
        def steps(self):
            return []

    window = metrics.Window(SIGMAS, (4, 4, 1), 0)
    levels = np.ones((3, 2))
    call = measured([1, loss, 1], [1, grad_norm, 1], levels, levels)
    message = f"loss is {loss} and the gradient norm is {grad_norm} at step 11; last good checkpoint: none"
    with pytest.raises(UserError, match=message):
        window.add(12, call, Empty())


def test_a_second_writer_appends_json_lines_and_events(tmp_path):
    for step, loss in ((1, 2.5), (2, np.inf)):
        with metrics.Writer(str(tmp_path)) as writer:
            writer.write_scalars(step, {"loss": np.float32(loss)})
            writer.write_image(step, "samples", b"a picture", (3, 4, 1))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 2.5), (2, np.inf)]
    for picture, step in zip(events.Images("samples"), (1, 2), strict=True):
        found = picture.step, picture.encoded_image_string, picture.height, picture.width
        assert found == (step, b"a picture", 3, 4)


def test_tensorboard_reads_texts(tmp_path):
    with metrics.Writer(str(tmp_path)) as writer:
        writer.write_text(3, "configuration", "| a |\n|---|")
    found = EventAccumulator(str(tmp_path)).Reload()
    (event,) = found.Tensors("configuration")
    assert event.step == 3 and event.tensor_proto.string_val == [b"| a |\n|---|"]
    assert list(found.PluginTagToContent("text")) == ["configuration"]
