"""Starts, asks and ends worker processes that measure on request.

A request and its answer are one line of JSON each, on the worker's standard input and output. `Worker` asks,
`serve` answers, and `Subject` measures. What libraries print goes elsewhere, and a worker that ends early
leaves a one-line reason. A worker idles until it is asked, so that several can take turns on the same cores.
"""

import contextlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Turns on large pages of memory, as the documentation advises for CPUs.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class MeasurementError(Exception):
    """Says in one line why something could not be measured."""


class Worker:
    """A process that runs `python -m module`, which must call `serve`.

    Args:
      module: the module's name.
      settings: arguments of what the module serves.
      environment: the process's environment; None inherits this one.

    Raises:
      MeasurementError: if it does not start with these settings.
    """

    def __init__(
        self, module: str, settings: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ):
        self._module, self._log = module, tempfile.TemporaryFile()
        # Only the asking process takes Ctrl-C; a worker ends with its standard input.
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        try:
            self.ask("start", **settings)
        except BaseException:
            self.close()
            raise

    def ask(self, command: str, **arguments: Any) -> Any:
        """Returns the worker's answer.

        Raises:
          MeasurementError: if the worker fails or ends.
        """
        try:
            request = {"command": command, "arguments": arguments}
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            raise MeasurementError(
                f"{self._module} ended with {status}: {last_line(self._log)}"
            ) from None
        reply = json.loads(line)
        if "error" in reply:
            raise MeasurementError(reply["error"])
        return reply["result"]

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdout, self._log):
            file.close()
        with contextlib.suppress(BrokenPipeError):  # the worker has not read everything
            self._process.stdin.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close()


def last_line(log) -> str:
    """Returns the last line of a binary file that is not blank."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")


def serve(make: Callable[..., Any]) -> None:
    """Answers the requests on standard input until it ends.

    Args:
      make: turns the settings into the object whose methods are the commands.
    """
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)  # keeps what libraries print out of the replies
        answer(make, sys.stdin, replies)


def answer(make: Callable[..., Any], requests: Iterable[str], replies: TextIO) -> None:
    """Answers every line of `requests` with one line of `replies`; see `serve`."""
    subject = None
    for line in requests:
        request = json.loads(line)
        try:
            if request["command"] == "start":
                subject, result = make(**request["arguments"]), None
            else:
                result = getattr(subject, request["command"])(**request["arguments"])
            reply = {"result": result}
        except Exception as error:
            reply = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        print(json.dumps(reply), file=replies, flush=True)


class Subject:
    """What a worker measures: tasks by name, each made when first asked for.

    Args:
      makers: by name, a function without arguments that returns the task: a function without arguments
        that returns when its work is done.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Callable[[], Any]]]):
        self._makers, self._tasks = makers, {}

    def prepare(self, task: str, calls: int = 1) -> None:
        """Makes a task, compiles it and runs it, unless that was done before.

        Args:
          task: its name.
          calls: how often to run it, >= 1.
        """
        if task not in self._tasks:
            self._tasks[task] = self._makers[task]()
            for _ in range(calls):
                self._tasks[task]()

    def time(self, task: str, warm_up: float, seconds: float) -> list[float]:
        """Returns the seconds of each timed call of a task.

        Args:
          task: its name.
          warm_up: untimed calls come first, until they have taken this many seconds.
          seconds: timed calls follow until they have taken this many seconds, and at least one.
        """
        self.prepare(task)
        warm = 0.0
        while warm < warm_up:
            warm += self._call(task)
        times = [self._call(task)]
        while sum(times) < seconds:
            times.append(self._call(task))
        return times

    def _call(self, task: str) -> float:
        started = time.perf_counter()
        self._tasks[task]()
        return time.perf_counter() - started

    def peak_memory(self) -> int:
        """Returns the process's peak memory, in bytes."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
