"""Fixtures of the application's tests."""

import pytest

from tests.recording import record_library


@pytest.fixture
def record(monkeypatch):
    """A recorder of what the application calls in the library; samplers and solvers do nothing."""
    return record_library(monkeypatch)
