"""The short form of `tests.fuzz`: some hundred malformed inputs, the same ones every time."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from tests import fuzz


def test_malformed_inputs_are_refused_with_one_line():
    plan = [
        (name, number)
        for name, number in fuzz.make_plan(170)
        # These are slow: PyTorch, the shapes of networks, and matplotlib.
        if name not in ("torch_file", "state_dict", "losses_plot")
    ]
    results = fuzz.run(0, plan, lambda text: None)
    assert not results.failures
    assert {name for name, _ in plan} == results.counts.keys()
    assert sum(sum(counts.values()) for counts in results.counts.values()) == len(plan)


def test_malformed_files_of_pytorch_are_refused_with_one_line():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    results = fuzz.run(0, [("torch_file", i) for i in range(30)], lambda text: None)
    assert not results.failures


def broken(case):
    """An entry point with every fault that is looked for."""

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


def test_faults_are_found(tmp_path):
    """In processes that have the broken entry point besides."""
    script = """
import os, sys
sys.path[0] = os.getcwd()
from tests import fuzz, hostile, test_fuzz
hostile.ENTRIES["broken"] = hostile.Entry(test_fuzz.broken, 1, limit=0.5)
sys.modules["tests.fuzz"] = fuzz
fuzz.work(0, [("broken", int(sys.argv[1]))])
"""
    expected = [
        "accepted",
        "ZeroDivisionError",
        "wrote outside",
        None,
        "not one printable line",
        "warned: UserWarning: noise",
        "hang: took more than 0.5 seconds",
    ]
    for number, text in enumerate(expected):
        result = subprocess.run(
            [sys.executable, "-c", script, str(number)],
            cwd=fuzz.ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if text is None:
            assert result.returncode == 3 and '"end"' not in result.stdout
        else:
            assert text in result.stdout.splitlines()[-1], result.stderr
