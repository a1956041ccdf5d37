"""Tests the progress of long tasks, and durations and sizes in text."""

import sys
import time

import pytest

from ncsn_jax.app import progress


def test_durations_and_sizes_are_shown_in_suitable_units():
    assert progress.human_bytes(1536) == "1.5 KiB" and progress.human_bytes(3 * 2**40) == "3 TiB"
    assert [progress.human_time(s) for s in (5, 600, 36000)] == ["5 s", "10.0 min", "10.0 h"]


def test_progress_in_a_log_is_a_line_every_20_seconds(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress.progress("drawing", 100, "images") as advanced:
        for _ in range(10):
            now += 7.0
            advanced(10)
    # After 21, 42 and 63 s; seven tenths of a second for each image.
    assert capsys.readouterr().err.splitlines() == [
        "drawing: 30/100 images  49 s left",
        "drawing: 60/100 images  28 s left",
        "drawing: 90/100 images  7 s left",
    ]


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.progress("drawing", 4) as advanced:
        advanced(4)
    assert "drawing:   0%|" in capsys.readouterr().err


@pytest.mark.parametrize("isatty", [True, False])
def test_only_the_first_process_shows_progress(monkeypatch, capsys, isatty):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(progress.jax, "process_index", lambda: 1)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: isatty)
    with progress.progress("drawing", 4) as advanced:
        now = 1000.0
        advanced(2)
    assert capsys.readouterr().err == ""
