"""Converts the authors' checkpoints to work directories, and exports parameters for the authors' code.

    python -m ncsn_jax.convert CHECKPOINT.pth --config=configs/mnist.py --workdir=DIR
    python -m ncsn_jax.convert --config=configs/mnist.py --workdir=DIR --export=WEIGHTS.npz

The first makes a work directory from which `main.py` samples and continues training; the second writes the
newest checkpoint's parameters by their PyTorch names. This file has only the flags; `app.torch_runs` does the
work.
"""

from absl import flags

from ncsn_jax.app import cli

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()
flags.adopt_module_key_flags(cli)
_EXPORT = cli.define_path(
    "export", "File to write the newest checkpoint's parameters to, as arrays by PyTorch name."
)


def main(arguments: list[str]) -> None:
    """Imports the named file, or exports."""
    if _EXPORT.value is None and not arguments:
        cli.fail("the file to convert is required: python -m ncsn_jax.convert FILE.pth ...", 2)
    if _EXPORT.value is not None and arguments:
        cli.fail(f"--export cannot be combined with the file {arguments[0]!r}", 2)
    from ncsn_jax.app import storage, torch_runs

    if arguments:
        path = storage.path(arguments[0])
        print(torch_runs.import_checkpoint(_CONFIG.value, path, _WORKDIR.value))
    else:
        print(torch_runs.export(_CONFIG.value, _WORKDIR.value, _EXPORT.value))


if __name__ == "__main__":
    cli.run(
        main,
        _CONFIG,
        lambda: (_WORKDIR, _CONFIG),
        max_arguments=1,
        program="python -m ncsn_jax.convert",
        interrupted="interrupted; nothing was converted",
    )
