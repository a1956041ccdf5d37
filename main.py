"""Trains a score network and samples from it: `python main.py --config=configs/digits.py --workdir=DIR`.

The same command continues a run that was interrupted. Any field of the configuration can be
overridden, as in --config.training.batch_size=64.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration of the experiment, such as configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory for checkpoints, samples and logs; made if absent."
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "sample"],
    "train: train, or continue, and then sample; sample: sample from the newest checkpoint.",
)


def _fail(message: str, code: int) -> None:
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; a mistake in a configuration's name or field is one line, not a traceback."""
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            _fail(f"unexpected argument {rest[1]!r}", 2)
        for flag in (_CONFIG, _WORKDIR):
            if flag.value is None:
                _fail(f"--{flag.name} is required; see python main.py --help", 2)
        _CONFIG.value.keys()  # a file that could not be loaded says so only when it is used
        return rest
    except flags.Error as error:
        _fail(str(error), 2)
    except (AttributeError, KeyError) as error:
        text = str(error.args[0]).replace("\\n", " ").replace("\\'", "").strip("'\"")
        _fail(f"--config has no such field: {text} (configs/default.py lists them all)", 2)
    # A configuration is the user's code, which may raise anything.
    except Exception as error:
        _fail(f"--config: {type(error).__name__}: {str(error).splitlines()[-1]}", 2)


def main(_) -> None:
    """Runs the chosen mode."""
    logging.set_verbosity(logging.ERROR)
    import run_lib
    from ncsn_jax.errors import UserError

    try:
        {"train": run_lib.train, "sample": run_lib.sample}[_MODE.value](
            _CONFIG.value, _WORKDIR.value
        )
    except UserError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues", 130)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
