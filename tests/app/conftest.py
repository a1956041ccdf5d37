"""Shared fixtures: runs of `main.py` on a tiny network, and a recorder."""

import functools
import logging
import shutil

import pytest

from tests.recording import record_library
from tests.running import run


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """Returns a function from a number of devices to (workdir, output) of an uninterrupted run."""

    @functools.cache
    def make(devices):
        workdir = tmp_path_factory.mktemp(f"on{devices}")
        result = run(workdir, devices=devices)
        assert result.returncode == 0, result.stderr
        return workdir, result.stdout

    return make


@pytest.fixture
def workdir(uninterrupted, tmp_path):
    """Returns a copy of a finished run on one device, which tests may change."""
    return shutil.copytree(uninterrupted(1)[0], tmp_path / "copy")


def close_logs():
    """Closes the log of a run in this process."""
    for handler in list(logging.getLogger("ncsn_jax").handlers):
        handler.close()


@pytest.fixture
def closed_logs():
    """Closes the log of a run in this process after the test."""
    yield
    close_logs()


@pytest.fixture
def record(monkeypatch):
    """Records the application's calls to the library; samplers and solvers do nothing."""
    return record_library(monkeypatch)
