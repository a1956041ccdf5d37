"""Faults at random moments: killed processes, damaged and missing files, full disks, lost companions.

    python -m tests.faults --kills=50 --damages=3 --fills=10 --losses=5 --seed=0

is the long form of `tests/test_faults.py`. Each scenario runs the application as a user does, breaks
something at a random moment (the seed is printed), and then checks that what is left keeps the promises of
`docs/workdirs.md`. Runs use the configuration `tests/tiny.py`.
"""

import argparse
import json
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

from tests.running import ROOT, command, environment, final_state, run

# Undisturbed runs decode their images once, the others on demand.
_STREAMED = ("--config.data.cache_bytes=0", "--config.data.workers=2")

# The time limit of a process.
_LIMIT = 300


class Failed(Exception):
    """A promise is broken."""


def demand(holds: bool, *what) -> None:
    """Raises `Failed` unless something holds."""
    if not holds:
        raise Failed(*what)


def start(workdir, *extra: str, devices: int = 1) -> subprocess.Popen:
    """Starts the application, with its output in `WORKDIR.out` and `WORKDIR.err`."""
    suffix = "".join(e[-1] for e in extra if e.startswith("--process_id"))
    with (
        open(f"{workdir}.out{suffix}", "w", encoding="utf-8") as out,
        open(f"{workdir}.err{suffix}", "w", encoding="utf-8") as err,
    ):
        return subprocess.Popen(
            command(workdir, *extra), cwd=ROOT, env=environment(devices), stdout=out, stderr=err
        )


def complete(workdir) -> list[int]:
    """Returns the steps whose checkpoints are complete, ascending."""
    directory = pathlib.Path(workdir) / "checkpoints"
    return sorted(int(p.name) for p in directory.glob("*") if p.name.isdecimal())


def same(a: tuple[int, dict], b: tuple[int, dict]) -> bool:
    """Returns whether two states are bit-identical and of the same step."""
    leaves = zip(jax.tree.leaves(a[1]), jax.tree.leaves(b[1]), strict=True)
    return a[0] == b[0] and all(x.tobytes() == y.tobytes() for x, y in leaves)


def curve(workdir) -> dict[int, float]:
    """Returns the loss by step; the last line for a step counts."""
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    return {r["step"]: r["loss"] for r in map(json.loads, text.splitlines()) if "loss" in r}


def files(workdir) -> set[str]:
    """Returns the files of a work directory except events and array data, which orbax names."""
    found = (p.relative_to(workdir) for p in pathlib.Path(workdir).rglob("*") if p.is_file())
    return {str(p) for p in found if not p.name.startswith("events.") and p.parent.name != "d"}


def compare(workdir, reference) -> None:
    """Raises `Failed` unless a finished run equals an undisturbed one."""
    demand(same(final_state(workdir), final_state(reference)), "another final state")
    demand(curve(workdir) == curve(reference), "another loss curve")
    demand(files(workdir) == files(reference), "other files", files(workdir) ^ files(reference))
    a, b = (next(pathlib.Path(w).glob("samples/*/samples.npz")) for w in (workdir, reference))
    demand(np.array_equal(np.load(a)["samples"], np.load(b)["samples"]), "other samples")


def finish(workdir, *extra: str, devices: int = 1) -> None:
    """Runs the application to its end, which must succeed."""
    result = run(workdir, *extra, devices=devices)
    demand(result.returncode == 0, "did not finish", result.stderr[-2000:])


def kills(folder: pathlib.Path, count: int, rng: random.Random, say: Callable) -> None:
    """Sends `kill -9` `count` times, at moments from the start of the process to well into training."""
    # Saves constantly, so that most kills hit a save.
    extra = (f"--config.training.num_steps={40 * max(count, 3)}", "--config.training.log_every=10")
    reference, workdir = folder / "reference", folder / "killed"
    finish(reference, *extra)
    had, started = 0, time.time()
    for number in range(count):
        before = complete(workdir)
        process = start(workdir, *extra, *_STREAMED)
        log = pathlib.Path(f"{workdir}.out")
        if rng.random() < 0.8:  # otherwise at any moment during the start
            while "  loss " not in log.read_text() and process.poll() is None:
                time.sleep(0.01)
            delay = rng.expovariate(1.0)
        else:
            delay = rng.uniform(0.0, 4.0)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        text = log.read_text()
        if "from step" in text:
            begun = int(text.split("from step ")[1].split()[0])
            demand(begun == max(before, default=0), "a saved step was lost", before, begun)
        had += bool(complete(workdir)) and complete(workdir) != before
        demand("Traceback" not in pathlib.Path(f"{workdir}.err").read_text(), "a traceback")
        say(
            f"kill {number + 1} of {count}, steps {complete(workdir)}, {time.time() - started:.0f} s"
        )
    finish(workdir, *extra, *_STREAMED)
    compare(workdir, reference)
    demand(had > 0 or count < 5, "no process was killed after a save")
    say(f"{count} kills, {had} of them after a new checkpoint: the same bits as without")


def damages(folder: pathlib.Path, each: int, rng: random.Random, say: Callable) -> None:
    """Truncates, flips, empties and removes every file of the newest checkpoint in turn."""
    sound = folder / "sound"
    finish(sound, "--config.sampling.num_samples=1")
    newest, older = complete(sound)[-1], complete(sound)[-2]
    expected = {newest: final_state(sound)}
    hidden = shutil.copytree(sound, folder / "older")
    shutil.rmtree(hidden / "checkpoints" / str(newest))
    expected[older] = final_state(hidden)
    names = sorted(p for p in (sound / "checkpoints" / str(newest)).rglob("*") if p.is_file())
    outcomes = {newest: 0, older: 0}
    for name in names:
        relative, content = name.relative_to(sound), name.read_bytes()
        broken: list[bytes | None] = [None, b"", content + b"\0", rng.randbytes(len(content))]
        for _ in range(each if content else 0):
            broken.append(content[: rng.randrange(len(content))])
            bit = rng.randrange(8 * len(content))
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            broken.append(bytes(flipped))
        for change in broken:
            workdir = folder / "damaged"
            shutil.rmtree(workdir, ignore_errors=True)
            shutil.copytree(sound, workdir)
            (workdir / relative).unlink()
            if change is not None:
                (workdir / relative).write_bytes(change)
            found = final_state(workdir)
            demand(same(found, expected[found[0]]), "a wrong state", str(relative), change)
            outcomes[found[0]] += 1
    say(f"{len(names)} files damaged in {sum(outcomes.values())} ways: {outcomes} restored by step")


def unshare(size: int, directory) -> list[str]:
    """Returns a command prefix that makes a directory a disk of this many kibibytes."""
    script = 'mount -t tmpfs -o "size=$1k" tmpfs "$2" && shift 2 && "$@"; status=$?; '
    script += f'cp -r "{directory}/." "{directory}.after"; exit $status'
    return ["unshare", "-rm", "sh", "-c", script, "sh", str(size), str(directory)]


def can_fill() -> bool:
    """Returns whether this machine lets a process mount a small disk."""
    with tempfile.TemporaryDirectory() as directory:
        probe = subprocess.run([*unshare(64, directory), "true"], capture_output=True)
    shutil.rmtree(f"{directory}.after", ignore_errors=True)
    return probe.returncode == 0


def fills(folder: pathlib.Path, count: int, rng: random.Random, say: Callable) -> None:
    """Fills the disk at some moment: expects one error line that names a path, and intact earlier saves."""
    reference = folder / "roomy"
    finish(reference)
    full = 0
    for _ in range(count):
        size = rng.randrange(40, 170)
        disk, after = folder / "disk", folder / "disk.after"
        for directory in (disk, after):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
        result = run(disk / "run", prefix=unshare(size, disk))
        workdir, lines = after / "run", result.stderr.strip().splitlines()
        if result.returncode == 0:
            say(f"{size} KiB were enough")
            continue
        full += 1
        # TensorStore's threads may also report that nothing waits for them any more.
        errors = re.findall(r"(?<!\w)error: .*", result.stderr)
        demand(result.returncode == 1 and len(errors) == 1, "not one error line", lines[-20:])
        demand(str(disk) in errors[0] and "pace left" in errors[0], "no path", errors[0])
        saved = complete(workdir)
        if saved:
            demand(final_state(workdir)[0] == saved[-1], "the last checkpoint is damaged")
        finish(workdir)
        demand(same(final_state(workdir), final_state(reference)), "another final state")
        say(f"full at {size} KiB with steps {saved}: {errors[0][:90]}")
    demand(full > 0, "no disk was full")


def free_port() -> int:
    """Returns a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_two(workdir, *extra: str, devices: int = 2) -> list[subprocess.Popen]:
    """Starts two processes of one run."""
    where = (f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2")
    return [start(workdir, *extra, *where, f"--process_id={i}", devices=devices) for i in range(2)]


def wait_for(text: str, workdir, processes: list[subprocess.Popen]) -> None:
    """Waits until process 0 has logged something."""
    log, until = pathlib.Path(f"{workdir}.out0"), time.time() + _LIMIT
    while text not in log.read_text():
        demand(all(p.poll() is None for p in processes), "ended early", said(workdir))
        demand(time.time() < until, "waited in vain for", text)
        time.sleep(0.05)


def said(workdir, process: int | None = None) -> list[str]:
    """Returns what processes wrote to standard error."""
    numbers = (0, 1) if process is None else (process,)
    lines = []
    for number in numbers:
        lines += pathlib.Path(f"{workdir}.err{number}").read_text().splitlines()
    return lines


def wait_two(processes: list[subprocess.Popen]) -> list[int]:
    """Returns the exit statuses."""
    return [p.wait(_LIMIT) for p in processes]


def losses(folder: pathlib.Path, count: int, rng: random.Random, say: Callable) -> None:
    """Kills or stops one of two processes: the other must end within a minute, and both resume."""
    extra = ("--config.training.num_steps=400", "--config.training.log_every=10")
    reference, workdir = folder / "two", folder / "lost"
    processes = start_two(reference, *extra)
    demand(wait_two(processes) == [0, 0], "did not finish", said(reference))
    lost = 0
    for number in range(count):
        victim = rng.randrange(2)
        processes = start_two(workdir, *extra, *_STREAMED)
        wait_for("step ", workdir, processes)
        time.sleep(rng.uniform(0, 1))
        sign = rng.choice((signal.SIGKILL, signal.SIGSTOP))
        processes[victim].send_signal(sign)
        began = time.time()
        status = processes[1 - victim].wait(60)
        took = time.time() - began
        processes[victim].kill()
        processes[victim].wait()
        if status == 0:
            say(f"loss {number + 1} came too late")
            continue
        lost += 1
        say(f"loss {number + 1}: {sign.name} of {victim}, the other {status} after {took:.1f} s")
    demand(lost > 0, "no process was lost in time")
    demand(
        wait_two(start_two(workdir, *extra, *_STREAMED)) == [0, 0], "did not finish", said(workdir)
    )
    compare(workdir, reference)
    say(f"{lost} lost processes: the same bits as without")


SCENARIOS = {"kills": kills, "damages": damages, "fills": fills, "losses": losses}


def main() -> None:
    """Runs the scenarios that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, scenario in SCENARIOS.items():
        parser.add_argument(f"--{name}", type=int, default=0, help=scenario.__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    for name, scenario in SCENARIOS.items():
        if count := getattr(options, name):
            with tempfile.TemporaryDirectory() as folder:
                rng = random.Random(f"{name} {options.seed}")
                scenario(pathlib.Path(folder), count, rng, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
