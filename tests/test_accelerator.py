"""The benchmark of an accelerator, shortened, on a CPU. No test asserts on what a clock says."""

import json
import subprocess
import sys
import time

import pytest

from benchmarks import accelerator, accelerator_parts, workers
from benchmarks.accelerator_parts import Bench
from tests import tiny

NAMES = ["ceilings", "goldens", "training", "sampling", "digits", "resume", "mnist"]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, tmp_path, None, None, small=True)


def read(directory):
    return json.loads((directory / "results.json").read_text())


def test_without_time_everything_is_skipped_and_said_to_be(tmp_path):
    command = [sys.executable, "-m", "benchmarks.accelerator", "--minutes=0.001"]
    done = subprocess.run([*command, f"--out={tmp_path}"], cwd=workers.ROOT, timeout=300)
    assert done.returncode == 0
    found = read(tmp_path)
    assert list(found) == NAMES
    assert found["ceilings"]["items"]["copy"]["GB/s read and written"] > 0
    for name in ("goldens", "training", "sampling", "resume", "mnist"):
        assert all("skipped" in figures for figures in found[name]["items"].values())
    assert "out of time" in found["digits"]["items"]["job"]["failed"]
    table = (tmp_path / "table.md").read_text()
    assert all(f"| {name} | **all** | status: done; " in table for name in NAMES)


def test_a_part_that_raises_keeps_what_it_found(bench):
    def good(bench):
        yield "first", {"value": 1.0}

    def bad(bench):
        yield "before", {"value": 2.0, "text": "a|b"}
        raise ValueError("no\nluck")

    found = accelerator.run(bench, 1.0, ((0.5, bad), (1.0, good)))
    assert found == read(bench.out)
    assert found["bad"]["status"] == "failed: ValueError: no luck"
    assert found["bad"]["items"] == {"before": {"value": 2.0, "text": "a|b"}}
    assert (found["good"]["status"], found["good"]["items"]) == ("done", {"first": {"value": 1.0}})
    table = (bench.out / "table.md").read_text()
    assert "| bad | before | value: 2; text: a/b |" in table
    assert "| bad | **all** | status: failed: ValueError: no luck; seconds: " in table


def test_what_lacks_time_does_not_begin_and_what_fails_says_why(bench):
    def fail():
        raise ValueError("no")

    bench.ends = time.monotonic() + 60
    assert accelerator_parts.figures_of(bench, 1, lambda: {"value": 1}) == {"value": 1}
    assert accelerator_parts.figures_of(bench, 1, fail) == {"failed": "ValueError: no"}
    assert "about 90 needed" in accelerator_parts.figures_of(bench, 90, fail)["skipped"]


def test_networks_and_chains_agree_with_the_authors(bench):
    assert accelerator_parts.golden_network(bench, "default") < 1e-5
    assert accelerator_parts.golden_chain() < 1e-5


def test_a_step_and_a_sampler_are_timed(bench, monkeypatch):
    """Of a network that compiles in a second."""
    monkeypatch.setattr(accelerator_parts, "configuration", lambda *_: tiny.get_config())
    figures = accelerator_parts.time_step(bench, "mnist", "bfloat16", "high", 2)
    assert figures["steps/s"] > 0 and figures["loss"] > 0
    figures = accelerator_parts.time_sampler(bench, "heun")
    assert figures["seconds"] > 0 and figures["evaluations"] == 35
