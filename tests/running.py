"""Running the application in processes of its own, on a network of a few channels."""

import os
import pathlib
import subprocess
import sys

import jax

from ncsn_jax.app import build, checkpoints
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ["--config=tests/tiny.py"]


def environment(devices):
    given = os.environ.get("XLA_FLAGS", "")
    flags = f"{given} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}


def quickly_compiling(devices):
    """Without LLVM's optimizations, for networks that take longer to compile than to run."""
    given = environment(devices)
    return given | {"XLA_FLAGS": f"{given['XLA_FLAGS']} --xla_backend_optimization_level=0"}


def command(workdir, *extra):
    return [sys.executable, "main.py", f"--workdir={workdir}", *SMALL, *extra]


def run(workdir, *extra, devices=1):
    return subprocess.run(
        command(workdir, *extra),
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=300,
    )


def final_state(workdir):
    """Returns step and arrays of the newest checkpoint."""
    init = build.make_init(tiny.get_config())
    with checkpoints.Checkpoints(str(workdir)) as store:
        return store.restore_latest(jax.eval_shape(init, jax.random.key(0)))


def load_config(**changes):
    import configs.digits

    config = configs.digits.get_config()
    config.update_from_flattened_dict(
        {"model.features": 2, "model.num_levels": 2, "training.batch_size": 8} | changes
    )
    return config


# A run with an SDE that takes seconds.
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
    """Returns a small configuration with an SDE: that of `digits_ve`, or of another module."""
    from configs import digits_ve

    config = (module or digits_ve).get_config()
    config.update_from_flattened_dict(SMALL_DIFFUSION | changes)
    return config
