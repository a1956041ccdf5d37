"""Tests what a run's programs, compiled for a TPU topology of two hosts, must and must not contain."""

import functools
import re

import jax
import numpy as np
import pytest

from ncsn_jax.app import build, devices, run_flows, samplers
from ncsn_jax.app.modes import plan
from tests import tiny
from tests.running import load_diffusion_config

pytest.importorskip("libtpu", reason="the TPU compiler is not installed")


@pytest.fixture(scope="module")
def targets():
    found = plan.find_devices("v5e:2x4")
    assert len(found) == 8 and len({device.process_index for device in found}) == 2
    return found


def assert_sound(text):
    assert "f64[" not in text
    assert not re.search(r"callback|\b(send|recv|infeed|outfeed)(-start)?\(", text)


def train_step(targets, around=lambda score: score):
    """Returns the compiled program of a step whose score functions `around` wraps."""
    steps, state, images = plan.train_step_of(tiny.get_config(), targets)
    objective = steps.keywords["objective"]
    changed = objective._replace(score_fn=lambda *args: around(objective.score_fn(*args)))
    steps = functools.partial(steps.func, **steps.keywords | {"objective": changed})
    return devices.compile_train_steps(steps, state, images, targets).as_text()


def test_a_step_averages_over_all_chips_and_donates_its_state(targets):
    text = train_step(targets)
    assert_sound(text)
    averages = [line for line in text.splitlines() if re.search(r" all-reduce(-start)?\(", line)]
    assert 1 <= len(averages) <= 3, averages
    everybody = r"replica_groups=(\{\{0,1,2,3,4,5,6,7\}\}|\[1,8\]<=\[8\]|\{\})"
    assert all(re.search(everybody, line) for line in averages), averages
    # One group has the gradients, the loss, and losses and counts by level; another has the stop signal.
    state = plan.train_step_of(tiny.get_config(), targets)[1]
    sizes = [len(re.findall(r"f32\[", line.partition(" all-reduce")[0])) for line in averages]
    assert max(sizes) == len(jax.tree.leaves(state.params)) + 3, averages
    # Parameters, both moments of Adam, the EMA, and their counts.
    assert text.partition("\n")[0].count("may-alias") == len(jax.tree.leaves(state))


def test_the_check_detects_a_host_callback(targets):
    def around(score):
        return lambda x, t: jax.debug.callback(lambda: None) or score(x, t)

    text = train_step(targets, around)
    with pytest.raises(AssertionError):
        assert_sound(text)


@pytest.mark.parametrize(
    "method", ["annealed_langevin", "predictor_corrector", "heun", "probability_flow"]
)
def test_samplers_compile_and_run_only_on_the_chips(method, targets):
    config = load_diffusion_config(**{"sampling.method": method})
    arguments = plan.sampler_of(config, samplers.make(config), targets)
    text = devices.compile_chains(*arguments, targets).as_text()
    assert_sound(text)
    assert "may-alias" in text.partition("entry_computation")[0]


def test_likelihoods_compile_and_run_only_on_the_chips(targets):
    config = load_diffusion_config()
    function = functools.partial(run_flows.bits_per_dim, config)
    params = jax.eval_shape(build.make_init(config), jax.random.key(0)).params
    on_each = lambda shape, dtype: jax.ShapeDtypeStruct((len(targets), *shape), dtype)
    mapped = jax.pmap(function, devices.AXIS, in_axes=(0, None, 0, 0), devices=targets)
    lowered = mapped.lower(
        jax.tree.map(lambda a: on_each(a.shape, a.dtype), params),
        jax.ShapeDtypeStruct((), np.uint32),
        on_each((2,), np.uint32),
        on_each((2, *build.image_shape(config)), np.uint8),
    )
    assert_sound(lowered.compile().as_text())
