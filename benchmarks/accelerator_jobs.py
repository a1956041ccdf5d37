"""The parts of `benchmarks.accelerator` that run the application: digits, MNIST, a signal and its resumption.

Each job is `python main.py` in a process of its own. Hidden here are the processes, their logs, what they
leave in a work directory, and how samples are judged.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from sklearn.neural_network import MLPClassifier

from benchmarks import digits_quality
from benchmarks.accelerator_tools import Bench, Part
from benchmarks.workers import ROOT, last_line
from ncsn_jax import data, images

# Seconds: to save after a signal; to start again, compile the sampler and sample, on a GPU and on a CPU.
_SAVING, _SAMPLING, _SAMPLING_SMALL = 30, 75, 30
# What the jobs are on a CPU: a network of two convolutions, and few steps.
_TINY = "tests/tiny.py"
_FEW = {
    "training.num_steps": 600,
    "training.checkpoint_every": 300,
    "training.sample_every": 0,
}
# A classifier is trained on so many real images, and judged on as many others.
_REAL = 10_000


_running: list[subprocess.Popen] = []


def kill_all() -> None:
    """Ends the processes of jobs that nobody waits for any more."""
    for process in _running:
        process.kill()


class _Job:
    """A process of the application, ended at the latest when it is left.

    Args:
      workdir: of the run.
      config: the file of the configuration.
      changes: of its fields, by their dotted names.
      mode: of `main.py`.
    """

    def __init__(self, workdir: pathlib.Path, config: str, changes: dict, mode: str = "train"):
        command = [sys.executable, "main.py", f"--config={config}"]
        command += [f"--workdir={workdir}", f"--mode={mode}"]
        command += [f"--config.{name}={value}" for name, value in changes.items()]
        self._log = open(f"{workdir}.{mode}.log", "a+b")  # noqa: SIM115
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=self._log, stderr=self._log)
        _running.append(self.process)

    def __enter__(self) -> "_Job":
        return self

    def __exit__(self, *error) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()

    def wait(self, until: float, expected: int = 0) -> None:
        """Waits for the end of the process, until a time of `time.monotonic`.

        Raises:
          RuntimeError: if it ends with another status.
          TimeoutError: if it does not end.
        """
        try:
            status = self.process.wait(max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"not done in time; last line: {last_line(self._log)}") from None
        if status != expected:
            raise RuntimeError(f"ended with {status}: {last_line(self._log)}")

    def stop(self) -> None:
        """Sends SIGTERM and waits for the state to be saved."""
        self.process.send_signal(signal.SIGTERM)
        self.wait(time.monotonic() + _SAVING, expected=75)


def _losses(workdir: pathlib.Path) -> dict[int, float]:
    """Returns the loss of each step that was logged."""
    try:
        records = images.read_metrics(str(workdir / "metrics.jsonl"))
    except (OSError, ValueError):  # nothing is logged yet
        return {}
    return {record["step"]: record["loss"] for record in records}


def _speed(workdir: pathlib.Path) -> float:
    """Returns the median of the steps per second."""
    records = images.read_metrics(str(workdir / "metrics.jsonl"))
    return float(np.median([record["steps_per_second"] for record in records]))


def _paths(workdir: pathlib.Path) -> list[pathlib.Path]:
    return list((workdir / "samples").glob("step_*/samples.npz"))


def _samples(workdir: pathlib.Path) -> np.ndarray:
    """Returns the samples of the newest checkpoint, uint8 `[N, H, W, C]`."""
    newest = max(_paths(workdir), key=lambda path: int(path.parent.name.removeprefix("step_")))
    (samples,) = images.read_npz(str(newest), "samples")
    return samples


def _main_job(bench: Bench) -> tuple[str, dict]:
    """Returns the configuration of the main job, and what is changed in it."""
    return (_TINY, _FEW) if bench.small else ("configs/digits.py", {})


def digits(bench: Bench) -> Part:
    """The main job: trains on digits and samples, as `configs/digits.py` says."""
    workdir, (config, changes) = bench.scratch / "digits", _main_job(bench)
    started = time.monotonic()
    try:
        with _Job(workdir, config, changes) as job:
            job.wait(bench.ends)
    finally:
        bench.digits_ended.set()
    seconds, losses, samples = time.monotonic() - started, _losses(workdir), _samples(workdir)
    images.write_png(str(bench.out / "digits.png"), images.grid(samples))
    share, real, classes = digits_quality.recognised(samples.reshape(-1, 64) / 255)
    yield (
        "job",
        {
            "seconds": seconds,
            "steps": max(losses),
            "steps per second": _speed(workdir),
            "last loss": losses[max(losses)],
            "recognised": share,
            "of real digits": real,
            "digits found": int(np.sum(classes > 0)),
        },
    )


def resume(bench: Bench) -> Part:
    """Stops the main job in its middle, continues it, and compares it with the uninterrupted one."""
    whole, workdir = bench.scratch / "digits", bench.scratch / "resumed"
    bench.digits_ended.wait(bench.ends - time.monotonic())
    (config, changes), expected = _main_job(bench), _losses(whole)
    if not _paths(whole):
        yield "comparison", {"skipped": "the main job did not finish"}
        return
    with _Job(workdir, config, changes) as job:
        while max(_losses(workdir), default=0) < max(expected) / 3:
            if job.process.poll() is not None or time.monotonic() > bench.ends:
                job.wait(0)
                raise RuntimeError("ended before it was stopped")
            time.sleep(0.05)
        job.stop()
    stopped = max(_losses(workdir))
    with _Job(workdir, config, changes) as job:
        job.wait(bench.ends)
    found, samples, others = _losses(workdir), _samples(workdir), _samples(whole)
    # The first mean after the stop is of fewer steps.
    partial = min((step for step in expected if step > stopped), default=None)
    different = [s for s in expected if s != partial and found.get(s) != expected[s]]
    yield (
        "comparison",
        {
            "stopped after step": stopped,
            "same losses": not different,
            "first step with another loss": min(different, default=None),
            "same samples": bool(np.array_equal(samples, others)),
            "share of equal pixels": float(np.mean(samples == others)),
        },
    )


def mnist(bench: Bench) -> Part:
    """The published MNIST run for the time that is left, then 100 samples of it."""
    if bench.data_dir is None:
        yield "run", {"skipped": "no --data_dir"}
        return
    workdir = bench.scratch / "mnist"
    config, changes = "configs/mnist.py", {"training.steps_per_call": 10}
    if bench.small:
        config, changes = _TINY, {"data.dataset": "mnist", "data.image_size": 28}
    changes |= {
        "data.data_dir": os.path.abspath(bench.data_dir),
        "training.num_steps": 1_000_000,
        "training.sample_every": 0,
    }
    stop_at = bench.ends - _SAVING / 3 - (_SAMPLING_SMALL if bench.small else _SAMPLING)
    with _Job(workdir, config, changes) as job:
        judge = _judge_mnist(bench)
        while time.monotonic() < stop_at or not _losses(workdir):
            if job.process.poll() is not None or time.monotonic() > bench.ends:
                job.wait(0)
            time.sleep(0.2)
        job.stop()
    losses = _losses(workdir)
    curve = images.plot_losses(images.read_metrics(str(workdir / "metrics.jsonl")))
    (bench.out / "mnist_loss.png").write_bytes(curve)
    figures = {"steps": max(losses), "steps per second": _speed(workdir)}
    yield "training", figures | {"last loss": losses[max(losses)]}

    started = time.monotonic()
    with _Job(workdir, config, changes, mode="sample") as job:
        try:
            job.wait(bench.ends + bench.grace / 2)
        except TimeoutError:
            if not _paths(workdir):  # the samples are there before the process has ended
                raise
    seconds, samples = time.monotonic() - started, _samples(workdir)
    images.write_png(str(bench.out / "mnist.png"), images.grid(samples))
    yield "samples", {"samples": len(samples), "seconds": seconds} | judge(samples)


def _judge_mnist(bench: Bench) -> Callable[[np.ndarray], dict]:
    """Returns a function from samples to figures, by a classifier of real images."""
    count = 500 if bench.small else _REAL
    pixels = data.load("mnist", bench.data_dir, 28, 1)[: 2 * count].reshape(-1, 784) / 255
    labels = data.load_labels("mnist", bench.data_dir)[0][: 2 * count]
    classifier = MLPClassifier((128,), early_stopping=True, max_iter=20, random_state=0)
    classifier.fit(pixels[:count], labels[:count])

    def recognised(x: np.ndarray) -> float:
        sure = classifier.predict_proba(x).max(axis=1) > digits_quality.THRESHOLD
        return float(np.mean(sure))

    def judge(samples: np.ndarray) -> dict:
        x = samples.reshape(len(samples), -1) / 255
        classes = np.bincount(classifier.predict(x), minlength=10)
        return {
            "recognised": recognised(x),
            "of real images": recognised(pixels[count:]),
            "digits found": int(np.sum(classes > 0)),
            "of each digit": " ".join(map(str, classes)),
        }

    return judge
