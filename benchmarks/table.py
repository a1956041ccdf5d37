"""Formats the table: its rows, their statistics and units, and its place in a file.

A row's ratio is the median of the rounds' ratios. Each compares two neighbours in time, so that a slowdown of
the whole machine cancels. It need not equal the ratio of the two medians beside it.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

# The table replaces what is between these markers in a file.
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

_FAILED = "failed: "


class Row(NamedTuple):
    """A line of the table; an empty text is an empty cell.

    Attributes:
      title: what is measured.
      ours: this library's figure, or why it could not be measured.
      other: the figure it is compared with.
      ratio: the ratio of ours to the other.
      spread: the smallest and the largest ratio of a round.
      speed: floating-point operations per second, and the machine's.
    """

    title: str
    ours: str = ""
    other: str = ""
    ratio: str = ""
    spread: str = ""
    speed: str = ""

    @property
    def failed(self) -> bool:
        """Returns whether the row says why something could not be measured."""
        return self.ours.startswith(_FAILED)


_HEADS = Row(
    "what", "this library", "compared with", "ratio", "ratio, all rounds", "GFLOP/s of the matmul's"
)


def compare(
    title: str,
    ours: Sequence[float],
    other: Sequence[float] | None = None,
    *,
    unit: Callable[[float], str],
    name: str = "original",
    speed: str = "",
) -> Row:
    """Returns the row of two columns of measurements, paired by rounds.

    Args:
      title: the row's title.
      ours: one number per round, >= 1 of them.
      other: the same for what it is compared with, or None.
      unit: turns a measurement into text.
      name: the name of what it is compared with.
      speed: the last cell.
    """
    row = Row(title, unit(statistics.median(ours)), speed=speed)
    if other is None:
        return row
    ratios = [a / b for a, b in zip(ours, other, strict=True)]
    spread = f"{number(min(ratios))} to {number(max(ratios))}" if len(ratios) > 1 else ""
    return row._replace(
        other=f"{name}: {unit(statistics.median(other))}",
        ratio=number(statistics.median(ratios)),
        spread=spread,
    )


def number(value: float) -> str:
    """Returns a number > 0 with three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def duration(seconds: float) -> str:
    """Returns seconds as text, in milliseconds below one."""
    return f"{number(seconds)} s" if seconds >= 1 else f"{number(1e3 * seconds)} ms"


def megabytes(size: float) -> str:
    """Returns bytes as text."""
    return f"{size / 1e6:,.0f} MB"


def speed(operations: float, seconds: float, peak: float) -> str:
    """Returns operations in `seconds` as text, beside the peak in operations per second."""
    rate = operations / seconds
    return f"{rate / 1e9:.0f} of {peak / 1e9:.0f}, {rate / peak:.0%}"


def failure(title: str, error: Exception) -> Row:
    """Returns the row for something that could not be measured."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return Row(title, f"{_FAILED}{reason}")


def markdown(rows: Iterable[Row]) -> str:
    """Returns the rows as a table."""
    lines = [_line(_HEADS), _line(["---"] * len(_HEADS)), *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "|" + "".join(f" {cell.replace('|', chr(92) + '|')} |" for cell in cells)


def summary(row: Row) -> str:
    """Returns a row as a line of progress."""
    found = ", ".join(
        cell for cell in (row.ours, row.other, row.ratio and f"ratio {row.ratio}") if cell
    )
    return f"{row.title}: {found}"


def replace(text: str, measured: str) -> str:
    """Returns a file's text with the measurements between the two markers.

    Raises:
      ValueError: unless it has one of each, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise ValueError(f"must have one line {BEGIN}, followed by one line {END}")
    return f"{before}{BEGIN}\n\n{measured}\n\n{END}{after}"
