"""The one exception that stands for a mistake of the user, to be shown as a single line.

Here is what keeps messages on one line, whatever they quote.
"""

from collections.abc import Mapping

__all__ = [
    "UserError",
    "differences",
    "one_line",
    "show",
]

# Of a message, which may hold anything found in a file.
_MAX_CHARACTERS = 3000
# Of a value in a message.
_MAX_VALUE = 500


class UserError(Exception):
    """Something the user can mend: the message names the field or file, what was found, what is allowed.

    It is one printable line whatever it quotes; see `one_line`. `main.py` prints it after "error: " and
    exits with 1. `cli` treats failures of the operating system and of the devices' memory alike; every other
    exception keeps its traceback.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def show(value: object) -> str:
    """Returns a value as messages quote it: its repr, on one line and not too long."""
    try:
        text = one_line(repr(value))
    except Exception:  # such as that of a number of more than 4300 digits
        return f"<{type(value).__name__}>"
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]} ..."


def differences(
    there: Mapping[str, object], here: Mapping[str, object], most: int | None = None
) -> str:
    """Returns what differs between two mappings, such as `"a is 1 there and 2 here; b is ..."`, or `""`.

    Of more than `most` entries, it names the first `most` and counts the others.
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
    """Returns text on one line: what cannot be printed escaped, and of a long one the middle left out."""
    if len(text) > _MAX_CHARACTERS:
        text = f"{text[: _MAX_CHARACTERS // 2]} ... {text[-_MAX_CHARACTERS // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def __dir__() -> list[str]:
    return __all__
