"""Runs a short form of `tests/faults.py`, and tests signals, which that does not send."""

import pathlib
import random
import re
import signal
import time

import pytest

from tests import faults
from tests.running import final_state


def scenario(name, count, folder):
    faults.SCENARIOS[name](folder, count, random.Random(f"{name} 0"), print)


def test_a_run_killed_at_a_random_moment_is_bit_identical(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # the setting of users, unlike that of the other tests
    scenario("kills", 1, tmp_path)


# TensorStore's threads raise this, because nothing waits for them once one has failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damage_to_every_file_of_a_checkpoint_is_survived(tmp_path):
    scenario("damages", 1, tmp_path)


@pytest.mark.skipif(
    not faults.can_fill(), reason="this machine does not let a process mount a disk"
)
def test_a_full_disk_is_survived(tmp_path):
    scenario("fills", 1, tmp_path)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_the_step_just_finished(tmp_path, number, status):
    """It takes well under the half minute that a preempted machine leaves."""
    workdir = tmp_path / "run"
    extra = ("--config.training.num_steps=100000", "--config.training.checkpoint_every=100000")
    extra += ("--config.training.sample_every=0",)  # a signal during a preview ends the run at once
    extra += ("--config.training.log_every=1000",)
    process = faults.start(workdir, *extra)
    log = pathlib.Path(f"{workdir}.out")
    while "step 1000/" not in log.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == status
    (step,) = faults.complete(workdir)
    assert f"stopped after step {step}, which is saved" in log.read_text()
    assert "run the same command to continue" in pathlib.Path(f"{workdir}.err").read_text()
    assert final_state(workdir)[0] == step
    assert 5 <= step < 100_000


def test_a_signal_before_the_first_step_ends_at_once(tmp_path):
    process = faults.start(tmp_path / "run")
    while "compiling" not in (tmp_path / "run.out").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert re.fullmatch("SIGTERM: .*\n", (tmp_path / "run.err").read_text())
