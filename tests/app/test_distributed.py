"""Compares two processes of four simulated devices with one of eight, and tests lost and stopped ones."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

import run_lib
from ncsn_jax import evaluation
from ncsn_jax.app import build, devices, distributed, run_samplers
from ncsn_jax.errors import UserError
from tests import faults, tiny
from tests.running import final_state, run

STREAMED = ("--config.data.cache_bytes=0", "--config.data.workers=2")
WATCHED = (
    *("--config.evaluation.every=10", "--config.training.keep_best=True"),
    *("--config.evaluation.features=pixels", "--config.evaluation.num_samples=12"),
)
STEPS = ("--config.training.log_every=1", "--config.training.num_steps=20")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Returns the work directory of a run by two processes, of which one was killed during training.

    Its images are decoded on demand, and it evaluates itself. The runs that it is compared with cache their
    images, and do not.
    """
    build.load_images(tiny.get_config())  # The first preparation prints its progress.
    workdir = tmp_path_factory.mktemp("hosts") / "two"
    arguments = (*STEPS, *STREAMED, *WATCHED)
    processes = faults.start_two(workdir, *arguments, devices=4)
    faults.wait_for("step 12/", workdir, processes)
    while not faults.complete(workdir):
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGKILL)
    processes[1].wait()
    # The runtime's message depends on where the other process waits; the status is never 0.
    assert processes[0].wait(60) != 0
    saved = faults.complete(workdir)
    processes = faults.start_two(workdir, *arguments, devices=4)
    assert faults.wait_two(processes) == [0, 0], faults.said(workdir)
    log = (workdir / "log.txt").read_text()
    assert f"from step {saved[-1]}" in log and saved[-1] >= 10
    assert "devices: 8 x cpu on 2 host(s)" in log
    return workdir


def samples(workdir):
    return np.load(workdir / "samples/step_20/samples.npz")["samples"]


def compare(workdir, other):
    """Asserts that two finished runs have the same state and samples up to rounding."""
    a, b = (final_state(w) for w in (workdir, other))
    assert a[0] == b[0] == 20
    for x, y in zip(*map(jax.tree.leaves, (a[1], b[1])), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6)
    a, b = map(samples, (workdir, other))
    assert a.shape == (12, 8, 8, 1) and np.abs(a.astype(int) - b).max() <= 1


def train_here(workdir):
    """Trains in this process, which has eight devices, as `STEPS` says."""
    config = tiny.get_config()
    config.training.update(log_every=1, num_steps=20)
    run_lib.train(config, str(workdir))


def test_two_processes_train_like_one(two, tmp_path, closed_logs):
    """Loss, state and samples are equal up to the rounding of sums in a different order."""
    workdir = tmp_path / "one"
    train_here(workdir)
    expected, found = faults.curve(workdir), faults.curve(two)
    assert list(found) == list(range(1, 21))
    # float32 sums of 8 numbers differ by 1e-7 of their size; Adam and 20 steps leave room for 100 times that.
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
    compare(workdir, two)


def test_two_processes_evaluate_while_they_train(two):
    lines = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line.get("evaluation/frechet_pixels_12") for line in lines}
    train, made = (
        np.asarray(x, np.float32).reshape(len(x), -1) / 255
        for x in (build.load_images(tiny.get_config())[:], samples(two))
    )
    assert found[10] is not None
    np.testing.assert_allclose(found[20], evaluation.frechet_distance(train, made), rtol=1e-9)


def test_one_process_resumes_a_run_of_two(two, tmp_path, closed_logs):
    workdir = shutil.copytree(two, tmp_path / "copy")
    for name in ("checkpoints/20", "samples"):
        shutil.rmtree(workdir / name)
    (workdir / "log.txt").unlink()
    train_here(workdir)
    log = (workdir / "log.txt").read_text()
    assert "from step 10" in log and "devices: 8 x cpu on 1 host(s)" in log
    compare(workdir, two)


def test_two_processes_add_to_existing_samples(two, tmp_path):
    workdir = shutil.copytree(two, tmp_path / "copy")
    processes = faults.start_two(
        workdir, *STEPS, "--mode=sample", "--config.sampling.num_samples=20", devices=4
    )
    assert faults.wait_two(processes) == [0, 0], faults.said(workdir)
    before, found = samples(two), samples(workdir)
    np.testing.assert_array_equal(found[:12], before)
    params = devices.replicate(final_state(two)[1].ema_params)
    added = run_samplers.Chains(tiny.get_config()).run(params, list(range(12, 20)), 8).images
    assert found.shape == (20, 8, 8, 1) and np.abs(found[12:].astype(int) - added).max() <= 1


def test_sigterm_to_one_process_makes_both_save_and_stop(tmp_path):
    workdir = tmp_path / "run"
    rarely = (f"--config.training.{name}=100000" for name in ("num_steps", "checkpoint_every"))
    processes = faults.start_two(workdir, STEPS[0], *rarely, "--config.training.sample_every=0")
    faults.wait_for("step 3/", workdir, processes)
    processes[1].send_signal(signal.SIGTERM)
    assert faults.wait_two(processes) == [75, 75], faults.said(workdir)
    (step,) = faults.complete(workdir)
    assert final_state(workdir)[0] == step >= 3
    assert f"stopped after step {step}, which is saved" in (workdir / "log.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ((None, 2, 0), {}, "--coordinator, --num_processes and --process_id must be set together"),
        (("a:1", 2, None), {}, "must be set together"),
        (("a:1", None, None), {}, "must be set together"),
        (("a:1", 2, 2), {}, "--process_id=2 must be at least 0 and below --num_processes=2"),
        (("localhost", 2, 0), {}, "--coordinator='localhost' must be HOST:PORT"),
        (("a:99999", 2, 0), {}, "must be HOST:PORT"),
        (("localhost", None, None), {"SLURM_NTASKS": "2"}, "must be HOST:PORT"),
        ((None, None, None), {"JAX_NUM_PROCESSES": "two"}, r"\$JAX_NUM_PROCESSES='two' must be"),
    ],
)
def test_inconsistent_process_flags_are_refused(arguments, environment, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        distributed.find(*arguments)


def test_processes_are_read_from_the_environment(monkeypatch):
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.find(None, None, None) is None
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert distributed.find(None, None, None) == (None, None, None)
    assert distributed.find(None, 1, None) is None
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "[::1]:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    assert distributed.find(None, None, None) == ("[::1]:1234", 2, 1)


def test_waiting_for_other_processes_times_out(tmp_path):
    """Process 1 runs alone and never finds process 0."""
    arguments = ("--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=1", "--patience=2")
    result = run(tmp_path / "run", *arguments)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        "error: waited 2 s for the other processes to connect at 127.0.0.1:1 (--pat"
    )


def test_different_configurations_are_refused(tmp_path):
    """Every process refuses them, not only the one that reads the work directory."""
    workdir = tmp_path / "run"
    where = (f"--coordinator=127.0.0.1:{faults.free_port()}", "--num_processes=2")
    processes = [
        faults.start(workdir, f"--config.seed={i}", *where, f"--process_id={i}") for i in range(2)
    ]
    assert processes[1].wait(60) == 1
    (line,) = faults.said(workdir, 1)
    message = (
        "error: process 1 differs from process 0 in its configuration: seed is 0 there and 1 here"
    )
    assert line == message
    for process in processes:
        process.kill()
        process.wait()
