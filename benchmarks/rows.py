"""The rows of the table: what each measures, with which processes and networks, and in which order.

A row that fails does not affect the others.
"""

import functools
import statistics
import tempfile
from collections.abc import Callable
from typing import NamedTuple

from benchmarks import startup, table
from benchmarks.session import LEVELS, Network, Options, Session, overrides, timed
from benchmarks.workers import Worker

NAMES = (
    "train",
    "evaluate",
    "langevin",
    "overhead",
    "compile",
    "start",
    "memory",
    "input",
    "devices",
)

# Memory does not depend on the number of steps.
_STEPS_FOR_MEMORY = 2 * LEVELS
_SIMULATED_DEVICES = 8

SHAPES = {
    16: Network(16, 28, 1, 32),
    32: Network(32, 28, 1, 32),
    64: Network(64, 32, 3, 8),
    128: Network(128, 32, 3, 8),
}
_SMALL = SHAPES[16]
_SAMPLED = Network(16, 28, 1, 8)
_OVERHEAD = Network(16, 8, 1, 100)
# The digits' own configuration, whose batch size must be known.
_DIGITS = {"training.batch_size": 64}
_MNIST = Network(64, 28, 1, 8)


class Job(NamedTuple):
    """A row to measure.

    Attributes:
      name: one of `NAMES`.
      title: the row's title.
      measure: `measure(session, title)` returns the row.
    """

    name: str
    title: str
    measure: Callable[[Session, str], table.Row]


def plan(names: list[str], shapes: list[int], options: Options) -> list[Job]:
    """Returns the named rows, for networks with the given features, in the table's order."""
    jobs = []

    def add(name: str, title: str, measure: Callable, **arguments) -> None:
        if name in names:
            jobs.append(Job(name, title, functools.partial(measure, **arguments)))

    for network in (SHAPES[shape] for shape in shapes):
        add("train", f"train step, {network}", _train, network=network)
        add("evaluate", f"network evaluation, {network}", _run, network=network, task="evaluate")
        if options.reference is not None:
            title = f"train step, {network}, PyTorch flushing denormals"
            add("train", title, _train, network=network, flush_denormals=True)
    steps = f"{options.sampler_steps:,}"
    title = f"annealed Langevin, {steps} steps, {_SAMPLED}"
    add("langevin", title, _run, network=_SAMPLED, task="sample")
    add("overhead", f"annealed Langevin, {steps} steps, {_OVERHEAD}", _overhead)
    add("compile", f"compiling the train step with a filled cache, {_SMALL}", _compile)
    add("start", "start to first step with a filled cache, configs/digits.py", _start_digits)
    add("start", f"start to first step with a filled cache, {_MNIST}", _start_mnist)
    for network in (SHAPES[shape] for shape in shapes):
        title = f"peak memory of training, {network}"
        add("memory", title, _memory, network=network, task="train")
    title = f"peak memory of sampling, {_SAMPLED}"
    add("memory", title, _memory, network=_SAMPLED, task="sample")
    title = f"peak memory of sampling with a filled cache, {_SAMPLED}"
    add("memory", title, _memory, network=_SAMPLED, task="sample", filled=True)
    add("input", "making a batch, configs/digits.py", _input)
    title = f"train step on {_SIMULATED_DEVICES} simulated devices, configs/digits.py"
    add("devices", title, _devices)
    return jobs


def measure(session: Session, job: Job) -> table.Row:
    """Returns a job's row, which says so if it cannot be measured."""
    try:
        return job.measure(session, job.title)
    except Exception as error:
        session.close()
        return table.failure(job.title, error)


def _measures(pair: tuple[Worker, Worker | None], task: str) -> dict[str, Callable]:
    """Returns a measuring function for each worker of a pair."""
    ours, original = pair
    measures = {"ours": timed(ours, task)}
    return measures if original is None else measures | {"original": timed(original, task)}


def _run(session: Session, title: str, network: Network, task: str) -> table.Row:
    pair = session.pair(network)
    session.prepare(title, *((worker, task) for worker in pair))
    columns = session.alternate(title, _measures(pair, task))
    return table.compare(title, columns["ours"], columns.get("original"), unit=table.duration)


def _train(
    session: Session, title: str, network: Network, flush_denormals: bool = False
) -> table.Row:
    pair = session.pair(network, flush_denormals)
    calls = session.options.warm_up_steps
    session.prepare(title, *((worker, "train") for worker in pair), calls=calls)
    measures, (ours, _) = _measures(pair, "train"), pair
    ours.ask("prepare", task="matmul")
    measures["matmul"] = timed(ours, "matmul", min)
    columns = session.alternate(title, measures)
    speed = table.speed(
        ours.ask("operations"),
        statistics.median(columns["ours"]),
        ours.ask("matmul_operations") / min(columns["matmul"]),
    )
    return table.compare(
        title, columns["ours"], columns.get("original"), unit=table.duration, speed=speed
    )


def _overhead(session: Session, title: str) -> table.Row:
    steps = session.options.sampler_steps
    with session.start_ours(overrides(_OVERHEAD, steps)) as worker:
        tasks = ("sample", "evaluations")
        session.prepare(title, *((worker, task) for task in tasks))
        columns = session.alternate(title, {task: timed(worker, task) for task in tasks})
    name = f"{steps:,} evaluations"
    return table.compare(
        title, columns["sample"], columns["evaluations"], unit=table.duration, name=name
    )


def _against_cold(session: Session, title: str, seconds: Callable[[str], float]) -> table.Row:
    """Returns the row of what every round does twice with one cache, empty at first."""
    cold, warm = [], []
    for _ in session.rounds(title):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(seconds(cache))
            warm.append(seconds(cache))
    return table.compare(title, warm, cold, unit=table.duration, name="empty cache")


def _compile(session: Session, title: str) -> table.Row:
    changes = overrides(_SMALL, session.options.sampler_steps)

    def seconds(cache: str) -> float:
        with session.start_ours(changes, cache=cache) as worker:
            return worker.ask("compile_seconds")

    return _against_cold(session, title, seconds)


def _start_digits(session: Session, title: str) -> table.Row:
    flags = ["--config=configs/digits.py"]
    return _against_cold(session, title, functools.partial(startup.seconds_to_first_step, flags))


def _start_mnist(session: Session, title: str) -> table.Row:
    with tempfile.TemporaryDirectory() as images:
        startup.write_images(images, _MNIST.side)
        flags = [
            "--config=configs/mnist.py",
            f"--config.model.features={_MNIST.features}",
            f"--config.training.batch_size={_MNIST.batch}",
            "--config.data.dataset=image_folder",
            f"--config.data.data_dir={images}",
        ]
        start = functools.partial(startup.seconds_to_first_step, flags)
        return _against_cold(session, title, start)


def _memory(
    session: Session, title: str, network: Network, task: str, filled: bool = False
) -> table.Row:
    """Measures memory once, in fresh processes, where it hardly varies.

    Args:
      session, title, network, task: the row's.
      filled: whether to use compiled programs that another process has cached.
    """
    session.close()  # its memory may be needed

    def peak(worker: Worker | None) -> list[int] | None:
        if worker is None:
            return None
        with worker:
            session.prepare(title, (worker, task))
            timed(worker, task)()
            return [worker.ask("peak_memory")]

    start = functools.partial(session.start_ours, overrides(network, _STEPS_FOR_MEMORY))
    with tempfile.TemporaryDirectory() as cache:
        ours = peak(start(cache=cache))
        if filled:
            ours = peak(start(cache=cache))
    original = peak(session.start_original(network, _STEPS_FOR_MEMORY))
    return table.compare(title, ours, original, unit=table.megabytes)


def _input(session: Session, title: str) -> table.Row:
    with session.start_ours(_DIGITS, "digits") as worker:
        session.prepare(title, (worker, "batch"), (worker, "train"))
        measures = {"batch": timed(worker, "batch"), "train": timed(worker, "train")}
        columns = session.alternate(title, measures)
    return table.compare(
        title, columns["batch"], columns["train"], unit=table.duration, name="train step"
    )


def _devices(session: Session, title: str) -> table.Row:
    start = functools.partial(session.start_ours, _DIGITS, "digits")
    with start(devices=_SIMULATED_DEVICES) as many, start(devices=1) as one:
        session.prepare(title, (many, "train"), (one, "train"))
        measures = {"many": timed(many, "train"), "one": timed(one, "train")}
        columns = session.alternate(title, measures)
    return table.compare(
        title, columns["many"], columns["one"], unit=table.duration, name="1 device"
    )
