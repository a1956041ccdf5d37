"""Runs of `main.py` on a tiny network, which several modules' tests look at."""

import functools
import logging
import shutil

import pytest

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
    """A copy of a finished run on one device, to be changed."""
    return shutil.copytree(uninterrupted(1)[0], tmp_path / "copy")


@pytest.fixture
def closed_logs():
    """Closes the log of a run in this process."""
    yield
    for handler in list(logging.getLogger("ncsn_jax").handlers):
        handler.close()
