"""The command for an accelerator, shortened, on a CPU. No test asserts on what a clock says."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import accelerator, accelerator_goldens, accelerator_parts, workers
from benchmarks import accelerator_tools as tools
from benchmarks.accelerator_tools import Bench

NAMES = ["ceilings", "goldens", "training", "sampling", "digits", "mnist", "resume"]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, tmp_path, None, None, small=True)


def read(directory):
    return json.loads((directory / "results.json").read_text())


def test_all_parts_are_there_whatever_the_time(tmp_path):
    """Of a run of seconds nearly all is skipped or stopped, and said to be."""
    command = [sys.executable, "-m", "benchmarks.accelerator", "--minutes=0.05"]
    done = subprocess.run([*command, f"--out={tmp_path}"], cwd=workers.ROOT, timeout=300)
    assert done.returncode in (0, 1)
    found = read(tmp_path)
    assert list(found) == NAMES
    assert "cpu" in found["ceilings"]["items"]["machine"]["device"]
    assert found["mnist"]["items"] == {"run": {"skipped": "no --data_dir"}}
    assert all(results["status"] for results in found.values())
    table = (tmp_path / "table.md").read_text()
    assert all(f"## {name}: " in table for name in NAMES)


def test_a_part_that_raises_loses_nothing(bench):
    def good(bench):
        yield "first", {"value": 1.0}

    def bad(bench):
        yield "before", {"value": 2.0, "text": "a|b"}
        raise ValueError("no\nluck")

    found = accelerator.run(bench, 1.0, ((0.5, {"bad": bad}), (1.0, {"good": good, "other": good})))
    assert found == read(bench.out)
    assert found["bad"]["status"] == "failed: ValueError: no luck"
    assert found["bad"]["items"] == {"before": {"value": 2.0, "text": "a|b"}}
    for name in ("good", "other"):
        assert (found[name]["status"], found[name]["items"]) == ("done", {"first": {"value": 1.0}})
    table = (bench.out / "table.md").read_text()
    assert "## bad: failed: ValueError: no luck" in table and "| before | 2 | a/b |" in table


def test_programs_that_fail_or_are_late_do_not_lose_the_others(bench):
    def fail():
        raise ValueError("no")

    done = tools.compile_all(bench, {"good": lambda: 1, "bad": fail}, time.monotonic() + 60)
    assert done["good"] == 1 and isinstance(done["bad"], ValueError)
    bench.ends = time.monotonic() + 60
    figures = [
        tools.figures_of(bench, program, lambda program: {"value": program})
        for program in (1, done["bad"], None)
    ]
    skipped = {"skipped": "not compiled in time"}
    assert figures == [{"value": 1}, {"failed": "ValueError: no"}, skipped]
    bench.ends = time.monotonic() - 1
    assert "skipped" in tools.figures_of(bench, 1, lambda program: {})


def test_samplers_agree_with_closed_forms():
    assert accelerator_goldens._golden_chain() < 1e-5
    assert accelerator_goldens._langevin_of_a_gaussian() < 4
    assert accelerator_goldens._heun_of_a_gaussian() < 1e-4


def test_a_training_step_has_figures(bench):
    config = accelerator_parts.configuration(True, "mnist")
    bench.peaks["float32", "default"] = 1.0
    program = accelerator_parts.compile_step(bench, config, "default", 1)
    figures = accelerator_parts.time_step(bench, "mnist", program, "float32", "default")
    assert figures["share of matmul"] == figures["TFLOP/s"] > 0
    assert np.isfinite(figures["loss"]) and figures["steps/s"] > 0
