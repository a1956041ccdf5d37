"""`--mode=interpolate` with a score in closed form, whose flow scales images and no more."""

import json
import zlib

import numpy as np
import pytest
from PIL import Image

import run_lib
from ncsn_jax import images
from ncsn_jax.app import build, storage
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
    directory = f"{vp_run}/interpolation/step_{runs.STEP}"
    with Image.open(f"{directory}/interpolation.png") as picture:  # 5 columns, 2 rows
        factor = picture.size[0] // 46
        assert picture.size == (46 * factor, 19 * factor)
        row = np.asarray(picture.convert("L"))[::factor, ::factor][1:9]
    for i, image in enumerate([originals[0, 0], *found["interpolations"][0], originals[0, 1]]):
        np.testing.assert_array_equal(row[:, 1 + 9 * i : 9 + 9 * i], image[..., 0])
    fields = {"rtol": 1e-5, "atol": 1e-5, "end": 1e-2, "temperature": 0.8, "dtype": "float32"}
    assert json.loads(storage.read(f"{directory}/pairs/settings.json")) == {
        **{f"sampling.{name}": value for name, value in fields.items()},
        "interpolation.num_steps": 3,
        "seed": runs.SEED,
        "step": runs.STEP,
        "images": zlib.crc32(originals.tobytes()),
    }
    config.sampling.temperature = 2.0
    with pytest.raises(UserError, match="sampling.temperature is 0.8 there and 2.0 here"):
        run_lib.interpolate(config, vp_run)


def test_one_image_is_no_pair(vp_run, gaussian, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "one.png")
    with pytest.raises(UserError, match="there is one image only: to interpolate takes two"):
        run_lib.interpolate(make_config(**{"inpainting.images": str(tmp_path)}), vp_run)
