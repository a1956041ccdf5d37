"""Compares `--mode=inpaint` and `--mode=colorize` with one call of the library's sampler."""

import os
import shutil
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

import run_lib
from ncsn_jax import sampling, sigmas
from ncsn_jax._random import Stream
from ncsn_jax.app import build
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


@pytest.mark.parametrize(("keep", "scheme"), [(True, "paper"), (False, "ncsn")])
def test_inpainting_along_a_ladder_matches_the_library(keep, scheme, ladder_run):
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


def test_inpainting_with_a_predictor_matches_the_library(vp_run):
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


def test_a_different_mask_is_refused_and_overwrites_nothing(ladder_run):
    config = runs.ladder_config(**SOME | {"inpainting.mask": "left", "sampling.name": "mask"})
    run_lib.inpaint(config, ladder_run)
    path = f"inpainting/step_{runs.STEP}_mask"
    before = runs.read(ladder_run, path, "completions.npz")
    config.inpainting.mask = "box"
    with pytest.raises(
        UserError, match=r"holds samples made with other settings: images and masks is"
    ):
        run_lib.inpaint(config, ladder_run)
    jax.tree.map(
        np.testing.assert_array_equal, before, runs.read(ladder_run, path, "completions.npz")
    )
    config.inpainting.mask = "no/such.png"
    with pytest.raises(UserError, match="config.inpainting.mask='no/such.png' must be 'left'"):
        run_lib.inpaint(config, ladder_run)


@pytest.fixture(scope="module")
def coloured_run(small_network, tmp_path_factory):
    """Returns a run on coloured images, whose red channel is not their grey, and its configuration."""
    directory = tmp_path_factory.mktemp("coloured")
    folder = directory / "pictures"
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
    runs.write_run(config, str(directory / "run"))
    return config, directory


@pytest.fixture
def coloured(coloured_run, tmp_path):
    """Returns copies of its configuration, work directory and images."""
    config, directory = coloured_run
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    config = config.copy_and_resolve_references()
    config.data.data_dir = config.inpainting.images = str(tmp_path / "pictures")
    return config, str(tmp_path / "run")


def test_colorization_of_the_channel_mean_matches_the_library(coloured, tmp_path):
    config, workdir = coloured
    run_lib.colorize(config, workdir)
    found = runs.read(workdir, f"colorization/step_{runs.STEP}", "completions.npz")
    originals = np.asarray(build.load_images(config))
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
    for path in (tmp_path / "pictures").iterdir():
        Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(UserError, match="holds samples made with other settings: images is"):
        run_lib.colorize(config, workdir)


def test_colorization_requires_a_predictor_and_three_channels(coloured):
    config, workdir = coloured
    config.sampling.method = "heun"
    with pytest.raises(UserError, match="'heun' must be 'predictor_corrector' for colorization"):
        run_lib.colorize(config, workdir)
    with pytest.raises(UserError, match="config.data.channels=1 must be 3 for colorization"):
        run_lib.colorize(runs.vp_config(**PREDICTOR), workdir)


def test_an_error_about_an_empty_directory_names_the_field(ladder_run, tmp_path):
    config = runs.ladder_config(**{"inpainting.images": str(tmp_path)})
    with pytest.raises(UserError, match=r"config.inpainting.images=.* holds no PNG, "):
        run_lib.inpaint(config, ladder_run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a directory of four pictures of other sizes, and the same pictures in grey at 8 x 8."""
    directory, expected = tmp_path_factory.mktemp("own"), []
    for i, (width, height) in enumerate([(20, 16), (16, 16), (8, 9), (16, 24)]):
        picture = Image.fromarray(runs.drawn(100 + i, (height, width, 1))[..., 0])
        picture.save(directory / f"{'dbca'[i]}.png")  # the last one is first
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        expected.insert(0, np.asarray(square.resize((8, 8), Image.Resampling.BILINEAR))[..., None])
    order = [0, 2, 1, 3]  # a, b, c, d
    return str(directory), np.stack(expected)[order]


def check_completions(call_of, directory, originals, shown, known, each, written):
    """Checks the files and the sampler's arguments for `each` completions per image."""
    count = len(originals)
    assert sorted(os.listdir(directory)) == ["completions.npz", "completions.png", "samples"]
    assert sorted(os.listdir(f"{directory}/samples")) == [
        "cost.json",
        "grid.png",
        "samples.npz",
        "settings.json",
    ]
    found, shape = runs.read(directory, "completions.npz"), originals.shape[1:]
    made = np.stack([runs.drawn(i, shape) for i in range(count * each)])
    expected = written | {
        "originals": originals,
        "completions": made.reshape(count, each, *shape),
    }
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    np.testing.assert_array_equal(runs.read(directory, "samples/samples.npz")["samples"], made)
    rows = [
        [originals[i], shown[i], *made[i * each : (i + 1) * each]] for i in range(len(originals))
    ]
    runs.assert_shows(f"{directory}/completions.png", rows)
    for call in call_of:
        images = np.asarray(call["indices"]) // each
        for told, of_all in zip(call["known"], known, strict=True):
            np.testing.assert_allclose(told, of_all[images], rtol=1e-6)
            assert told.dtype == of_all.dtype


@pytest.mark.parametrize(
    ("mask", "count", "each", "own"),
    [("box", 3, 2, False), ("left", 2, 4, False), ("box", 9, 1, True), ("file", 1, 1, True)],
)
def test_inpainting_writes_originals_known_pixels_and_completions(
    mask, count, each, own, ladder_run, folder, chains, tmp_path
):
    name = f"{mask}_{count}"
    config = runs.ladder_config(**{"sampling.name": name})
    config.inpainting.update(num_images=count, num_completions=each, mask=mask)
    masks = make_masks(mask, runs.SHAPE, count, runs.SEED) if mask != "file" else None
    originals = np.asarray(build.load_images(config, "test")[:count])
    if own:  # there are four
        config.inpainting.images, originals = folder[0], folder[1][:count]
    if mask == "file":
        white = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(white).save(tmp_path / "mask.png")
        config.inpainting.mask, masks = str(tmp_path / "mask.png"), (white >= 128)[None, ..., None]
    masks = masks[: len(originals)]
    run_lib.inpaint(config, ladder_run)
    indices = range(len(originals) * each)
    batches = [list(indices[i : i + 3]) for i in range(0, len(indices), 3)]
    assert [call["indices"] for call in chains] == batches
    assert all(
        (call["size"], call["task"], call["seed"]) == (min(3, len(indices)), Stream.INPAINTING, 7)
        for call in chains
    )
    runs.assert_ema(chains[0]["params"], config, ladder_run)
    shown = np.where(masks, originals, np.uint8(192))
    known = originals / np.float32(255), masks
    directory = f"{ladder_run}/inpainting/step_4_{name}"
    check_completions(chains, directory, originals, shown, known, each, {"masks": masks})


def test_different_inpainting_settings_are_refused(ladder_run, folder, chains):
    config = runs.ladder_config(**SOME | {"sampling.name": "apart", "sampling.epsilon": 1e-4})
    run_lib.inpaint(config, ladder_run)
    originals = np.asarray(build.load_images(config, "test")[:3])
    masks = np.broadcast_to((np.arange(8) < 4)[:, None], originals.shape)
    assert runs.settings(f"{ladder_run}/inpainting/step_4_apart/samples") == {
        "sampling.method": "annealed_langevin",
        "sampling.epsilon": 1e-4,
        "sampling.steps_per_level": 2,
        "sampling.denoise": True,
        "sampling.clip": [],
        "sampling.init": "uniform",
        "sampling.dtype": "float32",
        "sampling.precision": "default",
        "inpainting.keep_observed": True,
        "inpainting.scheme": "paper",
        "inpainting.num_completions": 2,
        "images and masks": zlib.crc32(originals.tobytes() + masks.tobytes()),
        "seed": 7,
        "step": 4,
    }
    others = {
        "sampling.epsilon": 2e-4,
        "sampling.steps_per_level": 3,
        "sampling.denoise": False,
        "sampling.dtype": "bfloat16",
        "sampling.precision": "high",
        "inpainting.keep_observed": False,
        "inpainting.scheme": "ncsn",
        "inpainting.num_completions": 3,
    }
    runs.assert_others_are_refused(run_lib.inpaint, config, ladder_run, others)
    for field, value in [("mask", "box"), ("images", folder[0]), ("num_images", 2)]:
        other = config.copy_and_resolve_references()
        other.inpainting[field] = value
        with pytest.raises(UserError, match="with other settings: images and masks is"):
            run_lib.inpaint(other, ladder_run)


def test_the_scheme_is_not_a_setting_of_a_predictor(vp_run, chains):
    config = runs.vp_config(**SOME | PREDICTOR | {"sampling.name": "predictor"})
    run_lib.inpaint(config, vp_run)
    found = runs.settings(f"{vp_run}/inpainting/step_4_predictor/samples")
    assert isinstance(found.pop("images and masks"), int)
    assert found == {
        "sampling.method": "predictor_corrector",
        "sampling.predictor": "euler_maruyama",
        "sampling.corrector": "none",
        "sampling.snr": 0.0,
        "sampling.corrector_steps": 1,
        "sampling.num_steps": 21,
        "sampling.end": 1e-2,
        "sampling.denoise": True,
        "sampling.dtype": "float32",
        "sampling.precision": "default",
        "inpainting.keep_observed": True,
        "inpainting.num_completions": 2,
        "seed": 7,
        "step": 4,
    }


def test_colorization_writes_originals_grey_images_and_completions(
    coloured, chains, monkeypatch, tmp_path
):
    monkeypatch.setattr(runs.Chains, "shape", (8, 8, 3))
    config, workdir = coloured
    originals = np.asarray(build.load_images(config))[:2]
    config.inpainting.update(num_images=2, num_completions=3)
    run_lib.colorize(config, workdir)
    directory = f"{workdir}/colorization/step_4"
    assert [call["indices"] for call in chains] == [[0, 1, 2], [3, 4, 5]]
    assert all((call["size"], call["task"]) == (3, Stream.COLORIZATION) for call in chains)
    runs.assert_ema(chains[0]["params"], config, workdir)
    grey = originals.astype(np.float32).mean(axis=-1, keepdims=True)
    rounded = np.floor(grey + 0.5).astype(np.uint8)
    known = (grey / np.float32(255),)
    shown = np.repeat(rounded, 3, axis=-1)
    check_completions(chains, directory, originals, shown, known, 3, {"grey": rounded})
    assert runs.settings(f"{directory}/samples") == {
        "sampling.method": "predictor_corrector",
        "sampling.predictor": "euler_maruyama",
        "sampling.corrector": "none",
        "sampling.snr": 0.0,
        "sampling.corrector_steps": 1,
        "sampling.num_steps": 21,
        "sampling.end": 1e-2,
        "sampling.denoise": True,
        "sampling.dtype": "float32",
        "sampling.precision": "default",
        "inpainting.num_completions": 3,
        "images": zlib.crc32(originals.tobytes()),
        "seed": 7,
        "step": 4,
    }
    others = {
        "sampling.num_steps": 22,
        "sampling.predictor": "ancestral",
        "inpainting.num_completions": 2,
    }
    runs.assert_others_are_refused(run_lib.colorize, config, workdir, others)
    config.inpainting.num_images = 3
    with pytest.raises(UserError, match="with other settings: images is"):
        run_lib.colorize(config, workdir)
