"""Trains a score network and samples from it: `python main.py --config=configs/digits.py --workdir=DIR`.

The same command resumes an interrupted run. Once the run exists, `--workdir` alone is enough for every mode.
Override any field of the configuration, as in --config.training.batch_size=64.
"""

import sys

from absl import flags

from ncsn_jax.app import cli, cpu

_INTERRUPTED = "run the same command to continue"

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()
flags.adopt_module_key_flags(cli)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0 of a run on several hosts; not needed on TPU pods."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes",
    None,
    "Number of processes in the run; 1 runs this process alone.",
    lower_bound=1,
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Index of this process, from 0.", lower_bound=0
)
_PATIENCE = flags.DEFINE_float(
    "patience", 600.0, "Seconds to wait for the other processes.", lower_bound=1.0
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    [
        "train",
        "sample",
        "inpaint",
        "colorize",
        "restore",
        "interpolate",
        "likelihood",
        "classifier",
        "classconditional",
        "nearest",
        "evaluate",
        "statistics",
        "average",
        "suggest",
        "plan",
    ],
    "train: train or resume, then sample; sample: sample from the newest checkpoint; "
    "inpaint: fill in the hidden part of images; colorize: colour grey images; "
    "restore: restore images from measurements, such as low resolution or blur; "
    "interpolate: interpolate between pairs of images; "
    "likelihood: compute the bits per dimension of images; "
    "classifier: train a classifier of noisy images; classconditional: sample with that classifier; "
    "nearest: show samples beside the nearest training images; "
    "evaluate: measure how good samples are; statistics: write statistics of the training images; "
    "average: make an average of another width from those of the run; "
    "suggest: suggest a noise ladder and a step size for the images (needs no workdir); "
    "plan: estimate the run's memory and time on the local devices or a TPU topology (needs no workdir).",
)


_WITHOUT_WORKDIR = ("suggest", "plan")


def main(_) -> None:
    """Runs the chosen mode."""
    num_devices = cpu.devices_for(_CONFIG.value)
    alone = _MODE.value in _WITHOUT_WORKDIR
    if not alone:
        from ncsn_jax.app import signals

        signals.install(_INTERRUPTED)
    import jax

    import run_lib
    from ncsn_jax.app import devices, distributed

    processes = None
    if not alone:
        given = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
        processes = distributed.find(*given)
    if processes is not None:
        distributed.start(*processes, _PATIENCE.value)
    elif num_devices is not None:
        jax.config.update("jax_num_cpu_devices", num_devices)
    if _MODE.value != "plan":  # its devices may be elsewhere
        devices.check()
    arguments = (_CONFIG.value,) if alone else (_CONFIG.value, _WORKDIR.value)
    getattr(run_lib, _MODE.value)(*arguments)
    distributed.meet("to finish")  # if one ended early, the others would fail


def _required():
    return (_CONFIG,) if _MODE.value in _WITHOUT_WORKDIR else (_WORKDIR, _CONFIG)


if __name__ == "__main__" and sys.argv[1:] == ["--version"]:
    print(cli.describe_versions())
elif __name__ == "__main__":
    cli.run(
        main,
        _CONFIG,
        _required,
        program="python main.py",
        interrupted=_INTERRUPTED,
    )
