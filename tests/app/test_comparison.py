"""Tables and pictures of evaluations, from summaries written by hand."""

import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from ncsn_jax import compare
from ncsn_jax.app import comparison
from tests.running import ROOT


def write(root, run, name, seed=0, configuration="c", digest="a", **figures):
    """Writes a summary of 100 samples by pixels."""
    directory = root / run / "evaluation" / name
    directory.mkdir(parents=True)
    step = int(name.split("_")[1])
    sampler = {"sampling.method": "heun", "sampling.churn": 0, "seed": seed, "step": step}
    pixels = {"digest": digest, "samples": 100} | {
        "frechet_pixels_100": 0.123456,
        "frechet_pixels_100_error": 0.0123,
        "frechet_pixels_real_100": 0.3,
        "recognised_100": 0.75,
        "class_shares": [0.25, 0.75],
    }
    of_samples = {"copies_50": 0.01, "nfe": 19.0, "seconds_per_sample": 0.5}
    summary = {
        "step": step,
        "run": configuration,
        "sampler": sampler | figures.pop("sampler", {}),
        **{name: figures.pop(name, value) for name, value in of_samples.items()},
        "by": {"pixels": pixels | figures},
    }
    (directory / "summary.json").write_text(json.dumps(summary))
    return str(root / run)


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def parse(text):
    """Returns the rows of a Markdown table as dictionaries, and what stands below it."""
    lines = text.splitlines()
    head, table = cells(lines[0]), [line for line in lines[2:] if line.startswith("|")]
    return [dict(zip(head, cells(line), strict=True)) for line in table], lines[2 + len(table) :]


def run_compare(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare"])
    compare.main([str(a) for a in arguments])
    return parse(capsys.readouterr().out)


def test_a_table_has_real_images_and_every_evaluation(tmp_path, monkeypatch, capsys):
    for name, nfe in (("step_3000_num_steps=10", 19.0), ("step_3000_num_steps=5", 9.0)):
        run = write(tmp_path, "digits", name, nfe=nfe)
    write(tmp_path, "digits", "step_500", frechet_pixels_100=2.0, frechet_pixels_100_error=None)
    rows, below = run_compare(monkeypatch, capsys, run)
    assert [r["sampler"] for r in rows] == [
        *("unseen images", "heun", "heun, num_steps=5", "heun, num_steps=10")
    ]
    assert [r["step"] for r in rows] == ["", "500", "3000", "3000"]
    assert [r["n"] for r in rows] == ["100"] * 4 and [r["run"] for r in rows] == [run] * 4
    assert [r["nfe"] for r in rows] == ["", "19", "9", "19"]
    pixels = [r["frechet_pixels"] for r in rows]
    assert pixels == ["0.3", "2", "0.123 ± 0.012", "0.123 ± 0.012"]
    assert rows[1]["smallest_class"] == "0.25" and rows[1]["copies_50"] == "0.01"
    assert not below
    rows, _ = run_compare(monkeypatch, capsys, run, "--measures=copies_50,nfe")
    assert list(rows[1]) == ["run", "step", "sampler", "n", "copies_50", "nfe"]


def test_the_mean_over_seeds_and_its_standard_error(tmp_path, monkeypatch, capsys):
    values = (0.2, 0.3, 0.1)
    paths = [
        write(tmp_path, f"digits_{s}", "step_3000", seed=s, frechet_pixels_100=v)
        for s, v in enumerate(values)
    ]
    others = [  # of another configuration, and by another reference
        write(tmp_path, "other_1", "step_3000", seed=5, configuration="d"),
        write(tmp_path, "other_2", "step_3000", seed=6, digest="b"),
    ]
    rows, below = run_compare(monkeypatch, capsys, *paths, *others, "--average_seeds")
    rows = [r for r in rows if r["sampler"] != "unseen images"]
    digits = str(tmp_path / "digits")
    assert [r["run"] for r in rows] == [f"{digits}, 3 seeds", *reversed(others)]
    error = np.std(values, ddof=1) / np.sqrt(3)
    assert rows[0]["frechet_pixels"] == f"0.200 ± {error:.3f}"
    assert rows[1]["frechet_pixels"] == "0.123 ± 0.012" and "pixels" in below[-1]
    rows, _ = run_compare(monkeypatch, capsys, *paths[:2], paths[0])
    assert [r["run"] for r in rows] == [paths[0], *paths[:2]]  # the unseen images are the same
    twice = write(tmp_path, "twice", "step_3000", seed=0)
    with pytest.raises(SystemExit):
        run_compare(monkeypatch, capsys, paths[0], twice, "--average_seeds")
    assert "must differ in the seed" in capsys.readouterr().err


def test_notes_tell_what_cannot_be_compared(tmp_path, monkeypatch, capsys):
    one = write(tmp_path, "one", "step_1", fid_100=3.0)
    two = write(tmp_path, "two", "step_1", fid_50000=3.0, kid_10000=0.1)
    three = write(tmp_path, "three", "step_1", digest="b")
    _, below = run_compare(monkeypatch, capsys, one)
    assert below == ["", "FID of fewer than 50,000 images is not comparable with published ones."]
    rows, below = run_compare(monkeypatch, capsys, two)
    (samples,) = (r for r in rows if r["n"] == "50000")
    assert (samples["fid"], samples["kid_10000"], samples["frechet_pixels_100"]) == (
        "3",
        "0.1",
        "0.123 ± 0.012",
    )
    assert not below
    _, below = run_compare(monkeypatch, capsys, one, two)
    assert "compare only those of equal n" in below[-1]
    _, below = run_compare(monkeypatch, capsys, one, three)
    assert "Not all figures by pixels have the same reference" in below[-1]


def test_mistakes_are_one_line(tmp_path, capsys):
    run = write(tmp_path, "digits", "step_1")
    for arguments, message in (
        ([str(tmp_path)], "holds no run: config.json is missing"),
        ([run, "--measures=fid"], "fid must be one of the measures found: frechet_pixels"),
        (["samples.npz"], "samples.npz needs a run beside it"),
    ):
        with pytest.raises(SystemExit):
            compare.main(arguments)
        assert message in capsys.readouterr().err


def test_lines_of_the_picture_join_what_differs_only_in_cost(tmp_path, monkeypatch):
    for steps in (5, 10):
        for churn in (0, 5):
            sampler = {"sampling.num_steps": steps, "sampling.churn": churn}
            name = f"step_7_{steps}_{churn}"
            run = write(tmp_path, "digits", name, sampler=sampler, nfe=float(steps))
    rows = comparison.find(run)
    samples = [row for row in rows if not row.is_real]
    assert sorted(comparison._labels(samples, False)) == 2 * ["heun churn=0"] + 2 * ["heun churn=5"]
    path = tmp_path / "quality.png"
    monkeypatch.setattr(sys, "argv", ["compare"])
    compare.main([run, f"--picture={path}"])
    with Image.open(path) as picture:
        assert picture.size[0] >= 800


def test_the_tables_of_the_results_are_printed_from_their_files(monkeypatch, capsys):
    page = (ROOT / "docs" / "results.md").read_text()
    commands = re.findall(
        r"python -m ncsn_jax.compare docs/(results/\w+\*) (.*?)\n```", page, re.DOTALL
    )
    assert len(commands) == 2
    monkeypatch.chdir(ROOT)
    for names, options in commands:
        paths = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob(names))
        compare.main([*paths, *options.replace("\\\n", " ").split()])
        table = capsys.readouterr().out
        assert table.count("\n") > 3 and table.partition("\n\n")[0] in page
