"""`--mode=interpolate` with a score in closed form, whose flow scales images and no more."""

import numpy as np
import pytest
from PIL import Image

import run_lib
from ncsn_jax import images
from ncsn_jax.app import build
from ncsn_jax.errors import UserError
from tests.app.modes import runs


def make_config(**changes):
    return runs.vp_config(
        **{
            "interpolation.num_pairs": 2,
            "interpolation.num_steps": 3,
            "sampling.rtol": 1e-5,
            "sampling.atol": 1e-5,
            "sampling.end": 1e-2,
            "sampling.temperature": 0.8,
        }
        | changes
    )


def arc(a, b, weight):
    """The point of the arc from a to b, arrays of any shape."""
    angle = np.arccos(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
    return (np.sin((1 - weight) * angle) * a + np.sin(weight * angle) * b) / np.sin(angle)


def test_what_lies_between_lies_on_the_arc(vp_run, gaussian):
    """The flow of Gaussian data is linear: the arc of latents is an arc of images."""
    config = make_config()
    run_lib.interpolate(config, vp_run)
    found = runs.read(vp_run, f"interpolation/step_{runs.STEP}", "interpolation.npz")
    originals = build.load_images(config, "test")[:4].reshape(2, 2, *runs.SHAPE)
    np.testing.assert_array_equal(found["originals"], originals)
    pairs = images.center(originals / 255.0)
    expected = [[0.8 * arc(a, b, weight) for weight in (0, 0.5, 1)] for a, b in pairs]
    runs.assert_alike(found["interpolations"], runs.as_bytes(config, expected))
    config.sampling.temperature = 2.0
    with pytest.raises(UserError, match="sampling.temperature is 0.8 there and 2.0 here"):
        run_lib.interpolate(config, vp_run)


def test_one_image_is_no_pair(vp_run, gaussian, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "one.png")
    with pytest.raises(UserError, match="there is one image only: to interpolate takes two"):
        run_lib.interpolate(make_config(**{"inpainting.images": str(tmp_path)}), vp_run)
