"""Tests how many devices a CPU is split into."""

import os

import pytest

from ncsn_jax.app import cpu
from ncsn_jax.errors import UserError
from tests import tiny


@pytest.fixture
def config():
    return tiny.get_config()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "")


def count(config, features, batch_size, microbatches=1):
    config.model.features = features
    config.training.batch_size, config.training.microbatches = batch_size, microbatches
    return cpu.devices_for(config)


def test_device_count_fits_the_cores_and_divides_the_batch(monkeypatch, config):
    monkeypatch.setattr(cpu, "cores", lambda: 6)
    assert [count(config, 16, n) for n in (1, 4, 8, 9, 24, 25, 64, 100)] == [
        *(1, 1, 2, 1),
        *(6, 5, 4, 5),
    ]
    assert count(config, 16, 64, microbatches=8) == 4
    assert count(config, 16, 64, microbatches=64) == 1
    assert count(config, 95, 64) == 4
    # Each device holds the whole state, which is large for wide networks.
    assert count(config, 96, 64) == 1
    monkeypatch.setattr(cpu, "cores", lambda: 64)
    assert count(config, 16, 64) == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_NUM_CPU_DEVICES", "3"),
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=2"),
    ],
)
def test_the_environment_overrides_the_device_count(name, value, monkeypatch, config):
    assert cpu.devices_for(config) is not None
    monkeypatch.setenv(name, value)
    assert cpu.devices_for(config) is None


@pytest.mark.parametrize("number", ["0", "-1", "two", ""])
def test_an_invalid_device_count_is_refused(monkeypatch, number, config):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", number)
    with pytest.raises(UserError, match=f"JAX_NUM_CPU_DEVICES='{number}' must be an integer"):
        cpu.devices_for(config)
    assert "JAX_NUM_CPU_DEVICES" not in os.environ  # and JAX can be imported


def test_a_container_counts_the_cores_of_its_quota(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(cpu, "_CPU_LIMIT", limit)
    assert cpu.cores() == 8
    for text, count in [
        *(("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("3200000 100000", 8))
    ]:
        limit.write_text(text)
        assert cpu.cores() == count


@pytest.mark.parametrize(
    "field, value",
    [("model.features", 0), ("training.batch_size", -1), ("training.microbatches", 0)],
)
def test_invalid_numbers_are_left_to_the_check(config, field, value):
    section, name = field.split(".")
    config[section][name] = value
    assert cpu.devices_for(config) is None


def test_missing_fields_are_left_to_the_check(config):
    del config.model
    assert cpu.devices_for(config) is None
