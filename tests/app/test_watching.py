"""Evaluation while training, of samples whose distance from the training images is known."""

import json

import jax
import numpy as np
import pytest

from ncsn_jax.app import data, judge, run_samplers
from ncsn_jax.errors import UserError
from tests.app.modes import runs
from tests.app.modes.test_evaluate import Drawn
from tests.app.test_training_loop import world
from tests.recording import IMAGES

__all__ = ["world"]

# Dark images; the left half of every second one is brighter.
REAL = IMAGES // 4
REAL[::2, :, :4] += 100
# By how much the samples of a step are brighter than the training images. Moments differ in the mean alone.
BRIGHTER = {4: 30, 8: 10, 12: 20, 16: 40, 20: 5, 24: 50}
WATCH = {
    "evaluation.every": 4,
    "evaluation.features": "inception",  # in pixels during training
    "evaluation.num_samples": 10,
    "evaluation.reference": "fid_statistics.npz",  # not used during training
    "keep_best": True,
    "checkpoints_kept": 1,
    "sample_every": 0,
}


def distance(step):
    return 64 * (BRIGHTER[step] / 255) ** 2


class Chains(runs.Chains):
    """Sample i is training image i, brighter."""

    def run(self, params, indices, size, *known, num_frames=0, advanced=lambda steps: None):
        step = int(jax.tree.leaves(params)[0].ravel()[0])
        self.calls.append((step, indices))
        if BRIGHTER.get(step) is None:
            raise UserError("a chain diverged")
        images = REAL[np.asarray(indices) % len(REAL)] + np.uint8(BRIGHTER[step])
        return run_samplers.Samples(images, None, [1] * len(images))


@pytest.fixture
def calls(world, monkeypatch):
    """Replaces the samplers of `world`; returns their calls."""
    monkeypatch.setattr(run_samplers, "Chains", Chains)
    monkeypatch.setattr(Chains, "calls", [])
    monkeypatch.setattr(data, "load", lambda *_, **__: data.Images(REAL))
    return Chains.calls


def figures(world):
    """Returns the evaluations of a run by step."""
    lines = (world.workdir / "metrics.jsonl").read_text().splitlines()
    found = {}
    for line in map(json.loads, lines):
        of = {n.partition("/")[2]: v for n, v in line.items() if n.startswith("evaluation/")}
        if of:
            found[line["step"]] = of
    return found


def test_the_best_checkpoint_is_kept_over_resumes(world, calls, capsys):
    world.train(**WATCH, num_steps=16)
    assert world.steps() == [16, 8]
    world.train(**WATCH, num_steps=20)
    assert world.steps() == [20, 8]  # step 20 is evaluated after it is saved
    world.train(**WATCH, num_steps=24)
    assert world.steps() == [24, 20]
    for step, found in figures(world).items():
        assert found == {"frechet_pixels_10": pytest.approx(distance(step), rel=1e-4)}
    assert sorted(figures(world)) == list(BRIGHTER)
    line = "evaluation at step 12: frechet_pixels_10 0.3937; best checkpoint: step 8, 0.09842"
    assert line in capsys.readouterr().out.splitlines()


def test_a_step_is_saved_before_its_evaluation(world, calls):
    events = world.train(**WATCH, num_steps=8, checkpoint_every=8, log_every=8)
    assert events[1:-2] == [
        *(("save", 4), ("wait",), ("log", 4), ("flush", True)),
        *(("log", 8), ("flush", True), ("save", 8), ("wait",), ("log", 8), ("flush", True)),
        ("wait",),
    ]


def test_a_missing_evaluation_is_made_when_a_run_resumes(world, calls):
    """Also that of the last step, and one by another sampler."""
    world.train(**WATCH, num_steps=8)
    for num_steps in (8, 12):
        (world.workdir / "checkpoints/8/distances.json").unlink()
        calls.clear()
        world.train(**WATCH, num_steps=num_steps)
        assert calls[0] == (8, [0, 1]) and [step for step, _ in calls].count(8) == 5
    assert world.steps() == [12, 8]
    calls.clear()
    world.train(**WATCH, num_steps=12)
    assert calls == []
    world.train(**WATCH | {"sampling.steps_per_level": 3}, num_steps=16)
    assert calls[0] == (12, [0, 1])
    assert world.steps() == [16, 12, 8]  # 12 is the best by the other sampler


def test_an_evaluation_that_fails_does_not_end_the_run(world, calls, monkeypatch, capsys):
    monkeypatch.setitem(BRIGHTER, 4, None)
    world.train(**WATCH, num_steps=8)
    assert "no evaluation at step 4: a chain diverged" in capsys.readouterr().out
    assert list(figures(world)) == [8]


def test_a_thousand_samples_are_enough_and_a_classifier_recognises_some(world, calls, monkeypatch):
    monkeypatch.setattr(judge, "load", lambda config: Drawn(network=Drawn))
    changes = {"evaluation.num_samples": 50_000, "evaluation.features": "classifier"}
    world.train(**WATCH | changes | {"sampling.batch_size": 400}, num_steps=4)
    assert [(indices[0], indices[-1]) for _, indices in calls] == [
        *((0, 399), (400, 799), (800, 999)),
        (0, 1),
    ]
    (found,) = figures(world).values()
    assert list(found) == ["frechet_classifier_1000", "recognised_1000"]
    assert found["recognised_1000"] == 0.5


def test_images_that_cannot_be_compared_are_refused_before_training(world, calls, monkeypatch):
    def refuse(config):
        raise UserError("no labels")

    monkeypatch.setattr(judge, "load", refuse)
    with pytest.raises(UserError, match="no labels"):
        world.train(**WATCH | {"evaluation.features": "classifier"})
    assert ("batch", 0, 2) not in world.events
