"""`UserError`, the exception for a user's mistake, and functions that keep its message on one line."""

from collections.abc import Mapping

__all__ = [
    "UserError",
    "differences",
    "one_line",
    "show",
]

# A message may quote anything found in a file.
_MAX_CHARACTERS = 3000
_MAX_VALUE = 500


class UserError(Exception):
    """A mistake the user can fix. The message names the field or file, what was found and what is allowed.

    The message is always one printable line; see `one_line`. `main.py` prints it after "error: " and
    exits with 1. `cli` treats operating-system errors and running out of device memory the same way; every
    other exception keeps its traceback.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def show(value: object) -> str:
    """Returns a value's repr for a message, on one line and cut if too long."""
    try:
        text = one_line(repr(value))
    except Exception:  # for example, an integer of more than 4300 digits
        return f"<{type(value).__name__}>"
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]} ..."


def differences(
    there: Mapping[str, object], here: Mapping[str, object], most: int | None = None
) -> str:
    """Returns what differs between two mappings, for example `"a is 1 there and 2 here; b is ..."`, or `""`.

    If more than `most` entries differ, it names the first `most` and counts the rest.
    """
    names = sorted(n for n in there.keys() | here.keys() if there.get(n) != here.get(n))
    parts = [
        f"{n} is {show(there.get(n, 'absent'))} there and {show(here.get(n, 'absent'))} here"
        for n in names[:most]
    ]
    if more := len(names) - len(parts):
        parts.append(f"and {more} more")
    return "; ".join(parts)


def one_line(text: str) -> str:
    """Returns text on one line: escapes unprintable characters and cuts the middle of long text."""
    if len(text) > _MAX_CHARACTERS:
        text = f"{text[: _MAX_CHARACTERS // 2]} ... {text[-_MAX_CHARACTERS // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def __dir__() -> list[str]:
    return __all__
