"""Measures this library on one accelerator that is at hand for minutes.

    python -m benchmarks.accelerator --minutes=8 --out=DIR [--reference DIR] [--data_dir DIR]

runs the parts below in turn and rewrites DIR/results.json and DIR/table.md after every figure, so that a
machine that is lost loses little. `benchmarks/accelerator.md` says what the parts are and what the machine
needs. A part that raises or overruns keeps what it has yielded and does not keep the next from running. On a
CPU the networks and jobs are tiny, to show that all of it works.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax

from benchmarks import accelerator_goldens as right
from benchmarks import accelerator_jobs as jobs
from benchmarks import accelerator_parts as parts
from benchmarks.accelerator_tools import Bench, Part

# What is run: parts with the share of the time at which they end; those of one line at once.
PARTS = (
    (0.04, {"ceilings": parts.ceilings}),
    (0.15, {"goldens": right.goldens}),
    (0.50, {"training": parts.training}),
    (0.62, {"sampling": parts.sampling}),
    (1.00, {"digits": jobs.digits, "mnist": jobs.mnist, "resume": jobs.resume}),
)


def run(bench: Bench, minutes: float, groups=PARTS) -> dict[str, dict]:
    """Runs the parts and returns what they found, by part; nothing that they raise ends it."""
    begin, lock, found = time.monotonic(), threading.Lock(), {}
    bench.grace = max(5.0, 1.2 * minutes)

    def collect(name: str, part: Callable[[Bench], Part]) -> None:
        started, results = time.monotonic(), found[name]
        try:
            for item, figures in part(bench):
                with lock:
                    results["items"][item] = figures
                    write(bench.out, found)
                print(f"[{time.monotonic() - begin:.0f} s] {name}: {item}: {figures}", flush=True)
            status = "done"
        except Exception as error:
            traceback.print_exc()
            status = "failed: " + " ".join(f"{type(error).__name__}: {error}".split())[:300]
        with lock:
            results.update(status=status, seconds=time.monotonic() - started)
            write(bench.out, found)

    for share, group in groups:
        bench.ends = begin + 60 * minutes * share
        threads = []
        for name, part in group.items():
            found[name] = {"status": "did not end in time", "seconds": None, "items": {}}
            thread = threading.Thread(target=collect, args=(name, part), daemon=True)
            threads.append(thread)
            thread.start()
        for thread in threads:
            thread.join(max(bench.grace, bench.ends + bench.grace - time.monotonic()))
    with lock:
        write(bench.out, found)
    return found


def write(out: pathlib.Path, found: dict[str, dict]) -> None:
    """Writes everything found so far, as JSON and as tables."""
    lines = []
    for name, results in found.items():
        items = results["items"]
        columns = list(dict.fromkeys(key for figures in items.values() for key in figures))
        seconds = "" if results["seconds"] is None else f", {results['seconds']:.0f} s"
        lines += [f"## {name}: {results['status']}{seconds}", ""]
        if items:
            lines += [f"| | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
        for item, figures in items.items():
            cells = [_show(figures.get(column)) for column in columns]
            lines.append(f"| {item} | {' | '.join(cells)} |")
        lines.append("")
    texts = {"results.json": json.dumps(found, indent=1), "table.md": "\n".join(lines)}
    for name, text in texts.items():
        (out / f".{name}").write_text(text)
        os.replace(out / f".{name}", out / name)


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value).replace("|", "/")


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument("--minutes", type=float, required=True, help="for all parts together")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory of the results")
    parser.add_argument("--reference", help="a checkout of ermongroup/ncsn")
    parser.add_argument("--data_dir", help="prepared datasets, with mnist among them")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # PyTorch and the jobs share the card, and programs are compiled once for all of them.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/programs"
        os.environ["NCSN_JAX_CACHE"] = os.environ["TFDS_DATA_DIR"] = f"{folder}/data"
        jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
        small = jax.default_backend() == "cpu"
        scratch = pathlib.Path(folder)
        bench = Bench(given.out, scratch, given.reference, given.data_dir, small)
        found = run(bench, given.minutes)
        jobs.kill_all()
        parts.stop_originals(bench)
    print((given.out / "table.md").read_text(), flush=True)
    return any(results["status"] != "done" for results in found.values())


if __name__ == "__main__":
    code = main(sys.argv[1:])
    os._exit(code)  # What did not end in time is not waited for.
