"""Tables and pictures of what `--mode=evaluate` found, for one run or several."""

import io
import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ncsn_jax.app import storage
from ncsn_jax.errors import UserError

# "frechet_pixels_1000", "frechet_pixels_real_297", "frechet_pixels_1000_error".
_NUMBERED = re.compile(r"(?P<measure>.+?)(?P<real>_real)?_(?P<count>\d+)(?P<error>_error|_std)?")

# Fields that decide how many evaluations a sample takes; a line of the picture joins their values.
_COSTS = ("num_steps", "steps_per_level", "corrector_steps", "num_levels", "rtol", "atol")

# The measures that the picture shows, at most three, the first that there are.
_DRAWN = ("fid", "frechet_inception", "frechet_classifier", "recognised", "frechet_pixels")

# FID of fewer samples is not comparable with published ones.
_PUBLISHED = 50_000


class Row(NamedTuple):
    """The figures of one set of images.

    Attributes:
      run: the name of the run, or of the file; "" for real images.
      step: the checkpoint's, or None.
      sampler: the settings that determine the samples, by field; empty for real images and files.
      name: what the set is called within its run.
      count: the number of images.
      values: (value, standard error or None) by measure.
      digests: of the features by which they were found.
      is_real: whether these are images that the run has not seen.
    """

    run: str
    step: int | None
    sampler: dict
    name: str
    count: int
    values: dict
    digests: dict
    is_real: bool = False


def find(directory: str) -> list[Row]:
    """Returns the rows of all evaluations in a work directory."""
    rows = []
    run = os.path.basename(os.path.normpath(directory))
    folder = os.path.join(directory, "evaluation")
    for name in sorted(storage.list_names(folder), key=_in_order):
        summary = storage.read_json(os.path.join(folder, name, "summary.json"))
        if summary is not None:
            rows += rows_of(summary, run, name.partition("_")[2].partition("_")[2])
    return merge_real(rows)


def merge_real(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with those of the same real images made one, first."""
    real: list[Row] = []
    for row in rows:
        if not row.is_real:
            continue
        for i, other in enumerate(real):
            agree = all(other.values.get(m, value) == value for m, value in row.values.items())
            if other.count == row.count and agree:
                both = other.values | row.values, other.digests | row.digests
                real[i] = other._replace(values=both[0], digests=both[1])
                break
        else:
            real.append(row)
    return real + [row for row in rows if not row.is_real]


def _in_order(name: str) -> list:
    """Orders names by the numbers in them."""
    return [float(t) if i % 2 else t for i, t in enumerate(re.split(r"(\d+(?:\.\d+)?)", name))]


def rows_of(summary: dict, run: str, name: str) -> list[Row]:
    """Returns the rows of one `summary.json`: of real images, if it has them, and of samples."""
    values: dict = {}
    for key, value in summary.items():
        found = _NUMBERED.fullmatch(key)
        if found and not found["error"] and found["measure"] != "copies":
            error = summary.get(f"{key}_error", summary.get(f"{key}_std"))
            of_set = values.setdefault((bool(found["real"]), int(found["count"])), {})
            of_set[found["measure"]] = (value, error)
    rows = []
    for (is_real, count), figures in sorted(values.items(), key=lambda item: not item[0][0]):
        more = {}
        if not is_real:
            if shares := summary.get("class_shares"):
                more["smallest_class"] = (min(shares), None)
            for key, value in summary.items():
                if key.startswith("copies_") or key in (
                    "nfe",
                    "seconds_per_sample",
                    "bits_per_dim",
                ):
                    measure = "copies" if key.startswith("copies_") else key
                    more[measure] = (value, summary.get(f"{key}_error"))
        sampler = {} if is_real else summary.get("sampler", {})
        rows.append(
            Row(
                "" if is_real else run,
                None if is_real else summary.get("step"),
                sampler,
                "unseen images" if is_real else name,
                count,
                figures | more,
                summary.get("digests", {}),
                is_real,
            )
        )
    return rows


def average_seeds(rows: Sequence[Row]) -> list[Row]:
    """Returns rows with one in place of those that differ only in the seed.

    These are of runs whose names differ only in a number at the end. A value becomes the mean, its error the
    standard error of the mean over the seeds.
    """
    groups: dict = {}
    for row in rows:
        base = re.sub(r"[-_]?(seed)?[-_]?\d+$", "", row.run)
        sampler = {field: v for field, v in row.sampler.items() if field != "seed"}
        key = base, row.step, row.name, row.count, row.is_real, repr(sorted(sampler.items()))
        groups.setdefault(key, []).append(row)
    averaged = []
    for (base, *_), group in groups.items():
        seeds = len({row.sampler.get("seed") for row in group})
        if seeds == 1 or seeds < len(group):
            averaged += group
            continue
        values = {}
        for measure in set.intersection(*(set(row.values) for row in group)):
            found = [row.values[measure][0] for row in group]
            values[measure] = float(np.mean(found)), float(np.std(found, ddof=1) / seeds**0.5)
        values = {measure: values[measure] for measure in group[0].values if measure in values}
        averaged.append(group[0]._replace(run=f"{base}, {seeds} seeds", values=values))
    return averaged


def table(rows: Sequence[Row], measures: Sequence[str] = ()) -> str:
    """Returns a Markdown table of rows, with notes below it.

    Args:
      rows: the rows.
      measures: the columns; by default all.

    Raises:
      UserError: if no row has one of the measures.
    """
    found = list(dict.fromkeys(m for row in rows for m in row.values))
    if unknown := [m for m in measures if m not in found]:
        raise UserError(f"{unknown[0]} must be one of the measures found: {', '.join(found)}")
    costs = [m for m in ("nfe", "seconds_per_sample") if m in found]
    measures = measures or costs + [m for m in found if m not in costs]
    lines = [
        ["run", "step", "sampler", "n", *measures],
        ["---"] * (4 + len(measures)),
    ]
    for row in rows:
        step = "" if row.step is None else str(row.step)
        cells = [_number(*row.values[m]) if m in row.values else "" for m in measures]
        lines.append([row.run, step, _describe(row), str(row.count), *cells])
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    if any("fid" in row.values and row.count < _PUBLISHED for row in rows):
        text += (
            f"\nFID of fewer than {_PUBLISHED:,} images is not comparable with published ones.\n"
        )
    for name in sorted({name for row in rows for name in row.digests}):
        if len({row.digests.get(name) for row in rows} - {None}) > 1:
            text += (
                f"\nNot all rows have the same {name} features: their figures cannot be compared.\n"
            )
    return text


def _describe(row: Row) -> str:
    method = row.sampler.get("sampling.method", "")
    return row.name if method in row.name else ", ".join(filter(None, [method, row.name]))


def _number(value: float, error: float | None) -> str:
    """Returns a value rounded to two digits of its error, or to four digits."""
    if value is None or not math.isfinite(value):
        return str(value)
    if not error or not math.isfinite(error):
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def draw(rows: Sequence[Row]) -> bytes:
    """Plots quality against the evaluations of a sample, or against the step if these are all the same.

    Returns:
      A PNG file.
    """
    import matplotlib
    from matplotlib.figure import Figure  # pyplot would change a notebook's display

    samples = [row for row in rows if "nfe" in row.values]
    by_step = len({row.values["nfe"][0] for row in samples}) < 2
    shown = [m for m in _DRAWN if any(m in row.values for row in samples)][:3]
    labels = _labels(samples, by_step)
    colours = matplotlib.colormaps["tab10" if len(set(labels)) <= 10 else "tab20"]
    figure = Figure(figsize=(max(8, 4.5 * len(shown)), 5), layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(1, max(len(shown), 1)))
    for axes, measure in zip(all_axes, shown, strict=False):
        for i, label in enumerate(dict.fromkeys(labels)):
            line = sorted(
                (row.step if by_step else row.values["nfe"][0], *row.values[measure])
                for row, of in zip(samples, labels, strict=True)
                if of == label and measure in row.values
            )
            if line:
                x, values, errors = zip(*line, strict=True)
                bars = [error or 0.0 for error in errors]
                style = {"marker": "o", "markersize": 4, "capsize": 2, "color": colours(i % 20)}
                axes.errorbar(x, values, bars, label=label, **style)
        for row in rows:
            if row.is_real and measure in row.values:
                axes.axhline(row.values[measure][0], color="black", linestyle=":", linewidth=1)
                axes.text(0.02, row.values[measure][0], "unseen images", fontsize="small",
                          transform=axes.get_yaxis_transform(), va="bottom")  # fmt: skip
        x_label = "training step" if by_step else "network evaluations of a sample"
        axes.set(xlabel=x_label, title=f"{measure}, {max(row.count for row in samples)} samples")
        if not by_step:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
        if measure != "recognised":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
    if samples:
        handles, names = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _labels(rows: Sequence[Row], by_step: bool) -> list[str]:
    """Returns for each row the line of the picture it belongs to: what differs, apart from the cost."""
    several_runs = len({row.run for row in rows}) > 1
    several_steps = not by_step and len({row.step for row in rows}) > 1
    labels = []
    for row in rows:
        method = row.sampler.get("sampling.method", "")
        others = [r.sampler for r in rows if r.sampler.get("sampling.method") == method]
        differing = [
            f"{field.rpartition('.')[2]}={value}"
            for field, value in row.sampler.items()
            if field.rpartition(".")[2] not in (*_COSTS, "seed", "step")
            and len({repr(other.get(field)) for other in others}) > 1
        ]
        parts = [row.run] * several_runs + [f"step {row.step}"] * several_steps
        labels.append(" ".join([*parts, method, *differing]))
    return labels
