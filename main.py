"""Trains a score network and samples from it: `python main.py --config=configs/digits.py --workdir=DIR`.

The same command continues a run that was interrupted. Any field of the configuration can be
overridden, as in --config.training.batch_size=64.
"""

from absl import flags

from ncsn_jax import cli

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()
flags.adopt_module_key_flags(cli)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "sample", "inpaint", "nearest", "suggest"],
    "train: train, or continue, and then sample; sample: sample from the newest checkpoint; "
    "inpaint: complete images of which a part is hidden; "
    "nearest: show samples beside the nearest training images; "
    "suggest: propose a noise ladder and a step size for the configuration's images (without a workdir).",
)


def main(_) -> None:
    """Runs the chosen mode."""
    import run_lib

    if _MODE.value == "suggest":
        run_lib.suggest(_CONFIG.value)
    else:
        getattr(run_lib, _MODE.value)(_CONFIG.value, _WORKDIR.value)


def _required():
    return (_CONFIG,) if _MODE.value == "suggest" else (_CONFIG, _WORKDIR)


if __name__ == "__main__":
    cli.run(
        main,
        _CONFIG,
        _required,
        program="python main.py",
        interrupted="interrupted; the same command continues",
    )
