"""Measures the library, and the authors' PyTorch code if there is a checkout, and prints a table.

    python -m benchmarks [--reference DIR] [--rounds N] [--shapes 16,32] [--only train,start] [--write FILE]

Progress goes to standard error. Ctrl-C prints what was measured so far. `benchmarks.rows` lists what it
measures.
"""

import argparse
import contextlib
import importlib.util
import pathlib
import signal
import sys
from collections.abc import Callable

from benchmarks import machine, original, rows, table
from benchmarks.session import BUSY, LEVELS, Options, Session
from ncsn_jax.app import storage


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and, if asked, writes the table; returns the exit status."""
    parser = _make_parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    # SIGTERM then ends the command's processes first, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settings = Options(
        reference=options.reference,
        rounds=options.rounds,
        devices=options.devices,
        sampler_steps=options.sampler_steps,
        warm_up_steps=options.warm_up_steps,
    )
    jobs = rows.plan(options.only, options.shapes, settings)
    measured: list[table.Row] = []
    interrupted = False
    with contextlib.closing(Session(settings, _progress)) as session:
        try:
            for job in jobs:
                measured.append(rows.measure(session, job))
                _progress(table.summary(measured[-1]))
        except KeyboardInterrupt:
            interrupted = True
    text = f"{_header(options, session.others)}\n\n{table.markdown(measured)}"
    failed = sum(row.failed for row in measured)
    problems = []
    if interrupted:
        problems.append(f"interrupted after {len(measured)} of {len(jobs)} rows")
    elif failed:
        problems.append(f"{failed} of {len(jobs)} rows failed")
    if options.write and problems:
        problems.append(f"{options.write} is unchanged")
    elif options.write:
        problems += _write(options.write, text)
    problems += _print(text)
    if problems:
        _progress("; ".join(problems))
    return 130 if interrupted else int(bool(problems))


def _write(file: str, text: str) -> list[str]:
    """Writes the table into a file; returns what went wrong."""
    path = pathlib.Path(file)
    try:
        path.write_text(table.replace(path.read_text(encoding="utf-8"), text), encoding="utf-8")
    except (OSError, ValueError) as error:
        return [f"--write={file}: {_reason(error)}"]
    _progress(f"wrote {path}")
    return []


def _print(text: str) -> list[str]:
    """Prints the table, on standard error if need be; returns what went wrong."""
    try:
        print(text, flush=True)
    except OSError as error:
        _progress(text)
        return [f"standard output: {_reason(error)}"]
    return []


def _reason(error: OSError | ValueError) -> str:
    return str(error.strerror if isinstance(error, OSError) else error)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--reference",
        type=storage.path,
        metavar="DIR",
        help="a checkout of github.com/ermongroup/ncsn to compare with",
    )
    parser.add_argument(
        "--rounds", type=_integer, default=5, help="measurements of each side (default: 5)"
    )
    parser.add_argument(
        "--shapes",
        type=_several(rows.SHAPES),
        default=list(rows.SHAPES),
        help=f"features of the networks, from {_join(rows.SHAPES)} (default: all)",
    )
    parser.add_argument(
        "--only",
        metavar="ROW,...",
        type=_several(rows.NAMES),
        default=list(rows.NAMES),
        help=f"rows to measure, from {_join(rows.NAMES)} (default: all)",
    )
    parser.add_argument(
        "--devices",
        type=_integer,
        help="CPU devices of this library (default: the number that the application chooses)",
    )
    parser.add_argument(
        "--sampler-steps",
        type=_integer,
        default=1000,
        help=f"steps of annealed Langevin, a multiple of {LEVELS} (default: 1000)",
    )
    parser.add_argument(
        "--warm-up-steps",
        type=_integer,
        default=32,
        help="training steps before the rounds of the rows 'train' (default: 32)",
    )
    parser.add_argument(
        "--write",
        type=storage.path,
        metavar="FILE",
        help=f"also replace the table between the lines {table.BEGIN} and {table.END} of this file, "
        "unless a row failed",
    )
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Reports mistakes at once, on one line, that would otherwise show only much later."""
    if options.sampler_steps % LEVELS:
        parser.error(f"--sampler-steps={options.sampler_steps} must be a multiple of {LEVELS}")
    if options.reference is not None:
        # Workers have a different working directory.
        options.reference = str(pathlib.Path(options.reference).resolve())
        if missing := original.missing_file(options.reference):
            parser.error(
                f"--reference={options.reference} is not a checkout of github.com/ermongroup/ncsn: "
                f"it has no {missing}"
            )
        if importlib.util.find_spec("torch") is None:
            parser.error("--reference needs PyTorch: pip install torch")
    if options.write is not None:
        try:
            table.replace(pathlib.Path(options.write).read_text(encoding="utf-8"), "")
        except (OSError, ValueError) as error:
            parser.error(f"--write={options.write}: {_reason(error)}")


def _header(options: argparse.Namespace, others: list[float]) -> str:
    devices = options.devices or "as many as the application takes"
    lines = [
        *machine.describe(),
        f"rounds: {options.rounds}; CPU devices: {devices}; training steps before the "
        f"rounds of the rows 'train': {options.warm_up_steps}",
    ]
    if others:
        busy = sum(cores > BUSY for cores in others)
        lines.append(
            f"cores that other processes used when a round began: {max(others):.1f} at most; "
            f"above {BUSY}, where times mean little, in {busy} of {len(others)} rounds"
        )
    return "\n".join(f"- {line}" for line in lines)


def _integer(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)


def _several(allowed) -> Callable[[str], list]:
    """Returns a parser of allowed values separated by commas, which takes every value once."""

    def parse(text: str) -> list:
        names = {str(value): value for value in allowed}
        given = list(dict.fromkeys(text.split(",")))
        if unknown := [name for name in given if name not in names]:
            raise argparse.ArgumentTypeError(f"must be from {_join(allowed)}, got {unknown[0]!r}")
        return [names[name] for name in given]

    return parse


def _join(values) -> str:
    return ",".join(map(str, values))


if __name__ == "__main__":
    sys.exit(main())
