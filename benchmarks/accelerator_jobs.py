"""The parts of `benchmarks.accelerator` that run the application: digits, stopping and resuming, MNIST.

Each job is a process of `python main.py`, and ends before the next one starts.
"""

import importlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
from sklearn.neural_network import MLPClassifier

from benchmarks import digits_quality
from benchmarks.accelerator_parts import Bench, Part, lacks_time, one_line
from benchmarks.workers import ROOT, last_line
from ncsn_jax.app import build, checkpoints, data, pictures

# Seconds to save after a signal; to start again and sample 100 images of MNIST; to begin training.
_SAVING, _SAMPLING, _BEGINNING = 6, 32, 60
# Steps of the resumed run, which stops halfway.
_RESUMED = 1000
# The jobs' configuration on a CPU: a network of two convolutions.
_TINY = "tests/tiny.py"
# A classifier is trained on this many real images, and tested on as many others.
_REAL = 10_000


class _Job:
    """A process of the application, which ends with the part or when its context is left.

    Args:
      bench: its results directory gets the log.
      workdir, config, mode: the flags of `main.py`.
      changes: new values of configuration fields, by their dotted names.
    """

    def __init__(self, bench: Bench, workdir, config: str, changes: dict, mode: str = "train"):
        command = [sys.executable, "main.py", f"--config={config}"]
        command += [f"--workdir={workdir}", f"--mode={mode}"]
        command += [f"--config.{name}={value}" for name, value in changes.items()]
        self._log = open(bench.out / "jobs.log", "a+b")  # noqa: SIM115
        self._log.write(f"\n$ {' '.join(command[1:])}\n".encode())
        self._log.flush()
        self._ends, self._started = bench.ends, time.monotonic()
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=self._log, stderr=self._log)

    def __enter__(self) -> "_Job":
        return self

    def __exit__(self, *error) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def wait(self, condition: Callable[[], bool], expected: int | None = None) -> float:
        """Waits for a condition and returns how long the job has run.

        Args:
          condition: what to wait for; with `expected`, the end of the process suffices.
          expected: the status with which the process may end.

        Raises:
          RuntimeError: if the process ends early, with another status, or not in time.
        """
        while not condition():
            status = self._process.poll()
            if status is not None and status == expected:
                break
            if status is not None or time.monotonic() > self._ends:
                what = "out of time" if status is None else f"ended with {status}"
                raise RuntimeError(f"{what}; last line: {last_line(self._log)}")
            time.sleep(0.1)
        return time.monotonic() - self._started

    def finish(self) -> float:
        """Waits for the end of the job and returns how long it ran."""
        return self.wait(lambda: False, expected=0)

    def stop(self) -> None:
        """Sends SIGTERM and waits until the state is saved."""
        self._process.send_signal(signal.SIGTERM)
        self._ends = max(self._ends, time.monotonic() + 5 * _SAVING)
        self.wait(lambda: False, expected=75)


def _losses(workdir: pathlib.Path) -> dict[int, float]:
    """Returns the loss of each logged step."""
    try:
        records = pictures.read_metrics(str(workdir / "metrics.jsonl"))
    except (OSError, ValueError):  # nothing is logged yet
        return {}
    return {record["step"]: record["loss"] for record in records}


def _progress(workdir: pathlib.Path) -> dict:
    """Returns what a run's log says: how long compiling took, and how far and fast it got."""
    log = (workdir / "log.txt").read_text() if (workdir / "log.txt").exists() else ""
    compiled = re.search(r"training step compiled in ([^;\n]*)", log)
    figures = {"compiled in": compiled and compiled.group(1)}
    if losses := _losses(workdir):
        records = pictures.read_metrics(str(workdir / "metrics.jsonl"))
        speed = float(np.median([record["steps_per_second"] for record in records]))
        figures |= {"steps": max(losses), "steps/s": speed, "last loss": losses[max(losses)]}
    return figures


def _samples(workdir: pathlib.Path) -> np.ndarray:
    """Returns a run's samples, uint8 `[N, H, W, C]`."""
    (path,) = (workdir / "samples").glob("step_*/samples.npz")
    return pictures.read_npz(str(path), "samples")[0]


def _main_job(bench: Bench) -> tuple[str, dict]:
    """Returns the main job's configuration, and the changes to it."""
    changes = {"training.sample_every": 0, "training.keep_every": _RESUMED}
    if not bench.small:
        return "configs/digits.py", changes
    return _TINY, changes | {"training.num_steps": 2 * _RESUMED, "training.checkpoint_every": 250}


def digits(bench: Bench) -> Part:
    """Trains on digits and samples, with `configs/digits.py`."""
    workdir, figures = bench.scratch / "digits", {}
    try:
        with _Job(bench, workdir, *_main_job(bench)) as job:
            figures["first log s"] = job.wait(lambda: _losses(workdir))
            figures["seconds"] = bench.job_seconds = job.finish()
    except RuntimeError as error:
        yield "job", figures | _progress(workdir) | {"failed": one_line(error)}
        return
    yield "job", figures | _progress(workdir)
    samples = _samples(workdir)
    pictures.write_png(str(bench.out / "digits.png"), pictures.grid(samples))
    share, real, classes = digits_quality.recognised(samples.reshape(-1, 64) / 255)
    figures = {"recognised": float(share), "of real digits": float(real)}
    yield "samples", figures | {"digits found": int(np.sum(classes > 0))}


def resume(bench: Bench) -> Part:
    """Trains the beginning of the main job with a stop halfway, and compares it with that job."""
    if bench.job_seconds is None:
        yield "comparison", {"skipped": "the main job did not finish"}
        return
    # The programs are compiled by now, so only two starts remain.
    if reason := lacks_time(bench, 0.5 * bench.job_seconds):
        yield "comparison", {"skipped": reason}
        return
    whole, workdir = bench.scratch / "digits", bench.scratch / "resumed"
    config, changes = _main_job(bench)
    with _Job(bench, workdir, config, changes) as job:
        first = job.wait(lambda: _losses(workdir))
        job.wait(lambda: max(_losses(workdir)) >= _RESUMED / 2)
        job.stop()
    stopped = max(_losses(workdir))
    with _Job(bench, workdir, config, changes) as job:
        # The learning rate depends on the number of steps, so a shorter run would be another one.
        job.wait(lambda: max(_losses(workdir)) >= _RESUMED)
        job.stop()
    found, expected = _losses(workdir), _losses(whole)
    # The first mean after the stop covers fewer steps.
    steps = [step for step in found if not stopped < step <= min(s for s in found if s > stopped)]
    different = [step for step in steps if found[step] != expected.get(step)]
    yield (
        "comparison",
        {
            "first log s": first,
            "stopped after step": stopped,
            "losses compared": len(steps),
            "different": len(different),
            "first step with another loss": min(different, default=None),
            f"same bits at step {_RESUMED}": _same_state(bench, whole, workdir),
        },
    )


def _same_state(bench: Bench, *workdirs: pathlib.Path) -> bool:
    """Returns whether two runs have the same checkpoint at step `_RESUMED`, bit for bit."""
    name = _main_job(bench)[0].removesuffix(".py").replace("/", ".")
    config, states = importlib.import_module(name).get_config(), []
    like = jax.eval_shape(build.make_init(config), jax.random.key(0))
    for workdir in workdirs:
        with checkpoints.Checkpoints(str(workdir), 2) as store:
            states.append(store.restore(_RESUMED, like))
    same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), *states)
    return all(jax.tree.leaves(same))


def mnist(bench: Bench) -> Part:
    """Trains the published MNIST run for the remaining time, then draws 100 samples."""
    reason = lacks_time(bench, 0 if bench.small else _BEGINNING + _SAVING + _SAMPLING)
    if bench.data_dir is None or reason:
        yield "run", {"skipped": reason or "no --data_dir"}
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
    stop_at = bench.ends - _SAVING - _SAMPLING
    with _Job(bench, workdir, config, changes) as job:
        figures = {"first log s": job.wait(lambda: _losses(workdir))}
        figures["seconds"] = job.wait(lambda: time.monotonic() > stop_at)
        job.stop()
    yield "training", figures | _progress(workdir)
    curve = pictures.plot_losses(pictures.read_metrics(str(workdir / "metrics.jsonl")))
    (bench.out / "mnist_loss.png").write_bytes(curve)

    bench.ends = max(bench.ends, time.monotonic() + _SAMPLING)
    with _Job(bench, workdir, config, changes, mode="sample") as job:
        seconds = job.finish()
    samples = _samples(workdir)
    pictures.write_png(str(bench.out / "mnist.png"), pictures.grid(samples))
    pictures.write_npz(str(bench.out / "mnist_samples.npz"), samples=samples)
    yield "sampling", {"samples": len(samples), "seconds": seconds}
    yield "samples", _judge(bench, samples)


def _judge(bench: Bench, samples: np.ndarray) -> dict:
    """Returns how a classifier of real images judges samples."""
    count = 500 if bench.small else _REAL
    pixels = data.load("mnist", bench.data_dir, 28, 1)[: 2 * count].reshape(-1, 784) / 255
    labels = data.load_labels("mnist", bench.data_dir)[0][:count]
    classifier = MLPClassifier((128,), early_stopping=True, max_iter=20, random_state=0)
    classifier.fit(pixels[:count], labels)

    def recognised(x: np.ndarray) -> float:
        sure = classifier.predict_proba(x).max(axis=1) > digits_quality.THRESHOLD
        return float(np.mean(sure))

    x = samples.reshape(len(samples), -1) / 255
    classes = np.bincount(classifier.predict(x), minlength=10)
    return {
        "recognised": recognised(x),
        "of real images": recognised(pixels[count:]),
        "digits found": int(np.sum(classes > 0)),
        "of each digit": " ".join(map(str, classes)),
    }
