"""Holds a generator of malformed inputs for every public entry point, for `tests.fuzz`.

An entry point's `make(case)` writes what it needs to the case's room and returns (call, path): a function
without arguments, and the path that a refusal has to name, or None. Its only randomness is the case's.
This module has what the generators share; those are in modules by subject, which fill `ENTRIES`.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass
class Entry:
    """An entry point.

    Attributes:
      make: the generator.
      weight: its share of the cases.
      modules: what its process imports before the first case; none for those that fork.
      kind: "application" or "library", which refuse differently.
      limit: seconds for a case.
    """

    make: Callable
    weight: float
    modules: tuple[str, ...] = ()
    kind: str = "application"
    limit: float = 20


ENTRIES: dict[str, Entry] = {}


def entry(weight, *modules, **options):
    """Registers a generator; the arguments are those of Entry."""

    def register(make):
        ENTRIES[make.__name__.removeprefix("make_")] = Entry(make, weight, modules, **options)
        return make

    return register


class Failure(Exception):
    """A fault in a case that returned."""


def judge(text: str, path: str | None) -> None:
    """Raises Failure unless a message is one line that names the path."""
    if not text.strip() or not text.isprintable():
        raise Failure(f"the message is not one printable line: {text!r}")
    if len(text) > 6000:
        raise Failure(f"the message has {len(text)} characters: {text[:200]!r} ...")
    if text.rstrip().endswith((":", " (", ";")):
        raise Failure(f"the message ends in the middle: {text!r}")
    shown = {path, repr(path)[1:-1], ascii(path)[1:-1]}
    if path and len(path) < 500 and not any(form in text for form in shown):
        raise Failure(f"the message does not name {path!r}: {text!r}")


def listed(text: str) -> list[str]:
    """Splits a text at its bars."""
    return text.split("|")


NAMES = listed(
    "a.png|b.jpg|c.jpeg|D.PNG|..png|...png|-rf.png|--help.png|new\nline.png|tab\tand\rreturn.png|"
    "escape\x1b[31m.png|\udcff\udcfe.png|ünïcödé 図.png|\u202egnp.exe.png|%s%n{0}.png|$(touch x).png|"
    "a'b\"c`.png| .png|*.png|\\.png|.hidden.png|notes.txt|no suffix|~.png|#.png|con.png|a:b.png|"
    f"{'x' * 250}.png"
)
# As paths, these are in the working directory or beside it, and do not exist.
HARMLESS = "| |\0|a\0b|\n|two\nlines|\ud800|\udcff|é図|\x1b[31m|.|..|../outside|../../outside/below"
STRINGS = "|/|/dev/null|~|~nobody/x|$HOME|%s|{0}|None|nan|-1|--help|'|\"|"
STRINGS = listed(HARMLESS + STRINGS + 300 * "x" + "|" + 5000 * "x")
HARMLESS = listed(HARMLESS)

# fmt: off
NUMBERS = [
    0, 1, 2, 3, 7, 8, -1, -2, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**9, 10**18, 10**400,
    0.0, -0.0, 0.5, 1.0, 1.5, -1.0, 1e-300, 5e-324, 1e-45, 1e-20, 1e20, 3.5e38, 1e300, 1 - 1e-12,
    float("inf"), float("-inf"), float("nan"),
]
# fmt: on
HUGE = [10**5000, -(10**5000)]  # too long to print as decimals


def any_value(rng):
    """Returns any Python value."""
    # fmt: off
    others = [
        None, True, False, (), [], {}, (0.0, 1.0), (1.0, 0.0), (0.0, float("nan")), (0, 1, 2), ("a", "b"),
        [0, 1], ((0, 1), 2), b"bytes", 1j, object(), float, range(3), {"a": 1}, {1, 2}, np.float32(0.5),
        np.float64(0.5), np.int64(8), np.bool_(True), np.arange(3), np.zeros(()), *HUGE,
    ]
    # fmt: on
    return rng.choice(rng.choice([NUMBERS, NUMBERS, NUMBERS, STRINGS, others, others, others]))


def mutate(rng, data: bytes) -> bytes:
    """Returns damaged bytes."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at, other = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
        length = rng.choice([1, 2, 4, 16, 100])
        piece = data[at : at + length]
        kind = rng.randrange(9)
        if kind == 0:
            del data[at:]
        elif kind == 1 and data:
            for _ in range(rng.choice([1, 1, 4, 50])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            noise, copy = rng.randbytes(length), data[other : other + length]
            pieces = [noise, noise + piece, b"", piece * 101, copy, bytes(length), b"\xff" * length]
            data[at : at + length] = rng.choice(pieces)
    return bytes(data)


def alter(rng, tree: dict | list, make: Callable) -> None:
    """Replaces, adds or removes something in a tree of dicts and lists, in place."""
    holders = [tree]
    for holder in holders:
        for item in holder.values() if isinstance(holder, dict) else holder:
            if isinstance(item, dict | list) and all(item is not known for known in holders):
                holders.append(item)
    holder = rng.choice(holders)
    keys = (
        [*holder, "x", "\n", "\ud800", 5, None]
        if isinstance(holder, dict)
        else [*range(len(holder))]
    )
    for key in rng.sample(keys, min(1, len(keys))):
        if rng.random() < 0.8:
            holder[key] = make()
        elif isinstance(holder, list) or key in holder:
            del holder[key]


def special(rng, path: str) -> None:
    """Makes something other than an ordinary file at a path, or a file of no use."""
    file = pathlib.Path(path)
    target = rng.choice(["nowhere", file.name])
    garbage = rng.randbytes(rng.choice([0, 0, 1, 100, 10_000]))
    link, write = lambda: file.symlink_to(target), lambda: file.write_bytes(garbage)
    rng.choice([file.mkdir, link, write])()


def place(rng, path: str, make: Callable[[], bytes], p: float = 0.1) -> None:
    """Writes what `make` returns to a path; with probability p something special is there instead."""
    if rng.random() < p:
        special(rng, path)
    else:
        pathlib.Path(path).write_bytes(make())


class Harmful:
    """Writes a forbidden file if it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch harmed ../outside/harmed",)


from tests.hostile import commands, library, pictures, torch_files, workdirs  # noqa: E402, F401
