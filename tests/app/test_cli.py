"""Runs command lines in separate processes: every mistake is reported on one line."""

import os
import re
import shutil
import subprocess
import sys

import jax
import pytest

import ncsn_jax
from ncsn_jax.app import distributed
from tests.running import ROOT, environment, run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.training.bacth_size=8"], 'field: bacth_size; did you mean "batch_size"'),
        (["--config.trainig.batch_size=8"], 'field: trainig; did you mean "training"'),
        (
            ["--config=configs/digit.py"],
            "does not exist; did you mean configs/digits.py or ",
        ),
        (["--config.data.dataset=no_such_set"], "data.dataset='no_such_set' is unknown"),
        (["--mode=foo"], "value should be one of <train|sample|inpaint|colorize|"),
        (["--wrkdir=x"], "Unknown command line flag 'wrkdir'"),
        (["--config.training.num_steps=1.5"], "--config.training.num_steps=1.5"),
        (["--training.batch_size=8"], "with --config.training.batch_size"),
    ],
)
def test_mistakes_are_reported_on_one_line(arguments, message, tmp_path):
    result = run(tmp_path, *arguments)
    assert result.returncode in (1, 2)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("raise KeyError", "KeyError"),
        ("raise ValueError('')", "--config: ValueError"),
        ("def get_config(a, b): pass", "--config: TypeError: get_config() missing 2"),
        ("def get_config(): pass", "--config is required"),
        (None, "--flagfile cannot be read: "),
    ],
)
def test_failing_configuration_files_are_reported_on_one_line(content, message, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(content or "")
    arguments = [f"--config={path}", f"--workdir={tmp_path}/run"]
    if content is None:
        arguments.append("--flagfile=nothing")
    command_ = [sys.executable, "main.py", *arguments]
    result = subprocess.run(command_, cwd=ROOT, capture_output=True, text=True, timeout=60)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2 and line.startswith("error: ") and message in line
    assert "Traceback" not in line


def test_undecodable_file_names_can_be_printed(tmp_path):
    script = """
from ncsn_jax.app import cli
config = cli.define_config()
cli.run(lambda _: print("wrote a\\udcffb"), config, tuple, program="x", interrupted="")
"""
    arguments = ["--config=configs/digits.py"]
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (0, b"wrote a\\udcffb\n"), result.stderr


def test_version_prints_versions_and_devices():
    result = subprocess.run(
        [sys.executable, "main.py", "--version"],
        cwd=ROOT,
        env=environment(3),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0 and result.stdout.count("\n") == 1
    for part in (f"ncsn_jax {ncsn_jax.__version__}, ", f", jax {jax.__version__}, ", ", 3 x cpu, "):
        assert part in result.stdout


def test_help_imports_nothing_slow_and_lists_the_flags():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "main.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    for text in ("Configuration of the experiment", "Directory for checkpoints", "--mode"):
        assert text in result.stdout
    for heavy in ("jax", "flax", "tensorflow_datasets", "orbax"):
        assert not re.search(rf"\| +{heavy}$", result.stderr, re.MULTILINE)


# Runs `cli.run` with a `main` for each line, and prints how each ends.
SCRIPT = """
import errno, io, jax, sys, contextlib
from ncsn_jax.app import cli, distributed
from ncsn_jax.errors import UserError
config = cli.define_config()
workdir = cli.define_workdir()
runtime = jax.errors.JaxRuntimeError

def ends(error, count=1, arguments=(), most=0):
    def main(rest):
        if error is None:
            print("ran with", rest)
        else:
            raise error
    distributed.count = lambda: count
    sys.argv = ["x", "--config=configs/digits.py", *arguments]
    said = io.StringIO()
    code = 0
    with contextlib.redirect_stderr(said):
        try:
            cli.run(main, config, lambda: (config,), most, program="PROGRAM", interrupted="go on")
        except SystemExit as end:
            code = end.code
    lines = said.getvalue().splitlines()
    print(code, *lines[-1:], "after" if len(lines) > 1 else "", sep="|")

ends(None)
ends(None, arguments=["a"], most=1)
ends(None, arguments=["a", "b"], most=1)
ends(UserError("a field"))
ends(OSError(errno.ENOSPC, "No space left", "a/file"))
ends(OSError("lost"))
ends(KeyboardInterrupt())
ends(ZeroDivisionError("x"))
ends(runtime("RESOURCE_EXHAUSTED: 9 GiB"))
ends(runtime("UNAVAILABLE: gone"), 2)
ends(runtime("UNAVAILABLE: gone"), 1)
ends(runtime("INTERNAL: x"), 2)
"""


def test_every_way_to_end_prints_its_line_and_status():
    """A bug in the program prints a traceback before its line."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    mistake = "1|error: this is a bug in the program|after"
    assert result.stdout.splitlines() == [
        "ran with []",
        "None|",
        "ran with ['a']",
        "None|",
        "2|error: unexpected argument 'b'|",
        "1|error: a field|",
        "1|error: a/file: No space left|",
        "1|error: lost|",
        "130|error: go on|",
        mistake,
        "1|error: a device is out of memory (RESOURCE_EXHAUSTED: 9 GiB); increase "
        "config.training.microbatches, set config.training.remat=True, or take a smaller batch|",
        "1|error: another process of this run has ended or cannot be reached (UNAVAILABLE: gone); "
        f"{distributed.AGAIN}|",
        mistake,
        mistake,
    ], result.stderr


def test_tilde_is_expanded_on_the_command_line(tmp_path):
    shutil.copy(ROOT / "tests" / "tiny.py", tmp_path / "config.py")
    arguments = ["--config=~/config.py", "--workdir=~/run", "--config.data.image_size=16"]
    result = subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and "is 8x8, not 16x16" in line
    assert (tmp_path / "run").is_dir()
