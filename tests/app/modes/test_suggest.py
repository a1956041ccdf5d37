"""`--mode=suggest` for the digits."""

import json
import re

import numpy as np
import pytest

import run_lib
from configs import digits, digits_vp
from ncsn_jax import sigmas
from ncsn_jax.app import build
from tests.running import load_config


@pytest.mark.parametrize(("module", "width"), [(digits, 1), (digits_vp, 2)])
def test_suggest_prints_a_ladder_that_can_be_used_as_it_is(module, width, capsys):
    """The second one's images are in [-1, 1]."""
    run_lib.suggest(module.get_config())
    output = capsys.readouterr().out
    (line,) = re.findall(r"^--config.*", output, re.MULTILINE)
    overrides = dict(re.findall(r"--config\.(\S+)=(\S+)", line))
    assert set(overrides) == {
        "model.sigma_begin",
        "model.sigma_end",
        "model.num_levels",
        "sampling.epsilon",
        "sampling.steps_per_level",
    }
    config = load_config(**{name: json.loads(value) for name, value in overrides.items()})
    ladder = np.asarray(build.make_sigmas(config))
    (printed,) = re.findall(r"ladder: (.*)", output)
    np.testing.assert_allclose([float(s) for s in printed.split()], ladder, rtol=1e-3)
    images = build.load_images(config) / 255
    flat = images.reshape(len(images), -1)
    distances = [np.linalg.norm(flat - point, axis=1).max() for point in flat]
    assert ladder[0] == pytest.approx(width * max(distances), rel=1e-3)
    of_images = sigmas.suggest(
        np.float32(width * images),
        sigma_end=config.model.sigma_end,
        steps_per_level=config.sampling.steps_per_level,
    )
    assert config.sampling.epsilon == pytest.approx(of_images.epsilon, rel=1e-3)
