"""Tests what a run logs at its start, and where."""

import datetime
import logging
import types

import numpy as np
import pytest

from ncsn_jax import training
from ncsn_jax.app import logs
from ncsn_jax.errors import UserError
from tests.running import load_config

log = logging.getLogger("ncsn_jax")

pytestmark = pytest.mark.usefixtures("closed_logs")


def test_lines_go_to_standard_output_and_to_the_file_and_tables_only_to_the_file(tmp_path, capsys):
    for number in (1, 2):
        logs.start(str(tmp_path))
        log.debug("table %d", number)
        log.info("line %d", number)
    assert capsys.readouterr().out == "line 1\nline 2\n"
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[19:] for line in lines] == ["  table 1", "  line 1", "  table 2", "  line 2"]
    for line in lines:
        datetime.datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S")
    with pytest.raises(UserError, match="no/log.txt cannot be written: No such file"):
        logs.start(str(tmp_path / "no"))


@pytest.mark.parametrize(
    ("changes", "with_table", "line"),
    [
        ({}, False, None),
        (
            {"training.dtype": "bfloat16"},
            True,
            "training computes in bfloat16, with 1 microbatch(es)",
        ),
        ({"training.microbatches": 2}, True, "training computes in float32, with 2 microbatch(es)"),
    ],
)
def test_a_run_logs_its_parameters_and_devices(changes, with_table, line, tmp_path, capsys):
    logs.start(str(tmp_path))
    params = {"layer": {"kernel": np.zeros((3, 4), np.float32), "bias": np.zeros(5, np.float16)}}
    state = training.TrainState(np.zeros((), np.int32), params, {}, (params["layer"]["bias"],))
    logs.describe(load_config(**changes), state, with_table=with_table)
    lines = capsys.readouterr().out.splitlines()
    # Parameters and gradient of 58 bytes each, the optimizer's 10, the step's 4.
    first = (
        "17 parameters; with gradient, optimizer and EMA 130 B per device; devices: 8 x cpu on 1 "
    )
    assert lines == [f"{first}host(s)", *([line] if line else [])]
    assert ("layer/kernel" in (tmp_path / "log.txt").read_text()) == with_table


def test_a_compiled_step_is_described_by_the_figures_of_the_compiler(tmp_path, capsys):
    logs.start(str(tmp_path))
    memory = types.SimpleNamespace(argument_size_in_bytes=2048, temp_size_in_bytes=1024)
    logs.describe_executable(types.SimpleNamespace(operations=None, memory=None), 3, 2.0)
    logs.describe_executable(types.SimpleNamespace(operations=12345.0, memory=memory), 3, 120.0)
    assert capsys.readouterr().out.splitlines() == [
        "training step compiled in 2 s",
        "training step compiled in 2.0 min; about 37 kFLOP per step and device; memory per "
        "device, estimated by the compiler: 3 KiB (of which 2 KiB state and batch)",
    ]


@pytest.mark.parametrize(
    ("decay", "steps", "said"),
    [
        (
            0.999,
            300,
            "the initial parameters will make up 74 % of the EMA, which samples use",
        ),
        (0.999, 6000, None),
        (0.0, 1, None),
    ],
)
def test_an_ema_dominated_by_the_initial_parameters_is_warned_about(
    decay, steps, said, tmp_path, capsys
):
    logs.start(str(tmp_path))
    logs.warn_of_average(load_config(**{"model.ema_decay": decay, "training.num_steps": steps}))
    output = capsys.readouterr().out
    assert (said in output and "take about 0.98" in output) if said else not output


def test_a_half_life_longer_than_the_run_is_reported_unless_it_is_ramped_up(tmp_path, capsys):
    logs.start(str(tmp_path))
    changes = {"ema_decay": 0.0, "ema_halflife": 5000}
    sizes = {"training.num_steps": 100, "training.batch_size": 50}
    for rampup in (0.05, 0.0):
        assert not capsys.readouterr().out
        fields = {f"model.{name}": v for name, v in (changes | {"ema_rampup": rampup}).items()}
        logs.warn_of_average(load_config(**fields | sizes))
    output = capsys.readouterr().out
    assert "ema_halflife=5000 is too large for 100 steps: the initial parameters" in output
    assert "50 % of the EMA" in output and "take about 753" in output
