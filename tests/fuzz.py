"""Malformed inputs to every public entry point: nothing may crash, hang, or write where it should not.

    python -m tests.fuzz --cases=10000 --seed=0
    python -m tests.fuzz --seed=0 --only=mask --case=17

The second command repeats one case. `tests.hostile` holds the generators; this module runs and judges them.
A case is a function of (seed, entry point, number) alone. It passes if the call returns, or refuses with
one line: a UserError or the parser's line and a status of 1 or 2 in the application, a ValueError in the
library. It fails if it raises any other exception or a warning, takes more than 20 seconds or 2 GiB, or
changes anything outside its own directory. Cases run one after the other in a separate process. A case that
kills the process or never returns counts as a failure, and another process continues.
"""

import argparse
import collections
import contextlib
import faulthandler
import importlib
import io
import json
import os
import pathlib
import random
import re
import resource
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
import warnings
import zlib
from collections.abc import Callable

from tests import hostile
from tests.hostile import ROOT, Failure, judge

# Seconds for a case, and for the process to report that it took longer.
_LIMIT, _GRACE = 20, 25
# A case fails if the process grows by the first size. The second limits its address space.
_GROWTH, _ADDRESSES = 2 * 2**30, 6 * 2**30


class Hang(BaseException):
    """Raised in a case that takes too long."""


class Case:
    """The input of a generator: randomness, and directories that are empty at the start.

    Attributes:
      rng: the case's random number generator, its only source of randomness.
      room: a directory for hostile files.
      work: the path of a directory that is not there yet, for the entry point's output.
    """

    def __init__(self, seed: int, name: str, number: int, base: str):
        self.rng = random.Random(f"{seed}/{name}/{number}")
        self.number = number
        self.room = os.path.join(base, "case", "room")
        self.work = os.path.join(base, "case", "work")

    def path(self, *names: str) -> str:
        """Returns a path in the room."""
        return os.path.join(self.room, *names)

    def program(self, path: str, argv: list[str], stubs: dict[str, dict]) -> Callable:
        """Returns a call of a program with stubs for slow modules, which are dicts of functions."""

        def run():
            for name, functions in stubs.items():
                sys.modules[name] = types.ModuleType(name)
                vars(sys.modules[name]).update(functions)
            sys.argv = [path, *argv]
            runpy.run_path(str(ROOT / path), run_name="__main__")

        return lambda: _judge_process(*_fork(run))


def _fork(run: Callable[[], None]) -> tuple[int, str, str]:
    """Runs a function in a separate process: (status, standard output, standard error)."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 70
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            os.close(reading)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(writing, 2)
            os.dup2(os.open("../tmp/output", os.O_RDWR | os.O_CREAT | os.O_TRUNC), 1)
            sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb"), "utf-8", write_through=True)
            sys.stderr = io.TextIOWrapper(
                os.fdopen(2, "wb"), "utf-8", "backslashreplace", write_through=True
            )
            try:
                run()
                status = 0
            except SystemExit as error:
                status = error.code
                if not isinstance(status, int):
                    print(status, file=sys.stderr) if status is not None else None
                    status = int(status is not None)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                status = 99
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status & 255)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as file:
            errors = file.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    output = pathlib.Path("../tmp/output").read_bytes()
    return status, output.decode("utf-8", "replace"), errors.decode("utf-8", "replace")


def _judge_process(status: int, output: str, errors: str) -> None:
    """Raises unless a process succeeded, or ended with one line and a status of 1 or 2."""
    from ncsn_jax.errors import UserError

    if "Traceback" in errors or status not in (0, 1, 2):
        raise Failure(f"status {status}: {errors[-300:]!r}")
    # absl's message about a flagfile that names itself.
    errors = re.sub(r"^Warning: Hit circular.*\n", "", errors, flags=re.M)
    lines = errors.splitlines()
    if not errors and (status == 0 or output):  # such as --help
        return
    if len(lines) != 1 or status == 0:
        raise Failure(f"status {status} with {len(lines)} lines: {errors[:300]!r}")
    raise UserError(lines[0])


class Surroundings:
    """The directories of a process's cases, and what must not change in them.

    `case` is made anew for every case; `cache` and `tmp` may be written to; the working directory `cwd`
    and `home` have to stay empty, `outside` as it is.
    """

    def __init__(self, base: str):
        self.base = base
        for name in ("case", "cache", "tmp", "cwd", "home", "outside/below"):
            os.makedirs(os.path.join(base, name))
        for name in ("outside/kept.txt", "outside/below/samples.npz", "outside/below/config.json"):
            pathlib.Path(base, name).write_text("must stay as it is")
        os.chdir(os.path.join(base, "cwd"))
        os.environ |= {
            "NCSN_JAX_CACHE": os.path.join(base, "cache"),
            "TFDS_DATA_DIR": os.path.join(base, "tmp"),
            "MPLCONFIGDIR": os.path.join(base, "tmp"),
            "TMPDIR": os.path.join(base, "tmp"),
            "HOME": os.path.join(base, "home"),
        }
        tempfile.tempdir = None
        self._before = self._look()

    def _look(self) -> dict:
        found = {"": sorted(os.listdir(self.base))}
        for top in ("cwd", "home", "outside"):
            for folder, _, files in os.walk(os.path.join(self.base, top)):
                found[folder] = [
                    (name, zlib.crc32(pathlib.Path(folder, name).read_bytes())) for name in files
                ]
        return found

    def begin(self) -> None:
        """Makes the case's directories."""
        folder = os.path.join(self.base, "case")
        # shutil fails on thousands of nested directories; rm does not.
        with contextlib.suppress(OSError, RecursionError):
            shutil.rmtree(folder)
        if os.path.lexists(folder):
            subprocess.run(["rm", "-rf", folder], check=True)
        os.makedirs(os.path.join(folder, "room"))

    def check(self) -> None:
        """Raises Failure if anything outside was changed."""
        strange = set(os.listdir(os.path.join(self.base, "case"))) - {"room", "work"}
        if strange or self._look() != self._before:
            raise Failure(f"wrote outside: {strange or self._look()}")


def run_case(entry, case: Case, surroundings: Surroundings) -> str:
    """Runs one case and returns "accepted" or "refused"; raises whatever makes it a failure."""
    from ncsn_jax.errors import UserError, one_line

    refusals = {"library": (ValueError, TypeError), "application": (UserError, OSError)}[entry.kind]
    surroundings.begin()
    before = _peak()
    call, path = entry.make(case)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            signal.setitimer(signal.ITIMER_REAL, entry.limit)
            try:
                call()
                outcome = "accepted"
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    except refusals as error:
        # As `ncsn_jax.app.cli` prints it.
        text = str(error)
        if isinstance(error, OSError):
            text = one_line(f"{error.filename}: {error.strerror or error}")
        judge(text, path)
        outcome = "refused"
    if warned:
        raise Failure(f"warned: {warned[0].category.__name__}: {warned[0].message}")
    if _peak() - before > _GROWTH:
        raise Failure(f"took {(_peak() - before) / 2**30:.1f} GiB of memory")
    surroundings.check()
    return outcome


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(seed: int, plan: list[tuple[str, int]]) -> None:
    """Runs the cases of a process, and reports before and after each on standard output."""
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    faulthandler.enable(sys.stderr)

    def on_alarm(*_):
        raise Hang

    signal.signal(signal.SIGALRM, on_alarm)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        surroundings = Surroundings(base)
        for module in sorted({m for name, _ in plan for m in hostile.ENTRIES[name].modules}):
            importlib.import_module(module)
        importlib.import_module("ncsn_jax.app.cli")  # as every child would

        if "jax" in sys.modules:
            sys.modules["jax"].devices()
        used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESSES, resource.RLIM_INFINITY))
        for name, number in plan:
            print(json.dumps(["begin", name, number]), file=report, flush=True)
            entry, reason = hostile.ENTRIES[name], ""
            try:
                outcome = run_case(entry, Case(seed, name, number, base), surroundings)
            except Hang:
                outcome, reason = "failed", f"hang: took more than {entry.limit} seconds"
            except BaseException as error:
                outcome, reason = "failed", _describe(error)
            print(json.dumps(["end", name, outcome, reason]), file=report, flush=True)
        surroundings.begin()
        os.chdir("/")


def _describe(error: BaseException) -> str:
    if isinstance(error, Failure):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(str(ROOT)) and "fuzz.py" not in f.filename]
    where = " < ".join(f"{pathlib.Path(f.filename).name}:{f.lineno}" for f in reversed(ours[-3:]))
    return f"{type(error).__name__}: {ascii(str(error))[1:400]} at {where}"


class Results:
    """Counts by entry point, and the failures."""

    def __init__(self):
        self.counts = collections.defaultdict(collections.Counter)
        self.seconds = collections.Counter()
        self.failures = []

    def add(self, name: str, number: int, outcome: str, reason: str) -> None:
        """Records how a case ended."""
        self.counts[name][outcome] += 1
        if outcome == "failed":
            self.failures.append((name, number, reason))


def run(seed: int, plan: list[tuple[str, int]], say=print) -> Results:
    """Runs cases, (entry point, number) each, in as many processes as necessary."""
    results = Results()
    started = shown = time.monotonic()
    done = 0
    while done < len(plan):
        # Entry points that need the same kind of process share one: the light ones fork, which jax forbids.
        group = [plan[done]]
        light = _is_light(group[0][0])
        for item in plan[done + 1 :]:
            if _is_light(item[0]) != light:
                break
            group.append(item)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz", "--worker", f"--seed={seed}"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if len(plan) == 1 else subprocess.DEVNULL,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        process.stdin.write(json.dumps(group).encode())
        process.stdin.close()
        finished, buffer, began = 0, b"", None
        while finished < len(group):
            limit = _GRACE + (90 if began is None else _entry_limit(group[finished][0]))
            ready, _, _ = select.select([process.stdout], [], [], limit)
            chunk = os.read(process.stdout.fileno(), 2**16) if ready else b""
            if not chunk:
                reason = "hang, uninterruptible" if not ready else "the process died"
                if ready:
                    reason += f" with status {process.wait()}"
                if began is None:
                    raise RuntimeError(f"the process of the cases does not start: {reason}")
                results.add(*group[finished], "failed", reason)
                say(_line(seed, *group[finished], reason))
                finished += 1
                break
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            for line in map(json.loads, lines):
                if line[0] == "begin":
                    began = time.monotonic()
                    continue
                _, name, outcome, reason = line
                results.seconds[name] += time.monotonic() - began
                results.add(name, group[finished][1], outcome, reason)
                if outcome == "failed":
                    say(_line(seed, name, group[finished][1], reason))
                finished += 1
            if time.monotonic() - shown > 20:
                shown = time.monotonic()
                say(f"{done + finished}/{len(plan)} cases  {shown - started:.0f} s")
        done += finished
        with contextlib.suppress(ProcessLookupError):
            if process.poll() is None and finished < len(group):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    return results


def _is_light(name: str) -> bool:
    return not hostile.ENTRIES[name].modules


def _entry_limit(name: str) -> float:
    return hostile.ENTRIES[name].limit


def _line(seed: int, name: str, number: int, reason: str) -> str:
    return f"FAILED --seed={seed} --only={name} --case={number}: {reason}"


def make_plan(cases: int, only: str | None = None) -> list[tuple[str, int]]:
    """Returns how many cases each entry point gets, by its weight, the light ones first."""
    entries = {n: e for n, e in hostile.ENTRIES.items() if only in (None, n)}
    total = sum(e.weight for e in entries.values())
    counts = {n: max(1, round(cases * e.weight / total)) for n, e in entries.items()}
    names = sorted(counts, key=lambda n: not _is_light(n))
    return [(name, i) for name in names for i in range(counts[name])]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="in all, about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="the one entry point to try")
    parser.add_argument("--case", type=int, help="the one case of it to repeat")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.seed, json.loads(sys.stdin.buffer.read()))
        return
    if options.case is not None:
        plan = [(options.only, options.case)]
    else:
        plan = make_plan(options.cases, options.only)
    print(f"seed {options.seed}: {len(plan)} cases", flush=True)
    started = time.monotonic()
    results = run(options.seed, plan, lambda text: print(text, flush=True))
    print(f"{'entry point':20s} {'accepted':>9s} {'refused':>9s} {'failed':>9s} {'seconds':>9s}")
    for name, counts in results.counts.items():
        columns = " ".join(f"{counts[k]:9d}" for k in ("accepted", "refused", "failed"))
        print(f"{name:20s} {columns} {results.seconds[name]:9.1f}")
    print(
        f"seed {options.seed}: {len(plan)} cases, {len(results.failures)} failures, "
        f"{time.monotonic() - started:.0f} s"
    )
    sys.exit(bool(results.failures))


if __name__ == "__main__":
    main()
