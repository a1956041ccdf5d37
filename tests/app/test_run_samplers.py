"""Tests samplers on eight devices."""

import numpy as np
import pytest

from ncsn_jax._random import Stream
from ncsn_jax.app import devices, run_samplers, workdirs
from ncsn_jax.errors import UserError
from tests.app.modes import runs
from tests.app.modes.runs import ladder_run, small_network

__all__ = ["ladder_run", "small_network"]


@pytest.fixture
def params(ladder_run):
    _, state = workdirs.load(runs.ladder_config(), ladder_run)
    return devices.replicate(state.ema_params)


def test_samples_and_frames_do_not_depend_on_the_batch(params):
    """Nor do they depend on how the steps are divided into parts."""
    runner = run_samplers.Chains(runs.ladder_config())
    parts = []
    whole = runner.run(params, list(range(8)), 8, advanced=parts.append)
    assert sum(parts) == runner.num_steps == 7 and len(parts) == 7
    some = runner.run(params, [2, 5, 7], 8, num_frames=2)
    runs.assert_alike(some.images, whole.images[[2, 5, 7]])
    np.testing.assert_array_equal(some.frames[-1], some.images)
    assert some.frames.shape == (2, 3, *runs.SHAPE)
    np.testing.assert_array_equal(some.evaluations, [7, 7, 7])


def test_a_diverging_chain_is_named_on_eight_devices(params):
    """Its image has a pixel that is NaN."""
    runner = run_samplers.Chains(runs.ladder_config(), Stream.INPAINTING)
    images, masks = np.full((8, *runs.SHAPE), 0.5, np.float32), np.ones((8, *runs.SHAPE), bool)
    images[5, 3, 3] = np.nan
    with pytest.raises(
        UserError, match=r"^sample 15 is not finite after 1 of 7 steps: .*epsilon=0.0005 is too"
    ):
        runner.run(params, list(range(10, 18)), 8, images, masks)
