"""Trains a score network and samples from it: `python main.py --config=configs/digits.py --workdir=DIR`.

The same command continues an interrupted run; so does `--workdir` alone, which suffices for every mode once
there is a run. Override any field of the configuration, as in --config.training.batch_size=64.
"""

import sys

from absl import flags

from ncsn_jax.app import cli, cpu

_INTERRUPTED = "the same command continues"

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()
flags.adopt_module_key_flags(cli)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0 of a run on several hosts; not needed on TPU pods."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Number of processes of the run; 1: this one alone.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of the processes this is, from 0.", lower_bound=0
)
_PATIENCE = flags.DEFINE_float(
    "patience", 600.0, "Seconds that processes wait for one another.", lower_bound=1.0
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    [
        "train",
        "sample",
        "inpaint",
        "colorize",
        "interpolate",
        "likelihood",
        "classifier",
        "classconditional",
        "nearest",
        "suggest",
        "plan",
    ],
    "train: train, or continue, and then sample; sample: sample from the newest checkpoint; "
    "inpaint: complete images of which a part is hidden; "
    "colorize: colour grey images; interpolate: images between pairs of images; "
    "likelihood: bits per dimension of images; "
    "classifier: train a classifier of noisy images; classconditional: sample with it; "
    "nearest: show samples beside the nearest training images; "
    "suggest: propose a noise ladder and a step size for the configuration's images (without a workdir); "
    "plan: what the run takes on the devices at hand or on a TPU topology (without a workdir).",
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
    if _MODE.value != "plan":  # its devices need not be at hand
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
