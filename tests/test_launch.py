"""How many devices are made of a CPU."""

import os

import pytest

from ncsn_jax import launch
from tests import tiny


@pytest.fixture
def config():
    return tiny.get_config()


def test_devices_are_cores_that_divide_the_batch(monkeypatch):
    monkeypatch.setattr(launch, "cores", lambda: 6)
    assert [launch.cpu_devices(16, n) for n in (1, 4, 8, 9, 24, 25, 64, 100)] == [
        *(1, 1, 2, 1),
        *(6, 5, 4, 5),
    ]
    assert launch.cpu_devices(16, 64, microbatches=8) == 4
    assert launch.cpu_devices(16, 64, microbatches=64) == 1
    assert launch.cpu_devices(95, 64) == 4
    # Each device holds the whole state, which is large for wide networks.
    assert launch.cpu_devices(96, 64) == 1
    monkeypatch.setattr(launch, "cores", lambda: 64)
    assert launch.cpu_devices(16, 64) == 8


def test_the_environment_has_the_last_word(monkeypatch, config):
    monkeypatch.setattr(launch, "cores", lambda: 4)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    launch.use_cores(config)
    assert os.environ["JAX_NUM_CPU_DEVICES"] == "3"
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    launch.use_cores(config)
    assert "JAX_NUM_CPU_DEVICES" not in os.environ
    monkeypatch.setenv("XLA_FLAGS", "")
    launch.use_cores(config)
    assert os.environ["JAX_NUM_CPU_DEVICES"] == str(launch.devices_for(config))


@pytest.mark.parametrize(
    "field, value",
    [("model.features", 0), ("training.batch_size", -1), ("training.microbatches", 0)],
)
def test_numbers_that_the_check_refuses_are_left_to_it(config, field, value):
    section, name = field.split(".")
    config[section][name] = value
    assert launch.devices_for(config) is None
