"""Measures this library on one accelerator within minutes.

    python -m benchmarks.accelerator --minutes=5 --out=DIR [--reference DIR] [--data_dir DIR]

runs the parts below one at a time, and rewrites DIR/results.json and DIR/table.md after every figure.
`benchmarks/accelerator.md` describes the parts and what the machine needs. On a CPU the networks and jobs are
tiny, to show that everything works.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time
import traceback
from typing import Any

import jax

from benchmarks import accelerator_jobs as jobs
from benchmarks import accelerator_parts as parts
from benchmarks.accelerator_parts import Bench
from ncsn_jax.app import storage

# Each part, after the share of the time at which it must end.
PARTS = (
    (0.03, parts.ceilings),
    (0.12, parts.goldens),
    (0.43, parts.training),
    (0.53, parts.sampling),
    (0.70, jobs.digits),
    (0.70, jobs.resume),
    (1.00, jobs.mnist),
)


def run(bench: Bench, minutes: float, plan=PARTS) -> dict[str, dict]:
    """Runs the parts and returns their findings by name. A part that raises keeps what it has yielded."""
    begin, found = time.monotonic(), {}
    for share, part in plan:
        name, started = part.__name__, time.monotonic()
        bench.ends = begin + 60 * minutes * share
        found[name] = {"status": "did not end", "seconds": None, "items": {}}
        try:
            for item, figures in part(bench):
                found[name]["items"][item] = figures
                write(bench.out, found)
                print(f"[{time.monotonic() - begin:.0f} s] {name}: {item}: {figures}", flush=True)
            status = "done"
        except Exception as error:
            traceback.print_exc()
            status = f"failed: {parts.one_line(error)}"
        found[name].update(status=status, seconds=time.monotonic() - started)
        write(bench.out, found)
    return found


def write(out: pathlib.Path, found: dict[str, dict]) -> None:
    """Writes everything found so far, as JSON and as a table."""
    lines = ["| part | | figures |", "| --- | --- | --- |"]
    for name, results in found.items():
        whole = {key: results[key] for key in ("status", "seconds")}
        for item, figures in (results["items"] | {"**all**": whole}).items():
            known = [f"{key}: {_show(figures[key])}" for key in figures if figures[key] is not None]
            lines.append(f"| {name} | {item} | {'; '.join(known)} |")
    for name, text in (
        ("results.json", json.dumps(found, indent=1)),
        ("table.md", "\n".join(lines)),
    ):
        (out / f".{name}").write_text(text)
        os.replace(out / f".{name}", out / name)


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def _path(text: str) -> pathlib.Path:
    return pathlib.Path(storage.path(text))


def main(arguments: list[str]) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, required=True, help="time limit of all parts together"
    )
    parser.add_argument("--out", type=_path, required=True, help="directory of the results")
    parser.add_argument("--reference", type=storage.path, help="a checkout of ermongroup/ncsn")
    parser.add_argument("--data_dir", type=storage.path, help="prepared datasets, including mnist")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # The jobs and PyTorch need memory too, and the jobs share compiled programs.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/programs"
        os.environ["NCSN_JAX_CACHE"] = os.environ["TFDS_DATA_DIR"] = f"{folder}/data"
        jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
        scratch, small = pathlib.Path(folder), jax.default_backend() == "cpu"
        bench = Bench(given.out, scratch, given.reference, given.data_dir, small)
        found = run(bench, given.minutes)
    print((given.out / "table.md").read_text(), flush=True)
    return any(results["status"] != "done" for results in found.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
