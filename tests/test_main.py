"""Tests that each flag of `main.py` reaches the code that uses it."""

import json
import subprocess
import sys

import pytest

from tests.running import ROOT

# Replaces everything that `main.py` calls, and prints the arguments.
SCRIPT = """
import json, sys, types

said = []

class Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        def call(*arguments):
            shown = [getattr(a, "seed", a) for a in arguments]
            said.append([f"{self.__name__}.{name}", *shown])
            return (shown if shown[1] else None) if name == "find" else 6
        return call

modules = {name: Module(name.rpartition(".")[2]) for name in (
    "run_lib", "ncsn_jax.app.distributed", "ncsn_jax.app.signals", "ncsn_jax.app.cpu", "jax",
    "ncsn_jax.app.devices",
)}
sys.modules |= modules
import ncsn_jax.app
for name in ("distributed", "signals", "cpu", "devices"):
    setattr(ncsn_jax.app, name, modules[f"ncsn_jax.app.{name}"])
modules["jax"].config = types.SimpleNamespace(update=lambda *a: said.append(["update", *a]))
sys.argv = json.loads(sys.argv[1])
try:
    exec(compile(open("main.py").read(), "main.py", "exec"), {"__name__": "__main__"})
except SystemExit as end:
    print(json.dumps([said, end.code]))
"""
UPDATE = [["update", "jax_num_cpu_devices", 6]]
SEVERAL = ["--coordinator=a:1", "--num_processes=3", "--process_id=2"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--workdir=here"],
            [
                ["distributed.find", None, None, None],
                ["update", "jax_num_cpu_devices", 6],
                ["devices.check"],
                ["run_lib.train", 5, "here"],
            ],
        ),
        (
            ["--workdir=here", "--mode=nearest", *SEVERAL],
            [
                ["distributed.find", "a:1", 3, 2],
                ["distributed.start", "a:1", 3, 2, 600.0],
                ["devices.check"],
                ["run_lib.nearest", 5, "here"],
            ],
        ),
        (
            ["--workdir=here", "--mode=sample", "--patience=7", *SEVERAL],
            [
                ["distributed.find", "a:1", 3, 2],
                ["distributed.start", "a:1", 3, 2, 7.0],
                ["devices.check"],
                ["run_lib.sample", 5, "here"],
            ],
        ),
        (["--mode=suggest"], [*UPDATE, ["devices.check"], ["run_lib.suggest", 5]]),
        (["--mode=plan"], [*UPDATE, ["run_lib.plan", 5]]),
        (["--mode=sample"], None),
    ],
)
def test_flags_reach_their_arguments(arguments, expected):
    argv = ["main.py", "--config=configs/digits.py", "--config.seed=5", *arguments]
    command = [sys.executable, "-c", SCRIPT, json.dumps(argv)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    said, code = json.loads(result.stdout)
    if expected is None:
        assert result.stderr == "error: --workdir is required; see python main.py --help\n"
        assert (said, code) == ([], 2)
        return
    expected = [["cpu.devices_for", 5], *expected, ["distributed.meet", "to finish"]]
    if arguments not in (["--mode=suggest"], ["--mode=plan"]):
        expected.insert(1, ["signals.install", "run the same command to continue"])
    assert said == expected and not code
