"""Tests `--mode=interpolate` with a score in closed form, whose flow only scales images."""

import os
import zlib

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
    """Returns the point of the arc from a to b, arrays of any shape."""
    angle = np.arccos(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
    return (np.sin((1 - weight) * angle) * a + np.sin(weight * angle) * b) / np.sin(angle)


def test_interpolated_latents_lie_on_the_arc(vp_run, gaussian):
    """The flow of Gaussian data is linear, so an arc of latents is an arc of images."""
    config = make_config()
    run_lib.interpolate(config, vp_run)
    found = runs.read(vp_run, f"interpolation/step_{runs.STEP}", "interpolation.npz")
    originals = build.load_images(config, "test")[:4].reshape(2, 2, *runs.SHAPE)
    np.testing.assert_array_equal(found["originals"], originals)
    pairs = images.center(originals / 255.0)
    expected = [[0.8 * arc(a, b, weight) for weight in (0, 0.5, 1)] for a, b in pairs]
    runs.assert_alike(found["interpolations"], runs.as_bytes(config, expected))


def test_one_image_is_not_enough_to_interpolate(vp_run, gaussian, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "one.png")
    with pytest.raises(UserError, match="there is only one image: interpolation needs two"):
        run_lib.interpolate(make_config(**{"inpainting.images": str(tmp_path)}), vp_run)


@pytest.mark.parametrize(
    ("pairs", "steps", "size", "own", "at_once"),
    [(3, 3, 7, False, [2, 1]), (2, 4, 3, False, [1, 1]), (9, 2, 100, True, [2])],
)
def test_pairs_are_written_with_their_interpolations(
    pairs, steps, size, own, at_once, vp_run, flows, tmp_path
):
    """Five images of the user's make two pairs. The flow is linear."""
    name = f"pairs_{pairs}"
    config = make_config(**{"sampling.batch_size": size, "sampling.name": name})
    config.interpolation.update(num_pairs=pairs, num_steps=steps)
    originals = np.asarray(build.load_images(config, "test")[: 2 * pairs])
    if own:
        config.inpainting.images, pairs = str(tmp_path), 2
        originals = np.stack([runs.drawn(i) for i in range(4)])
        for i in range(5):
            Image.fromarray(runs.drawn(i)[..., 0]).save(tmp_path / f"{i}.png")
    run_lib.interpolate(config, vp_run)
    assert [(c["name"], len(c["array"]), c["size"]) for c in flows] == [
        (flow, n * each, at_once[0] * each)
        for n in at_once
        for flow, each in (("encode", 2), ("decode", steps))
    ]
    for call in flows:
        runs.assert_ema(call["params"], config, vp_run)
    encoded = np.concatenate([call["array"] for call in flows[::2]])
    np.testing.assert_allclose(encoded, originals / 255, rtol=1e-6)

    directory = f"{vp_run}/interpolation/step_4_{name}"
    written = ["interpolation.npz", "interpolation.png", "pairs"]
    assert sorted(os.listdir(directory)) == written
    assert sorted(os.listdir(f"{directory}/pairs")) == ["interpolations.npz", "settings.json"]
    found = runs.read(directory, "interpolation.npz")
    assert found.keys() == {"originals", "interpolations"}
    originals = originals.reshape(pairs, 2, *runs.SHAPE)
    np.testing.assert_array_equal(found["originals"], originals)
    weights = np.linspace(0, 1, steps)
    expected = [[arc(a, b, weight) for weight in weights] for a, b in originals / 255]
    between = found["interpolations"]
    assert between.dtype == np.uint8 and between.shape == (pairs, steps, *runs.SHAPE)
    assert np.abs(between - 255.0 * np.minimum(expected, 1)).max() < 0.51
    np.testing.assert_array_equal(
        runs.read(directory, "pairs/interpolations.npz")["interpolations"], between
    )
    rows = [[originals[i, 0], *between[i], originals[i, 1]] for i in range(pairs)]
    runs.assert_shows(f"{directory}/interpolation.png", rows)


def test_different_interpolation_settings_are_refused(vp_run, flows, tmp_path):
    config = make_config(**{"sampling.name": "apart"})
    run_lib.interpolate(config, vp_run)
    originals = np.asarray(build.load_images(config, "test")[:4])
    assert runs.settings(f"{vp_run}/interpolation/step_4_apart/pairs") == {
        "sampling.rtol": 1e-5,
        "sampling.atol": 1e-5,
        "sampling.end": 1e-2,
        "sampling.temperature": 0.8,
        "sampling.dtype": "float32",
        "sampling.precision": "default",
        "interpolation.num_steps": 3,
        "images": zlib.crc32(originals.tobytes()),
        "seed": 7,
        "step": 4,
    }
    others = {
        "sampling.rtol": 1e-4,
        "sampling.atol": 1e-4,
        "sampling.end": 2e-2,
        "sampling.temperature": 1.0,
        "sampling.dtype": "bfloat16",
        "sampling.precision": "high",
        "interpolation.num_steps": 4,
    }
    runs.assert_others_are_refused(run_lib.interpolate, config, vp_run, others)
    for i in range(4):
        Image.fromarray(runs.drawn(i)[..., 0]).save(tmp_path / f"{i}.png")
    for field, value in [
        ("interpolation.num_pairs", 3),
        ("inpainting.images", str(tmp_path)),
    ]:
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({field: value})
        with pytest.raises(UserError, match="with other settings: images is"):
            run_lib.interpolate(other, vp_run)
    flows.clear()
    run_lib.interpolate(config, vp_run)
    assert flows == []  # everything exists


def test_pairs_that_cannot_be_decoded_are_named_and_not_stored(vp_run, flows, monkeypatch):
    decode = lambda self, params, array, size: (np.full_like(array, np.nan), None)
    monkeypatch.setattr(runs.Flow, "__call__", decode)
    with pytest.raises(UserError, match="an image cannot be encoded and decoded: config.sampling"):
        run_lib.interpolate(make_config(**{"sampling.name": "nan"}), vp_run)
    assert os.listdir(f"{vp_run}/interpolation/step_4_nan/pairs") == ["settings.json"]
