"""Runs the application in separate processes, on a network of a few channels."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import jax

from ncsn_jax.app import build, checkpoints
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ["--config=tests/tiny.py"]


def python_of(page):
    """Returns the blocks of Python on a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def environment(devices=1):
    """Returns the environment of a process with this many simulated devices."""
    given = os.environ.get("XLA_FLAGS", "")  # XLA takes the last of two values
    flags = f"{given} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}


def quickly_compiling():
    """Returns an environment without LLVM's optimizations, for networks that are slow to compile."""
    given = environment()
    return given | {"XLA_FLAGS": f"{given['XLA_FLAGS']} --xla_backend_optimization_level=0"}


def command(workdir, *extra):
    """Returns the command that trains in a work directory."""
    return [sys.executable, "main.py", f"--workdir={workdir}", *SMALL, *extra]


def run(workdir, *extra, devices=1, prefix=()):
    """Runs the application to its end."""
    return subprocess.run(
        [*prefix, *command(workdir, *extra)],
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=300,
    )


def kill_at(line, workdir, *extra, devices=1):
    """Starts the application, and kills it when it prints a line that starts with `line`."""
    process = subprocess.Popen(
        command(workdir, *extra),
        cwd=ROOT,
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        next(found for found in process.stdout if found.startswith(line))
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def final_state(workdir):
    """Returns step and arrays of the newest intact checkpoint, and changes nothing."""
    like = jax.eval_shape(build.make_init(tiny.get_config()), jax.random.key(0))
    with checkpoints.Checkpoints(str(workdir), read_only=True) as store:
        return store.load(like)


def load_config(**changes):
    import configs.digits

    config = configs.digits.get_config()
    config.update_from_flattened_dict(
        {"model.features": 2, "model.num_levels": 2, "training.batch_size": 8}
        | {"optim.schedule": "constant"}
        | changes
    )
    return config


# A run with an SDE, which takes seconds.
SMALL_DIFFUSION = {
    "model.features": 4,
    "model.num_levels": 30,
    "ncsnpp.ch_mult": (1,),
    "ncsnpp.dropout": 0.1,
    "training.batch_size": 8,
    "training.num_steps": 4,
    "training.log_every": 2,
    "training.checkpoint_every": 4,
    "training.sample_every": 0,
    "optim.warmup_steps": 0,
    "sampling.method": "heun",
    "sampling.num_steps": 3,
    "sampling.num_samples": 8,
    "sampling.batch_size": 8,
    "sampling.rtol": 1e-3,
    "sampling.atol": 1e-3,
    "likelihood.rtol": 1e-2,
    "likelihood.atol": 1e-2,
    "classifier.num_steps": 2,
    "classifier.features": 4,
}


def load_diffusion_config(module=None, **changes):
    """Returns a small configuration with an SDE, from `digits_ve` or another module."""
    from configs import digits_ve

    config = (module or digits_ve).get_config()
    config.update_from_flattened_dict(SMALL_DIFFUSION | changes)
    return config
