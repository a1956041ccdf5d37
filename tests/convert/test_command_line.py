"""`python -m ncsn_jax.convert` as documented, and mistakes on its command line."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import DATA
from tests.running import ROOT, environment, quickly_compiling

V1 = DATA / "ncsn_checkpoint_v1_legacy.pth"


def test_documented_commands_convert_and_sample(tmp_path):
    pytest.importorskip("torch")
    workdir = tmp_path / "run"
    shared = ["--config=configs/mnist.py", "--config.model.features=3", f"--workdir={workdir}"]
    shared += ["--config.data.dataset=digits", "--config.data.image_size=8"]
    shared += ["--config.sampling.steps_per_level=1", "--config.sampling.num_samples=2"]
    shared += ["--config.sampling.batch_size=2"]

    def run(*command):
        result = subprocess.run(
            [sys.executable, *command, *shared],
            cwd=ROOT,
            env=quickly_compiling(),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr

    run("-m", "ncsn_jax.convert", str(V1))
    run("main.py", "--mode=sample")
    assert np.load(workdir / "samples/step_3/samples.npz")["samples"].shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the file to convert is required"),
        (["a.pth", "--export=b.npz"], "--export cannot be combined with the file 'a.pth'"),
        (["a.pth", "b.pth"], "unexpected argument 'b.pth'"),
        (["~/no_such_file.pth"], f"{os.path.expanduser('~')}/no_such_file.pth does not exist"),
        (["--export=~/b.txt"], f"--export='{os.path.expanduser('~')}/b.txt' must end in .npz"),
        (["--export=b.npz"], "holds no run: train first"),
    ],
)
def test_command_line_mistakes_print_one_line(arguments, message, tmp_path):
    command = [sys.executable, "-m", "ncsn_jax.convert", "--config=configs/mnist.py"]
    command += [f"--workdir={tmp_path}", *arguments]
    result = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60
    )
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line
