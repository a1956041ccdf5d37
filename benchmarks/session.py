"""Runs the processes of a measurement in turns.

Two things that are compared take turns, round by round, so that both see the same machine. A session knows
how long a turn is, and the settings with which this library and the authors' code compute the same.
"""

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from benchmarks import machine
from benchmarks.workers import LARGE_PAGES, Worker
from ncsn_jax.app import cpu

# Both sides get large pages, and no compiled programs of others.
ENVIRONMENT = LARGE_PAGES | {
    name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"
}

LEVELS = 10
_SIGMA_BEGIN, _SIGMA_END = 1.0, 0.01
_LEARNING_RATE, _EPSILON = 1e-3, 4e-5

# How long to watch other processes at the start of a round, while nothing here runs.
_LISTEN = 0.3
# If other processes use more cores than this, measurements are doubtful.
BUSY = 0.3


class _Turn(NamedTuple):
    """How long a task runs in a round: seconds of untimed calls, then of timed ones.

    A process that idled has lost its caches, and on some machines its memory, to others.
    """

    warm_up: float = 0.5
    seconds: float = 1.0


_TURN = _Turn()
# Tasks that differ: a thousand steps warm up on the way, and run once.
_TURNS = {
    "sample": _Turn(0.0, 0.0),
    "evaluations": _Turn(0.0, 0.0),
    "batch": _Turn(0.05, 0.1),
    "matmul": _Turn(0.2, 0.5),
}


class Network(NamedTuple):
    """A network and its batch.

    Attributes:
      features: the features of its first stage.
      side: the images' side, in pixels.
      channels: the images' channels.
      batch: the number of examples.
    """

    features: int
    side: int
    channels: int
    batch: int

    def __str__(self) -> str:
        return (
            f"{self.features} features, {self.side}x{self.side}x{self.channels}, batch {self.batch}"
        )


class Options(NamedTuple):
    """How to measure.

    Attributes:
      reference: a checkout of the authors' code, or None.
      rounds: how many turns each side has, >= 1.
      devices: this library's CPU devices; None for as many as the application takes.
      sampler_steps: steps of annealed Langevin dynamics, a multiple of `LEVELS`.
      warm_up_steps: training steps before the timed rounds, >= 1.
    """

    reference: str | None
    rounds: int
    devices: int | None
    sampler_steps: int
    warm_up_steps: int


def overrides(network: Network, sampler_steps: int) -> dict[str, object]:
    """Returns the changes that turn the default configuration into a network's."""
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


def timed(
    worker: Worker, task: str, choose: Callable[[list[float]], float] = statistics.median
) -> Callable[[], float]:
    """Returns a function that measures a turn.

    Args:
      worker: runs it.
      task: one of its tasks.
      choose: reduces the seconds of all calls in the turn to one number.
    """
    turn = _TURNS.get(task, _TURN)
    return lambda: choose(worker.ask("time", task=task, **turn._asdict()))


class Session:
    """The processes that measure. A network's pair stays until another network's is asked for.

    Args:
      options: how to measure.
      progress: gets a line whenever something begins.

    Attributes:
      others: how many cores other processes used when each round began, as far as known.
    """

    def __init__(self, options: Options, progress: Callable[[str], None]):
        self.options, self._progress = options, progress
        self.others: list[float] = []
        self._pair, self._made_for = contextlib.ExitStack(), None

    def rounds(self, title: str) -> Iterator[int]:
        """Yields the round numbers, and reports each round as it begins."""
        count = self.options.rounds
        for i in range(count):
            others = machine.busy_cores(_LISTEN)
            warning = ""
            if others is not None:
                self.others.append(others)
                if others > BUSY:
                    warning = f", other processes use {others:.1f} cores"
            self._progress(f"{title}: round {i + 1} of {count}{warning}")
            yield i

    def alternate(
        self, title: str, measures: Mapping[str, Callable[[], float]]
    ) -> dict[str, list[float]]:
        """Runs the functions in turns, and returns what each measured in every round."""
        columns = {name: [] for name in measures}
        for _ in self.rounds(title):
            for name, measure in measures.items():
                columns[name].append(measure())
        return columns

    def prepare(self, title: str, *asked: tuple[Worker | None, str], calls: int = 1) -> None:
        """Makes workers compile their tasks, one after the other, and run them.

        Args:
          title: the row's title.
          asked: a worker, or None if there is none, and its task.
          calls: how often to run a task, >= 1.
        """
        workers = [(worker, task) for worker, task in asked if worker is not None]
        for i, (worker, task) in enumerate(workers, 1):
            untimed = f" and {calls} untimed calls, side {i} of {len(workers)}" if calls > 1 else ""
            if untimed or i == 1:
                self._progress(f"{title}: compiling{untimed}")
            worker.ask("prepare", task=task, calls=calls)

    def start_ours(
        self,
        changes: Mapping[str, object],
        config: str = "default",
        *,
        devices: int | None = None,
        cache: str | None = None,
    ) -> Worker:
        """Starts a worker of this library.

        Args:
          changes: changes to the configuration.
          config: a module of `configs`.
          devices: overrides the options' devices; if both are None, the application chooses.
          cache: a directory for compiled programs, however small; None for no cache.
        """
        devices = devices or self.options.devices
        environment = dict(ENVIRONMENT)
        if cache is not None:
            environment["JAX_COMPILATION_CACHE_DIR"] = cache
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        settings = {"config": config, "overrides": dict(changes), "devices": devices}
        return Worker("benchmarks.ours", settings, environment)

    def start_original(
        self, network: Network, sampler_steps: int, flush_denormals: bool = False
    ) -> Worker | None:
        """Starts a worker of the authors' code, if there is a checkout.

        Args:
          network: its network.
          sampler_steps: steps of annealed Langevin dynamics.
          flush_denormals: whether PyTorch treats numbers too small for float32's full precision as zero, as
            XLA does and the authors' code does not.
        """
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
            "threads": cpu.cores(),
            "flush_denormals": flush_denormals,
        }
        return Worker("benchmarks.original", settings, ENVIRONMENT)

    def pair(self, network: Network, flush_denormals: bool = False) -> tuple[Worker, Worker | None]:
        """Returns a network's workers, this library's and the authors'; see `start_original`."""
        if self._made_for != (network, flush_denormals):
            self.close()
            steps = self.options.sampler_steps
            ours = self._pair.enter_context(self.start_ours(overrides(network, steps)))
            original = self.start_original(network, steps, flush_denormals)
            if original is not None:
                self._pair.enter_context(original)
            self._made_for, self._workers = (network, flush_denormals), (ours, original)
        return self._workers

    def close(self) -> None:
        """Ends the pair."""
        self._made_for = None
        self._pair.close()
