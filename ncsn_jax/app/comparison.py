"""Tables and pictures of what `--mode=evaluate` found, for one run or several."""

import io
import json
import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ncsn_jax.app import storage
from ncsn_jax.errors import UserError

# "frechet_pixels_1000", "frechet_pixels_real_297".
_NUMBERED = re.compile(r"(?P<measure>.+?)(?P<real>_real)?_(?P<count>\d+)")

# Names of lines up to this length fit into two columns.
_LONG = 90

# Fields that decide how many evaluations a sample takes; a line of the picture joins their values.
_COSTS = ("num_steps", "steps_per_level", "corrector_steps", "num_levels", "rtol", "atol")

# The measures that the picture shows, at most three, the first that there are.
_DRAWN = ("fid", "frechet_inception", "frechet_classifier", "recognised", "frechet_pixels")

# FID of fewer samples is not comparable with published ones.
_PUBLISHED = 50_000


# What begins the names of distances that fall with the number of images.
_BIASED = ("fid", "frechet_")


class Row(NamedTuple):
    """The figures of one set of images.

    Attributes:
      run: the path of the run, or of the file.
      step: the checkpoint's, or None.
      configuration: a digest of the run's, without its seed.
      sampler: the settings that determine the samples, by field; empty for real images and files.
      name: what the set is called within its run.
      count: the number of images; measures of another number carry it in their name.
      values: (value, standard error or None) by measure.
      digests: what tells figures that cannot be compared, by features.
      is_real: whether these are images that the run has not seen.
    """

    run: str
    step: int | None
    configuration: str
    sampler: dict
    name: str
    count: int
    values: dict
    digests: dict
    is_real: bool = False


def find(directory: str) -> list[Row]:
    """Returns the rows of a work directory: the real images, and every evaluation."""
    samples, real = [], None
    folder = os.path.join(directory, "evaluation")
    for name in sorted(storage.list_names(folder), key=_in_order):
        summary = storage.read_json(os.path.join(folder, name, "summary.json"))
        if summary is None:
            continue
        for row in rows_of(summary, directory, name.partition("_")[2].partition("_")[2]):
            if not row.is_real:
                samples.append(row)
            elif real is None:
                real = row
            else:
                both = real.values | row.values, real.digests | row.digests
                real = real._replace(values=both[0], digests=both[1])
    return ([real] if real else []) + samples


def _in_order(name: str) -> list:
    """Orders names by the numbers in them."""
    return [float(t) if i % 2 else t for i, t in enumerate(re.split(r"(\d+(?:\.\d+)?)", name))]


def rows_of(summary: dict, run: str, name: str) -> list[Row]:
    """Returns the rows of one `summary.json`: of samples, and of real images if it has them."""
    rows = []
    for number in sorted({found["samples"] for found in summary["by"].values()}, reverse=True):
        by = {name: found for name, found in summary["by"].items() if found["samples"] == number}
        more = {} if rows else {name: v for name, v in summary.items() if name != "by"}
        rows += _rows_of_number(summary, by, more, run, name)
    return rows


def _rows_of_number(summary: dict, by: dict, more: dict, run: str, name: str) -> list[Row]:
    """Returns the rows of as many samples: `by` features, and `more` that does not depend on them."""
    figures: dict = {}
    for found in by.values():
        figures |= found
    digests = {features: found["digest"] for features, found in by.items()}
    sets: dict = {False: [], True: []}
    for key, value in (more | figures).items():
        if (found := _NUMBERED.fullmatch(key)) and isinstance(value, int | float):
            error = figures.get(f"{key}_error")
            part = found["measure"], int(found["count"]), (value, error)
            sets[bool(found["real"])].append(part)
    rows = []
    for is_real, parts in sets.items():
        if not parts:
            continue
        most = max(count for _, count, _ in parts)
        values = {m if count == most else f"{m}_{count}": v for m, count, v in parts}
        if not is_real:
            if shares := figures.get("class_shares"):
                values["smallest_class"] = (min(shares), None)
            for key in ("bits_per_dim", "nfe", "seconds_per_sample"):
                if key in summary:
                    values[key] = (summary[key], summary.get(f"{key}_error"))
        rows.append(
            Row(
                run,
                None if is_real else summary.get("step"),
                summary.get("run", ""),
                {} if is_real else summary.get("sampler", {}),
                "unseen images" if is_real else name,
                most,
                values,
                digests,
                is_real,
            )
        )
    return rows


def average_seeds(rows: Sequence[Row]) -> list[Row]:
    """Returns rows with one in place of those that differ only in the seed.

    A value becomes the mean, its error the standard error of the mean over the seeds.

    Raises:
      UserError: if runs that differ in nothing else have the same seed.
    """
    groups: dict = {}
    for row in rows:
        sampler = {field: v for field, v in row.sampler.items() if field != "seed"}
        of_seed = row._replace(run="", values={}, sampler=sampler, digests={})
        key = row.run if row.is_real or not row.sampler else ""
        alike = groups.setdefault((key, json.dumps(of_seed, sort_keys=True)), [])
        for group in alike:  # the first whose figures can be compared
            if all(group[0].digests.get(n, digest) == digest for n, digest in row.digests.items()):
                group.append(row)
                break
        else:
            alike.append([row])
    averaged = []
    for group in (group for alike in groups.values() for group in alike):
        seeds = len({row.sampler.get("seed") for row in group})
        if len(group) == 1:
            averaged += group
            continue
        if seeds < len(group):
            raise UserError(
                f"{group[0].run} and {group[1].run} must differ in the seed to be averaged"
            )
        values = {}
        for measure in group[0].values:
            found = [row.values[measure][0] for row in group if measure in row.values]
            if len(found) == seeds:
                error = np.std(found, ddof=1) / seeds**0.5
                values[measure] = float(np.mean(found)), float(error)
        name = os.path.commonprefix([row.run for row in group])  # noqa: RUF071 (of names too)
        name = name.rstrip("-_./")
        averaged.append(group[0]._replace(run=f"{name}, {seeds} seeds", values=values))
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
    shown = set()
    for row in rows:
        step = "" if row.step is None else str(row.step)
        if row.is_real:  # runs on the same data share their unseen images
            same = json.dumps([row.values, row.digests], sort_keys=True)
            if same in shown:
                continue
            shown.add(same)
        cells = [_number(*row.values[m]) if m in row.values else "" for m in measures]
        lines.append([row.run, step, _describe(row), str(row.count), *cells])
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    if any("fid" in row.values and row.count < _PUBLISHED for row in rows):
        text += (
            f"\nFID of fewer than {_PUBLISHED:,} images is not comparable with published ones.\n"
        )
    for name in sorted({name for row in rows for name in row.digests}):
        if len({row.digests.get(name) for row in rows} - {None}) > 1:
            text += f"\nNot all figures by {name} have the same reference and features: do not compare.\n"
    biased = [m for m in measures if m.startswith(_BIASED)]
    if any(len({row.count for row in rows if m in row.values}) > 1 for m in biased):
        text += (
            "\nFréchet distances fall with the number of images: compare only those of equal n.\n"
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
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
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
    counts = {row.count for row in samples}
    number = f", {min(counts)} samples" if len(counts) == 1 else ""
    by_step = len({row.values["nfe"][0] for row in samples}) < 2
    shown = [m for m in _DRAWN if any(m in row.values for row in samples)][:3]
    labels = _labels(samples, by_step)
    colours = matplotlib.colormaps["tab10" if len(set(labels)) <= 10 else "tab20"]
    figure = Figure(figsize=(max(8, 4.5 * len(shown)), 5), layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(1, max(len(shown), 1)))
    for axes, measure in zip(all_axes, shown, strict=False):
        for i, label in enumerate(dict.fromkeys(labels)):
            line = sorted(
                (
                    row.step if by_step else row.values["nfe"][0],
                    row.values[measure][0],
                    row.values[measure][1] or 0.0,
                )
                for row, of in zip(samples, labels, strict=True)
                if of == label and measure in row.values
            )
            if line:
                x, values, bars = zip(*line, strict=True)
                style = {"marker": "o", "markersize": 4, "capsize": 2, "color": colours(i % 20)}
                axes.errorbar(x, values, bars, label=label, **style)
        for value in {
            row.values[measure][0] for row in rows if row.is_real and measure in row.values
        }:
            axes.axhline(value, color="black", linestyle=":", linewidth=1)
            where = axes.get_yaxis_transform()
            axes.text(0.02, value, "unseen images", fontsize="small", transform=where, va="bottom")
        x_label = "training step" if by_step else "network evaluations of a sample"
        axes.set(xlabel=x_label, title=measure + number)
        scales = {"set_xscale": not by_step, "set_yscale": measure != "recognised"}
        for name, is_log in scales.items():
            if is_log:
                getattr(axes, name)("log", subs=[2, 5])
                axis = axes.xaxis if name == "set_xscale" else axes.yaxis
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("{x:g}")
    if samples:
        found = [
            pair
            for axes in all_axes
            for pair in zip(*axes.get_legend_handles_labels(), strict=True)
        ]
        lines = {name: handle for handle, name in found}
        columns = 2 if max(map(len, lines)) < _LONG else 1
        where = {"loc": "outside lower center", "ncols": columns, "fontsize": "small"}
        figure.legend(list(lines.values()), list(lines), **where)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _labels(rows: Sequence[Row], by_step: bool) -> list[str]:
    """Returns for each row the line of the picture it belongs to: what differs, apart from the cost."""
    several_runs = len({row.run for row in rows}) > 1
    several_counts = len({row.count for row in rows}) > 1
    labels = []
    for row in rows:
        method = row.sampler.get("sampling.method", "")
        of_run = [r for r in rows if r.run == row.run]
        several_steps = not by_step and len({r.step for r in of_run}) > 1
        others = [r.sampler for r in of_run if r.sampler.get("sampling.method") == method]
        differing = [
            f"{field.rpartition('.')[2]}={value}"
            for field, value in row.sampler.items()
            if field.rpartition(".")[2] not in (*_COSTS, "seed", "step")
            and len({repr(other.get(field)) for other in others}) > 1
        ]
        parts = [row.run] * several_runs + [f"step {row.step}"] * several_steps
        parts += [f"n={row.count}"] * several_counts
        labels.append(" ".join([*parts, method, *differing]))
    return labels
