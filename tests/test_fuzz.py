"""Runs a short form of `tests.fuzz`: a few hundred malformed inputs, the same ones every time."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import fuzz


def test_malformed_inputs_are_refused_with_one_line():
    plan = [
        (name, number)
        for name, number in fuzz.make_plan(110)
        # PyTorch, the shapes of networks, and matplotlib are slow.
        if name not in ("torch_file", "state_dict", "losses_plot")
    ]
    results = fuzz.run(0, plan, lambda text: None)
    assert not results.failures
    assert {name for name, _ in plan} == results.counts.keys()
    assert sum(sum(counts.values()) for counts in results.counts.values()) == len(plan)


def test_malformed_pytorch_files_are_refused_with_one_line():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    results = fuzz.run(0, [("torch_file", i) for i in range(30)], lambda text: None)
    assert not results.failures


def broken(case):
    """Returns an entry point with every fault that the fuzzer detects."""

    def call():
        faults = [
            lambda: None,
            lambda: 1 / 0,
            lambda: pathlib.Path("written").write_text("where it must not be"),
            lambda: os._exit(3),
            lambda: (_ for _ in ()).throw(importlib.import_module("ncsn_jax.errors").UserError("")),
            lambda: importlib.import_module("warnings").warn("noise", stacklevel=2),
            lambda: importlib.import_module("time").sleep(5),
        ]
        faults[case.number]()

    return call, None


def test_the_fuzzer_finds_faults(tmp_path):
    """The broken entry point runs in two processes, because one case ends the first."""
    script = """
import json, os, sys
sys.path[0] = os.getcwd()
from tests import fuzz, hostile, test_fuzz
hostile.ENTRIES["broken"] = hostile.Entry(test_fuzz.broken, 1, limit=0.5)
sys.modules["tests.fuzz"] = fuzz
fuzz.work(0, [("broken", number) for number in json.loads(sys.argv[1])])
"""

    def work(*numbers):
        result = subprocess.run(
            [sys.executable, "-c", script, json.dumps(numbers)],
            cwd=fuzz.ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        reports = [json.loads(line) for line in result.stdout.splitlines()]
        assert [kind for kind, *_ in reports[::2]] == ["begin"] * len(numbers), result.stderr
        return result.returncode, [report[2:] for report in reports[1::2]]

    # A forbidden file stays, so this case is the last.
    status, found = work(0, 1, 4, 5, 6, 2)
    expected = [
        ("accepted", ""),
        ("failed", "ZeroDivisionError"),
        ("failed", "not one printable line"),
        ("failed", "warned: UserWarning: noise"),
        ("failed", "hang: took more than 0.5 seconds"),
        ("failed", "wrote outside"),
    ]
    assert status == 0 and len(found) == len(expected)
    for (outcome, reason), (as_expected, text) in zip(found, expected, strict=True):
        assert outcome == as_expected and text in reason
    assert work(3) == (3, [])
