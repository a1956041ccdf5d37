"""Tests `--mode=plan`: numbers computed by hand, what fits and what does not, and one-line errors."""

import importlib.util
import types

import jax
import pytest

from ncsn_jax.app import devices
from ncsn_jax.app.modes import plan
from ncsn_jax.errors import UserError
from tests import tiny

KIND = "TPU v5 lite"


def device(process=0):
    return types.SimpleNamespace(device_kind=KIND, process_index=process, platform="tpu")


class Compiled:
    """A compiled program with round figures."""

    def __init__(self, temporary, flop=394e9, traffic=8.19e9):
        self.memory_analysis = lambda: types.SimpleNamespace(
            argument_size_in_bytes=2**30,
            temp_size_in_bytes=temporary,
            generated_code_size_in_bytes=2**28,
        )
        self.cost_analysis = lambda: {"flops": flop, "bytes accessed": traffic}


@pytest.fixture
def world(monkeypatch):
    """Simulates four chips on two hosts; a step takes a GiB for each example of a microbatch."""
    asked = []

    def compile_train_steps(train_steps, state, images, targets, *, remat, packed):
        parts = train_steps.keywords["microbatches"]
        asked.append((images.shape, parts))
        size = images.shape[1] // parts

        if size >= 16:
            message = f"RESOURCE_EXHAUSTED: Ran out of memory. Used {size}.00G of 15.75G hbm."
            raise jax.errors.JaxRuntimeError(message)
        return Compiled(size * 2**30)

    def compile_chains(advance, params, indices, x, targets):
        asked.append(indices.shape)
        return Compiled(2**20, flop=0.0, traffic=819e6)

    monkeypatch.setattr(plan, "find_devices", lambda name: [device(i // 2) for i in range(4)])
    monkeypatch.setattr(devices, "compile_train_steps", compile_train_steps)
    monkeypatch.setattr(devices, "compile_chains", compile_chains)
    return asked


def make_config(**changes):
    config = tiny.get_config()
    config.update_from_flattened_dict(changes)
    return config


def test_times_follow_the_roofline(world, capsys):
    """394 GFLOP at 197 TFLOP/s take 2 ms, 8.19 GB at 819 GB/s 10 ms, and 360,000 steps of 10 ms an hour."""
    plan.plan(make_config(**{"training.num_steps": 360_000, "sampling.steps_per_level": 480}))
    assert world == [((1, 2, 8, 8, 1), 1), (2,)]
    said = capsys.readouterr().out
    assert "local: 4 x TPU v5 lite on 2 host(s), 2 examples of each batch per device" in said
    assert "arguments 1 GiB, temporaries 2 GiB, program 256 MiB; 3.25 GiB of 16 GiB" in said
    assert "a step on each device: about 394 GFLOP and 8.19 GB of traffic" in said
    assert "about 10 ms per step, bound by memory traffic (arithmetic 2 ms, traffic 10 ms)" in said
    assert "360,000 steps: about 60.0 min" in said and "estimates" in said.splitlines()[-1]
    # Two levels of 480 steps of 1 ms and one that denoises, for 125 batches of eight.
    assert "1,000 samples: about 2.0 min, in 125 batches of 8, 961 network evaluations each" in said


def test_the_plan_uses_the_devices_of_the_topology(world, monkeypatch, capsys):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # the platform
    monkeypatch.setattr(plan, "find_devices", lambda name: [device()] * int(name[-1]))
    plan.plan(make_config(**{"plan.topology": "v5e:1x2"}))
    assert "v5e:1x2: 2 x TPU v5 lite on 1 host(s), 4 examples" in capsys.readouterr().out


def test_a_step_is_bound_by_arithmetic_if_that_takes_longer(capsys):
    chip = plan.CHIPS["NVIDIA H200"]
    program = plan.Program(0, 0, 0, 494e9, 4.8e6)
    options = types.SimpleNamespace(dtype="float32", precision="highest")
    assert plan._step_time(program, chip, options, microbatches=2) == pytest.approx(2e-3)
    assert "bound by arithmetic" in capsys.readouterr().out
    chip = plan.CHIPS["TPU v5 lite"]
    assert plan._step_time(program, chip, options) == pytest.approx(6 * 494 / 197 * 1e-3)
    options.dtype = "bfloat16"
    assert plan._step_time(program, chip, options) == pytest.approx(494 / 197 * 1e-3)


def test_a_run_that_does_not_fit_gets_suggestions_that_do(world, capsys):
    """A chip of 16 GiB has 64 examples; here only smaller microbatches help, of 8 and not of 16."""
    plan.plan(make_config(**{"training.batch_size": 256}))
    assert [parts for _, parts in world] == [1, 1, 1, 4, 8]
    said = capsys.readouterr().out
    for tried in ("dtype=bfloat16", "remat=True", "microbatches=4"):
        assert f"with --config.training.{tried}: compiling\n  does not fit: it takes " in said
    assert "with --config.training.microbatches=8: compiling took" in said
    assert "9.25 GiB of 16 GiB" in said and said.endswith("  fits\n")
    assert "training step: compiling\n  does not fit: it takes 64 GiB\n" in said


def test_a_compiled_program_must_still_fit_in_memory(world, monkeypatch, capsys):
    compile_ = lambda *_, **__: Compiled(15 * 2**30)
    monkeypatch.setattr(devices, "compile_train_steps", compile_)
    plan.plan(make_config())
    said = capsys.readouterr().out
    assert "16.2 GiB of 16 GiB\n  does not fit: the device has less memory than that" in said
    assert said.endswith("combine them, or use more devices or a smaller batch\n")


def test_the_required_memory_is_read_only_from_hbm_shortages():
    assert plan.TooLarge("Used 1.5G of 15.75G hbm. Exceeded").needed == 1.5 * 2**30
    at_level_o1 = "required for HLO temporaries (1.5G) exceeds available HBM (15.75G)."
    assert plan.TooLarge(at_level_o1).needed == 1.5 * 2**30
    assert plan.TooLarge("Used 17.00M of 16.00M vmem").needed == 0
    assert "17.00M of 16.00M vmem" in str(plan.TooLarge("Used 17.00M of 16.00M vmem"))


def test_a_batch_that_the_devices_do_not_divide_is_refused(world, monkeypatch):
    monkeypatch.setattr(plan, "find_devices", lambda name: [device()] * 3)
    message = "must be a multiple of the number of devices, 3, times config.training.microbatches=2"
    with pytest.raises(UserError, match=message):
        plan.plan(make_config(**{"training.microbatches": 2}))
    assert not world


def test_an_unknown_device_gets_no_times(capsys):
    plan.plan(make_config(**{"sampling.batch_size": 8}))
    said = capsys.readouterr().out
    assert "local: 8 x cpu on 1 host(s), 1 examples" in said and "gives no times" in said
    assert "training step: compiling took" in said and "sampler (annealed_langevin): comp" in said
    assert "ms a step" not in said


@pytest.mark.parametrize("topology", ["", "v5e", "v5e:3x5", "nonsense"])
def test_an_unknown_topology_is_reported_on_one_line(topology):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    with pytest.raises(UserError, match=f"'{topology}' must be 'local', or a TPU topology such as"):
        plan.find_devices(topology)


def test_a_topology_without_the_tpu_compiler_is_reported_on_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs the TPU compiler: pip install "jax\[tpu\]=='):
        plan.find_devices("v5e:2x2")
