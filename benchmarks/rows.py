"""The rows of the table: what each measures, with which processes, and in which order.

Two things that are compared take turns, round by round, so that both see the same machine. Hidden here are
the networks that are measured, the settings that make this library's and the authors' the same, how long a
turn is, and that a row which fails leaves the others alone.
"""

import contextlib
import functools
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from benchmarks import machine, startup, table
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

LEVELS = 10
_SIGMA_BEGIN, _SIGMA_END = 1.0, 0.01
_LEARNING_RATE, _EPSILON = 1e-3, 4e-5


class _Turn(NamedTuple):
    """How long a task is run in a round: for so many seconds of calls, untimed and then timed.

    What idled has lost its caches, and on some machines its memory, to others.
    """

    warm_up: float = 0.5
    seconds: float = 1.0


_TURN = _Turn()
# Of the tasks that differ: a thousand steps warm up on their way, and are run once.
_TURNS = {
    "sample": _Turn(0.0, 0.0),
    "evaluations": _Turn(0.0, 0.0),
    "batch": _Turn(0.05, 0.1),
    "matmul": _Turn(0.2, 0.5),
}

# Memory does not depend on their number.
_STEPS_FOR_MEMORY = 2 * LEVELS
_SIMULATED_DEVICES = 8


class Network(NamedTuple):
    """A network and the batch that it is given.

    Attributes:
      features: of the first stage.
      side: of the images, in pixels.
      channels: of the images.
      batch: examples.
    """

    features: int
    side: int
    channels: int
    batch: int

    def __str__(self) -> str:
        return (
            f"{self.features} features, {self.side}x{self.side}x{self.channels}, batch {self.batch}"
        )


SHAPES = {
    16: Network(16, 28, 1, 32),
    32: Network(32, 28, 1, 32),
    64: Network(64, 32, 3, 8),
    128: Network(128, 32, 3, 8),
}
_SMALL = SHAPES[16]
_SAMPLED = Network(16, 28, 1, 8)
_OVERHEAD = Network(16, 8, 1, 100)
# The configuration of the digits as it is, whose batch has to be known.
_DIGITS = {"training.batch_size": 64}
_MNIST = Network(64, 28, 1, 8)


class Options(NamedTuple):
    """How to measure.

    Attributes:
      reference: a checkout of the authors' code, or None.
      rounds: how often each side has its turn, >= 1.
      devices: CPU devices of this library; None for as many as the application takes.
      sampler_steps: of annealed Langevin dynamics, a multiple of `LEVELS`.
    """

    reference: str | None
    rounds: int
    devices: int | None
    sampler_steps: int


class Session:
    """The processes that measure. The pair of one network stays until that of another is asked for.

    Args:
      options: how to measure.
      progress: is given a line whenever something begins.
    """

    def __init__(self, options: Options, progress: Callable[[str], None]):
        self.options, self._progress = options, progress
        self._pair, self._network = contextlib.ExitStack(), None

    def rounds(self, title: str) -> Iterator[int]:
        """Yields the numbers of the rounds, and says which has begun."""
        count = self.options.rounds
        for i in range(count):
            self._progress(f"{title}: round {i + 1} of {count}")
            yield i

    def alternate(
        self, title: str, measures: Mapping[str, Callable[[], float]]
    ) -> dict[str, list[float]]:
        """Returns what each function measured in every round; they take turns."""
        columns = {name: [] for name in measures}
        for _ in self.rounds(title):
            for name, measure in measures.items():
                columns[name].append(measure())
        return columns

    def prepare(self, title: str, task: str, *workers: Worker | None) -> None:
        """Has the workers that there are compile a task and run it once."""
        self._progress(f"{title}: compiling")
        for worker in filter(None, workers):
            worker.ask("prepare", task=task)

    def start_ours(
        self,
        overrides: Mapping[str, object],
        config: str = "default",
        *,
        devices: int | None = None,
        cache: str | None = None,
    ) -> Worker:
        """Starts a worker of this library.

        Args:
          overrides: of the configuration, `training.batch_size` among them.
          config: a module of `configs`.
          devices: instead of those of the options.
          cache: a directory for compiled programs; None for no such cache.
        """
        batch = overrides["training.batch_size"]
        devices = devices or self.options.devices or machine.cpu_devices(batch)
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        if cache is not None:
            environment["JAX_COMPILATION_CACHE_DIR"] = cache
        settings = {"config": config, "overrides": dict(overrides), "devices": devices}
        return Worker("benchmarks.ours", settings, environment)

    def start_original(self, network: Network, sampler_steps: int) -> Worker | None:
        """Starts a worker of the authors' code, if there is a checkout."""
        if self.options.reference is None:
            return None
        ratio = _SIGMA_END / _SIGMA_BEGIN
        settings = {
            "reference": self.options.reference,
            **network._asdict(),
            "learning_rate": _LEARNING_RATE,
            "sigmas": [_SIGMA_BEGIN * ratio ** (i / (LEVELS - 1)) for i in range(LEVELS)],
            "epsilon": _EPSILON,
            "steps_per_level": sampler_steps // LEVELS,
            "threads": machine.cores(),
        }
        return Worker("benchmarks.original", settings)

    def pair(self, network: Network) -> tuple[Worker, Worker | None]:
        """Returns the workers of a network, this library's and the authors'."""
        if self._network != network:
            self.close()
            steps = self.options.sampler_steps
            ours = self._pair.enter_context(self.start_ours(_overrides(network, steps)))
            original = self.start_original(network, steps)
            if original is not None:
                self._pair.enter_context(original)
            self._network, self._workers = network, (ours, original)
        return self._workers

    def close(self) -> None:
        """Ends the pair."""
        self._network = None
        self._pair.close()


class Job(NamedTuple):
    """A row that is to be measured.

    Attributes:
      name: one of `NAMES`.
      title: of the row.
      measure: `measure(session, title)` returns the row.
    """

    name: str
    title: str
    measure: Callable[[Session, str], table.Row]


def plan(names: list[str], shapes: list[int], sampler_steps: int) -> list[Job]:
    """Returns the rows with the given names, in the order of the table."""
    jobs = []

    def add(name: str, title: str, measure: Callable, **arguments) -> None:
        if name in names:
            jobs.append(Job(name, title, functools.partial(measure, **arguments)))

    for network in (SHAPES[shape] for shape in shapes):
        add("train", f"train step, {network}", _train, network=network)
        add("evaluate", f"network evaluation, {network}", _evaluate, network=network)
    steps = f"{sampler_steps:,}"
    add("langevin", f"annealed Langevin, {steps} steps, {_SAMPLED}", _langevin)
    add("overhead", f"annealed Langevin, {steps} steps, {_OVERHEAD}", _overhead)
    add("compile", f"compiling the train step with a filled cache, {_SMALL}", _compile)
    add("start", "start to first step with a filled cache, configs/digits.py", _start_digits)
    add("start", f"start to first step with a filled cache, {_MNIST}", _start_mnist)
    for network in (SHAPES[shape] for shape in shapes):
        title = f"peak memory of training, {network}"
        add("memory", title, _memory, network=network, task="train")
    title = f"peak memory of sampling, {_SAMPLED}"
    add("memory", title, _memory, network=_SAMPLED, task="sample")
    add("input", "making a batch, configs/digits.py", _input)
    title = f"train step on {_SIMULATED_DEVICES} simulated devices, configs/digits.py"
    add("devices", title, _devices)
    return jobs


def measure(session: Session, job: Job) -> table.Row:
    """Returns the row of a job, which says so if it cannot be measured."""
    try:
        return job.measure(session, job.title)
    except Exception as error:
        session.close()
        return table.failure(job.title, error)


def _overrides(network: Network, sampler_steps: int) -> dict[str, object]:
    """Returns what makes the default configuration that of a network."""
    return {
        "data.image_size": network.side,
        "data.channels": network.channels,
        "data.random_flip": False,
        "model.features": network.features,
        "model.num_levels": LEVELS,
        "model.sigma_begin": _SIGMA_BEGIN,
        "model.sigma_end": _SIGMA_END,
        "training.batch_size": network.batch,
        "optim.learning_rate": _LEARNING_RATE,
        "sampling.epsilon": _EPSILON,
        "sampling.steps_per_level": sampler_steps // LEVELS,
    }


def _timed(
    worker: Worker, task: str, choose: Callable[[list[float]], float] = statistics.median
) -> Callable[[], float]:
    """Returns a function that measures a turn and chooses one number of its calls'."""
    turn = _TURNS.get(task, _TURN)
    return lambda: choose(worker.ask("time", task=task, **turn._asdict()))


def _measures(session: Session, title: str, network: Network, task: str) -> dict[str, Callable]:
    """Returns a function for each of the pair, when both are ready."""
    ours, original = session.pair(network)
    session.prepare(title, task, ours, original)
    measures = {"ours": _timed(ours, task)}
    return measures if original is None else measures | {"original": _timed(original, task)}


def _evaluate(session: Session, title: str, network: Network, task: str = "evaluate") -> table.Row:
    columns = session.alternate(title, _measures(session, title, network, task))
    return table.compare(title, columns["ours"], columns.get("original"), unit=table.duration)


def _train(session: Session, title: str, network: Network) -> table.Row:
    measures = _measures(session, title, network, "train")
    ours, _ = session.pair(network)
    ours.ask("prepare", task="matmul")
    measures["matmul"] = _timed(ours, "matmul", min)
    columns = session.alternate(title, measures)
    speed = table.speed(
        ours.ask("operations"),
        statistics.median(columns["ours"]),
        ours.ask("matmul_operations") / min(columns["matmul"]),
    )
    return table.compare(
        title, columns["ours"], columns.get("original"), unit=table.duration, speed=speed
    )


def _langevin(session: Session, title: str) -> table.Row:
    return _evaluate(session, title, _SAMPLED, "sample")


def _overhead(session: Session, title: str) -> table.Row:
    steps = session.options.sampler_steps
    with session.start_ours(_overrides(_OVERHEAD, steps)) as worker:
        tasks = ("sample", "evaluations")
        for task in tasks:
            session.prepare(title, task, worker)
        columns = session.alternate(title, {task: _timed(worker, task) for task in tasks})
    name = f"{steps:,} evaluations"
    return table.compare(
        title, columns["sample"], columns["evaluations"], unit=table.duration, name=name
    )


def _against_cold(session: Session, title: str, seconds: Callable[[str], float]) -> table.Row:
    """Returns the row of what is done twice with one cache, empty at first, in every round."""
    cold, warm = [], []
    for _ in session.rounds(title):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(seconds(cache))
            warm.append(seconds(cache))
    return table.compare(title, warm, cold, unit=table.duration, name="empty cache")


def _compile(session: Session, title: str) -> table.Row:
    overrides = _overrides(_SMALL, session.options.sampler_steps)

    def seconds(cache: str) -> float:
        with session.start_ours(overrides, cache=cache) as worker:
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


def _memory(session: Session, title: str, network: Network, task: str) -> table.Row:
    """Measures once, in fresh processes, whose memory hardly varies."""
    session.close()  # whose memory may be needed

    def peak(worker: Worker | None) -> list[int] | None:
        if worker is None:
            return None
        with worker:
            session.prepare(title, task, worker)
            _timed(worker, task)()
            return [worker.ask("peak_memory")]

    ours = peak(session.start_ours(_overrides(network, _STEPS_FOR_MEMORY)))
    original = peak(session.start_original(network, _STEPS_FOR_MEMORY))
    return table.compare(title, ours, original, unit=table.megabytes)


def _input(session: Session, title: str) -> table.Row:
    with session.start_ours(_DIGITS, "digits") as worker:
        for task in ("batch", "train"):
            session.prepare(title, task, worker)
        measures = {"batch": _timed(worker, "batch"), "train": _timed(worker, "train")}
        columns = session.alternate(title, measures)
    return table.compare(
        title, columns["batch"], columns["train"], unit=table.duration, name="train step"
    )


def _devices(session: Session, title: str) -> table.Row:
    start = functools.partial(session.start_ours, _DIGITS, "digits")
    with start(devices=_SIMULATED_DEVICES) as many, start(devices=1) as one:
        session.prepare(title, "train", many, one)
        measures = {"many": _timed(many, "train"), "one": _timed(one, "train")}
        columns = session.alternate(title, measures)
    return table.compare(
        title, columns["many"], columns["one"], unit=table.duration, name="1 device"
    )
