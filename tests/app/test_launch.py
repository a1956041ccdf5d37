"""How many devices are made of a CPU."""

import os
import sys

import pytest

from ncsn_jax.app import launch
from ncsn_jax.errors import UserError
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
    config.training.batch_size, config.training.microbatches = 24, 3
    monkeypatch.delitem(sys.modules, "jax")
    launch.use_cores(config)
    assert os.environ["JAX_NUM_CPU_DEVICES"] == "4"


@pytest.mark.parametrize("number", ["0", "-1", "two", ""])
def test_a_number_of_devices_that_is_none_is_refused(monkeypatch, config, number):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", number)
    with pytest.raises(UserError, match=f"JAX_NUM_CPU_DEVICES='{number}' must be a whole number"):
        launch.use_cores(config)
    assert "JAX_NUM_CPU_DEVICES" not in os.environ  # and JAX can be imported


def test_a_jax_that_is_imported_hears_of_the_devices(monkeypatch, config):
    told = []
    config.training.batch_size = 64
    monkeypatch.setattr(launch, "cores", lambda: 4)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setattr(sys.modules["jax"].config, "update", lambda *given: told.append(given))
    launch.use_cores(config)
    assert told == [("jax_num_cpu_devices", 4)]
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")


def test_a_container_has_the_cores_of_its_share(monkeypatch, tmp_path):
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(launch, "_CPU_LIMIT", limit)
    assert launch.cores() == 8
    for text, count in [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1)]:
        limit.write_text(text)
        assert launch.cores() == count


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What the process would be replaced by, where everything is as it should be."""
    calls = []
    enabled = tmp_path / "enabled"
    enabled.write_text("always [madvise] never")
    monkeypatch.setattr(launch, "_LARGE_PAGES_ARE", enabled)
    monkeypatch.setattr(launch.sys, "orig_argv", ["python3", "-I", "main.py", "--workdir=x"])
    monkeypatch.setattr(launch.os, "confstr", lambda name: "glibc 2.36", raising=False)
    monkeypatch.setattr(launch.os, "execve", lambda *given: calls.append(given))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return calls


def test_a_program_is_started_again_with_large_pages(started):
    launch.use_large_pages(os.path.abspath("main.py"))
    ((program, arguments, environment),) = started
    assert program == sys.executable
    assert arguments == [sys.executable, "-I", "main.py", "--workdir=x"]
    assert environment == os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def test_a_program_is_not_started_again_in_vain(started, monkeypatch, tmp_path):
    launch.use_large_pages(os.path.abspath("notebook.py"))
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    launch.use_large_pages(os.path.abspath("main.py"))
    monkeypatch.delenv("GLIBC_TUNABLES")
    for library in ("glibc 2.34", "musl", None):
        monkeypatch.setattr(launch.os, "confstr", lambda name, found=library: found, raising=False)
        launch.use_large_pages(os.path.abspath("main.py"))
    monkeypatch.setattr(launch.os, "confstr", lambda name: "glibc 2.36", raising=False)
    monkeypatch.setattr(launch, "_LARGE_PAGES_ARE", tmp_path / "absent")
    launch.use_large_pages(os.path.abspath("main.py"))
    assert started == []


def test_a_program_that_cannot_be_started_again_goes_on(started, monkeypatch):
    def fail(*given):
        raise OSError("no")

    monkeypatch.setattr(launch.os, "execve", fail)
    launch.use_large_pages(os.path.abspath("main.py"))


@pytest.mark.parametrize(
    "field, value",
    [("model.features", 0), ("training.batch_size", -1), ("training.microbatches", 0)],
)
def test_numbers_that_the_check_refuses_are_left_to_it(config, field, value):
    section, name = field.split(".")
    config[section][name] = value
    assert launch.devices_for(config) is None


def test_missing_fields_are_left_to_the_check(config):
    del config.model
    assert launch.devices_for(config) is None
