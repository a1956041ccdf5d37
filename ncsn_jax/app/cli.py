"""Parses command lines with absl; a mistake ends in one line and an exit status, never a traceback.

`main.py` and `python -m ncsn_jax.convert` share this module, which imports nothing slow.
"""

import contextlib
import difflib
import logging as std_logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from ncsn_jax.app import run_config, storage
from ncsn_jax.errors import UserError, one_line


class _Integer(flags.IntegerParser):
    """Also accepts an integer such as 2e5."""

    def convert(self, argument: str) -> int:
        try:
            return super().convert(argument)
        except ValueError:
            with contextlib.suppress(ValueError, OverflowError):
                if float(argument) == int(float(argument)):
                    return int(float(argument))
            raise ValueError(f"{argument!r} is not an integer") from None


def define_config() -> flags.FlagHolder:
    """Defines `--config=FILE`, and an override for every field of that configuration.

    Without `--config` on the command line, the configuration is that of the run in `--workdir`.
    """
    config_flags.register_flag_parser_for_type(int, _Integer())
    # ml_collections reads the file's name from sys.argv while it defines the flag.
    sys.argv = [_expand(argument) for argument in sys.argv]
    try:
        sys.argv = _with_config(sys.argv)
        return config_flags.DEFINE_config_file(
            "config",
            None,
            "Configuration of the experiment, such as configs/digits.py.",
            lock_config=True,
        )
    # While it looks for the file's name, it also opens every --flagfile.
    except (flags.Error, OSError, ValueError) as error:
        fail(f"--flagfile cannot be read: {error}", 2)


def _with_config(arguments: list[str]) -> list[str]:
    """Returns the command line with `--config` added for the run in `--workdir`, if only that is given."""
    given = flags.FlagValues()
    for name in ("config", "workdir"):
        flags.DEFINE_string(name, None, "", flag_values=given)
    try:
        given(arguments, known_only=True)
    except flags.Error:  # raised again when all flags are parsed
        return arguments
    if given.config is None and given.workdir is not None:
        return [arguments[0], f"--config={run_config.__file__}:{given.workdir}", *arguments[1:]]
    path = (given.config or "").split(":")[0]
    if path and not os.path.exists(path):
        names = [str(p) for p in pathlib.Path("configs").rglob("*.py")]
        near = difflib.get_close_matches(path, names, cutoff=0.7)
        hint = f"did you mean {' or '.join(near)}?" if near else "configurations are in configs/"
        fail(f"--config={path} does not exist; {hint}", 2)
    return arguments


def _expand(argument: str) -> str:
    """Expands `~` in `--config=~/FILE`, which a shell leaves alone."""
    if not argument.startswith(("--config=~", "-config=~")):
        return argument
    flag, _, text = argument.partition("=")
    return f"{flag}={storage.path(text)}"


class _PathParser(flags.ArgumentParser):
    """Parses a path; see `storage.path`."""

    def parse(self, argument: str) -> str:
        return storage.path(argument)


def define_path(name: str, meaning: str) -> flags.FlagHolder:
    """Defines a path flag without a default."""
    return flags.DEFINE(_PathParser(), name, None, meaning)


def define_workdir() -> flags.FlagHolder:
    """Defines `--workdir=DIR`."""
    return define_path(
        "workdir", "Directory for checkpoints, samples and logs; created if it does not exist."
    )


def describe_versions() -> str:
    """Returns what a bug report should name: versions and devices, on one line."""
    import platform
    from importlib.metadata import version

    import jax

    import ncsn_jax

    packages = [f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax", "numpy")]
    kinds = jax.local_devices()
    return ", ".join(
        [
            f"ncsn_jax {ncsn_jax.__version__}",
            f"Python {platform.python_version()}",
            *packages,
            f"{len(kinds)} x {kinds[0].device_kind}",
            platform.platform(),
        ]
    )


def fail(message: str, code: int) -> None:
    """Prints one line and ends the process."""
    _print_error(one_line(" ".join(message.split())))
    sys.exit(code)


def _print_error(line: str) -> None:
    # In one write, since other threads may print too.
    sys.stderr.write(f"error: {line}\n")


def run(
    main: Callable[[list[str]], None],
    config: flags.FlagHolder,
    required: Callable[[], Sequence[flags.FlagHolder]],
    max_arguments: int = 0,
    *,
    program: str,
    interrupted: str,
) -> None:
    """Parses the flags and runs `main(arguments)`.

    Args:
      main: takes the positional arguments; its UserError ends the process with status 1.
      config: as made by `define_config`.
      required: returns the flags that must have a value; called after parsing.
      max_arguments: how many positional arguments are allowed.
      program: the command, for messages.
      interrupted: the message after Ctrl-C.
    """
    # File names need not be valid text.
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")
    app.run(
        lambda argv: _guard(main, argv[1:], interrupted),
        flags_parser=lambda argv: _parse(argv, config, required, max_arguments, program),
    )


def _parse(argv, config, required, max_arguments: int, program: str) -> list[str]:
    """Returns the positional arguments as absl expects them, or ends the process with one line."""
    logging.set_verbosity(logging.ERROR)
    try:
        try:
            rest = flags.FLAGS(argv)
        except SystemExit:  # --help ends with 1
            sys.exit(0)
        if len(rest) > 1 + max_arguments:
            fail(f"unexpected argument {rest[1 + max_arguments]!r}", 2)
        for flag in required():
            if flag.value is None:
                fail(f"--{flag.name} is required; see {program} --help", 2)
        config.value.keys()  # a file that failed to load raises only on use
        return rest
    except flags.UnrecognizedFlagError as error:
        name, more = error.flagname, ""
        if "." in name:
            more = f"; set fields of the configuration with --config.{name.removeprefix('config.')}"
        fail(f"{error}{more}", 2)
    except UserError as error:
        fail(str(error), 2)
    except flags.Error as error:
        text = str(error)
        # The text may contain the whole traceback of the user's file.
        fail(f"--config: {_last_line(text)}" if "Traceback (most" in text else text, 2)
    except (AttributeError, KeyError) as error:
        text = (
            str(error.args[0] if error.args else type(error).__name__)
            .replace("\\n", " ")
            .replace("\\'", "")
            .strip("'\"")
        )
        text = re.sub(r"'?\s+Did you mean", "; did you mean", text)
        fail(f"--config has no such field: {text} (docs/configuration.md lists them all)", 2)
    # A configuration is the user's code, which may raise anything.
    except Exception as error:
        fail(f"--config: {type(error).__name__}: {_last_line(str(error))}", 2)


def _last_line(text: str) -> str:
    """Returns the last line that is not blank."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message")


def _guard(main: Callable[[list[str]], None], arguments: list[str], interrupted: str) -> None:
    """Runs `main(arguments)`; if it raises, ends the process with one line."""
    logging.set_verbosity(logging.ERROR)  # the flags have set it
    try:
        try:
            main(arguments)
        finally:
            std_logging.shutdown()  # writes a log in object storage
        return
    except UserError as error:
        text = str(error)
    except OSError as error:
        # The user has to fix a full disk or a read-only directory.
        where = f"{error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror or error}"
    except KeyboardInterrupt:
        fail(interrupted, 130)
    except Exception as error:
        text = _explain(error)
        if text is None:
            traceback.print_exc()
            text = "this is a bug in the program"
    _print_error(" ".join(text.split()))
    from ncsn_jax.app import distributed

    distributed.end(1)


# The runtime's messages about another process contain one of these.
_OF_OTHERS = ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "oordination")


def _explain(error: Exception) -> str | None:
    """Explains a failure of the runtime; returns None for any other exception."""
    import jax

    from ncsn_jax.app import distributed

    if not isinstance(error, jax.errors.JaxRuntimeError):
        return None
    reason = str(error).splitlines()[0]
    if "RESOURCE_EXHAUSTED" in reason:
        return (
            f"a device is out of memory ({reason[:200]}); increase config.training.microbatches, set "
            "config.training.remat=True, or take a smaller batch"
        )
    if distributed.count() > 1 and any(word in reason for word in _OF_OTHERS):
        return (
            f"another process of this run has ended or cannot be reached ({reason[:200]}); "
            f"{distributed.AGAIN}"
        )
    return None
