"""`--mode=inpaint` and `--mode=colorize` against one call of the library's sampler."""

import json
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

import run_lib
from ncsn_jax import sampling, sigmas
from ncsn_jax._random import Stream
from ncsn_jax.app import build, samplers, storage
from ncsn_jax.app.data.masks import make_masks
from ncsn_jax.errors import UserError
from ncsn_jax.images import center
from tests.app.modes import runs

# Three images, two completions each.
IMAGE = np.arange(6) // 2
SOME = {"inpainting.num_images": 3, "inpainting.num_completions": 2}
PREDICTOR = {
    "sampling.method": "predictor_corrector",
    "sampling.predictor": "euler_maruyama",
    "sampling.num_steps": 21,
    "sampling.end": 1e-2,
}


def assert_settings(config, workdir, directory, **more):
    """What determines completions stands with them: nothing more and nothing less."""
    found = json.loads(storage.read(f"{workdir}/{directory}/samples/settings.json"))
    assert found == samplers.settings(config) | {
        "step": runs.STEP,
        "inpainting.num_completions": config.inpainting.num_completions,
        **more,
    }


@pytest.mark.parametrize(("keep", "scheme"), [(True, "paper"), (False, "ncsn")])
def test_inpainting_along_a_ladder_is_the_library_s(keep, scheme, ladder_run):
    changes = {"inpainting.keep_observed": keep, "inpainting.scheme": scheme}
    config = runs.ladder_config(
        **{"inpainting.mask": "box", "sampling.name": scheme, "sampling.epsilon": 1e-4},
        **SOME | changes,
    )
    run_lib.inpaint(config, ladder_run)
    found = runs.read(ladder_run, f"inpainting/step_{runs.STEP}_{scheme}", "completions.npz")
    originals = build.load_images(config, "test")[:3]
    masks = make_masks("box", runs.SHAPE, 3, runs.SEED)
    np.testing.assert_array_equal(found["originals"], originals)
    np.testing.assert_array_equal(found["masks"], masks)
    crc = zlib.crc32(masks.tobytes(), zlib.crc32(originals.tobytes()))
    more = {"inpainting.keep_observed": keep, "inpainting.scheme": scheme, "images and masks": crc}
    assert_settings(config, ladder_run, f"inpainting/step_{runs.STEP}_{scheme}", **more)

    _, sigma_score_fn, _ = runs.library(config, ladder_run)
    start, key = runs.keys(Stream.INPAINTING, range(6))

    @jax.jit
    def complete():
        x = sampling.initial_samples(start, (6, *runs.SHAPE), "uniform")
        ladder = sigmas.geometric(1.0, 0.04, 3)
        observed = (originals / np.float32(255))[IMAGE]
        return sampling.inpaint(
            *(key, sigma_score_fn, x, ladder, observed, masks[IMAGE]),
            epsilon=1e-4,
            steps_per_level=2,
            denoise=True,
            keep_observed=keep,
            scheme=scheme,
        )

    expected = runs.as_bytes(config, complete())
    runs.assert_alike(found["completions"].reshape(expected.shape), expected)
    same = (found["completions"] == originals[:, None])[
        np.broadcast_to(masks[:, None], (3, 2, *runs.SHAPE))
    ]
    assert same.all() == keep
    with Image.open(f"{ladder_run}/inpainting/step_{runs.STEP}_{scheme}/completions.png") as image:
        factor = image.size[0] // 37
        assert image.size == (37 * factor, 28 * factor)  # 4 columns, 3 rows of 9 pixels, and 1
        row = np.asarray(image.convert("L"))[::factor, ::factor][1:9]
    shown = np.where(masks[0], originals[0], 192)  # grey where it is hidden
    for i, expected in enumerate([originals[0], shown, *found["completions"][0]]):
        np.testing.assert_array_equal(row[:, 1 + 9 * i : 9 + 9 * i], expected[..., 0])


def test_inpainting_by_a_predictor_is_the_library_s(vp_run):
    config = runs.vp_config(**SOME | PREDICTOR | {"inpainting.keep_observed": True})
    run_lib.inpaint(config, vp_run)
    found = runs.read(vp_run, f"inpainting/step_{runs.STEP}", "completions.npz")
    originals = build.load_images(config, "test")[:3]
    masks = make_masks("left", runs.SHAPE, 3, 0)[IMAGE]
    process, _, time_score_fn = runs.library(config, vp_run)
    start, key = runs.keys(Stream.INPAINTING, range(6))

    @jax.jit
    def complete():
        observed = center((originals / np.float32(255))[IMAGE])
        return sampling.predictor_corrector(
            *(key, process, time_score_fn, runs.normal(start)),
            predictor="euler_maruyama",
            num_steps=21,
            end=1e-2,
            constrain=sampling.known_pixels(process, observed, masks),
        )[0]

    expected = np.where(masks, originals[IMAGE], runs.as_bytes(config, complete()))
    runs.assert_alike(found["completions"].reshape(expected.shape), expected)


def test_another_mask_is_refused_and_overwrites_nothing(ladder_run):
    config = runs.ladder_config(**SOME | {"inpainting.mask": "left", "sampling.name": "mask"})
    run_lib.inpaint(config, ladder_run)
    path = f"inpainting/step_{runs.STEP}_mask"
    before = runs.read(ladder_run, path, "completions.npz")
    config.inpainting.mask = "box"
    with pytest.raises(UserError, match=r"holds samples made otherwise: images and masks is"):
        run_lib.inpaint(config, ladder_run)
    jax.tree.map(
        np.testing.assert_array_equal, before, runs.read(ladder_run, path, "completions.npz")
    )
    config.inpainting.mask = "no/such.png"
    with pytest.raises(UserError, match="config.inpainting.mask='no/such.png' is neither"):
        run_lib.inpaint(config, ladder_run)


@pytest.fixture
def coloured(small_network, tmp_path):
    """A run on coloured images, and its configuration. Their red is not their grey."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) // [1, 2, 4]
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{i}.png")
    config = runs.vp_config(
        **PREDICTOR
        | SOME
        | {
            "data.dataset": "image_folder",
            "data.data_dir": str(folder),
            "data.channels": 3,
            "data.crop_size": -1,
            "inpainting.images": str(folder),
        }
    )
    runs.write_run(config, str(tmp_path / "run"))
    return config, str(tmp_path / "run")


def test_colorization_is_the_library_s_of_the_mean_of_the_channels(coloured, tmp_path):
    config, workdir = coloured
    run_lib.colorize(config, workdir)
    found = runs.read(workdir, f"colorization/step_{runs.STEP}", "completions.npz")
    originals = build.load_images(config)
    np.testing.assert_array_equal(found["originals"], originals)
    grey = originals.astype(float).sum(axis=-1, keepdims=True) / 3
    np.testing.assert_array_equal(found["grey"], np.floor(grey + 0.5))
    process, _, time_score_fn = runs.library(config, workdir)
    start, key = runs.keys(Stream.COLORIZATION, range(6))

    @jax.jit
    def complete():
        known = center(np.float32(grey / 255)[IMAGE])
        return sampling.predictor_corrector(
            *(key, process, time_score_fn, runs.normal(start, (8, 8, 3))),
            predictor="euler_maruyama",
            num_steps=21,
            end=1e-2,
            constrain=sampling.known_grey(process, known),
        )[0]

    expected = runs.as_bytes(config, complete())
    runs.assert_alike(found["completions"].reshape(expected.shape), expected)
    directory = f"colorization/step_{runs.STEP}"
    assert_settings(config, workdir, directory, images=zlib.crc32(originals.tobytes()))
    with Image.open(f"{workdir}/{directory}/completions.png") as image:  # 4 columns, 3 rows
        factor = image.size[0] // 37
        row = np.asarray(image)[::factor, ::factor][1:9]
    shown = np.broadcast_to(found["grey"][0], originals[0].shape)
    for i, expected in enumerate([originals[0], shown, *found["completions"][0]]):
        np.testing.assert_array_equal(row[:, 1 + 9 * i : 9 + 9 * i], expected)
    for path in (tmp_path / "pictures").iterdir():
        Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(UserError, match="holds samples made otherwise: images is"):
        run_lib.colorize(config, workdir)


def test_colorization_takes_a_predictor_and_three_channels(coloured):
    config, workdir = coloured
    config.sampling.method = "heun"
    with pytest.raises(UserError, match="'heun' must be 'predictor_corrector' for colorization"):
        run_lib.colorize(config, workdir)
    with pytest.raises(UserError, match="config.data.channels=1 must be 3 for colorization"):
        run_lib.colorize(runs.vp_config(**PREDICTOR), workdir)


def test_a_directory_without_images_names_its_field(ladder_run, tmp_path):
    config = runs.ladder_config(**{"inpainting.images": str(tmp_path)})
    with pytest.raises(UserError, match=r"config.inpainting.images=.* holds no readable"):
        run_lib.inpaint(config, ladder_run)
