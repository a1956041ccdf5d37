"""Tests runs on users' arrays against runs on bytes, closed forms, and the arrays' content."""

import math
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import run_lib
from configs import digits_vp
from ncsn_jax.app import build, devices, run_flows, run_samplers, storage, workdirs
from ncsn_jax.app.modes import shared
from ncsn_jax.errors import UserError
from tests import tiny
from tests.app.modes import runs
from tests.app.modes.runs import gaussian  # noqa: F401
from tests.conftest import DATA

BYTES, KELVIN = (
    str(DATA / "cases" / name)
    for name in ("images_uint8_24x40.npy", "kelvin_float32.npz:temperature")
)
RANGE = (260, 320)


@pytest.fixture(autouse=True)
def closed(closed_logs):
    """Closes the log."""


def make_config(**changes):
    config = tiny.get_config()
    config.training.update(num_steps=2, checkpoint_every=2, log_every=2, sample_every=0)
    config.sampling.update(num_samples=3, rtol=1e-2, atol=1e-2)
    config.likelihood.update(rtol=1e-2, atol=1e-2, num_images=3)
    config.inpainting.update(num_images=2, num_completions=2)
    config.interpolation.update(num_pairs=1, num_steps=3)
    config.data.update(random_flip=True)
    config.update_from_flattened_dict(changes)
    return config


def kelvin_config(**changes):
    fields = {"image_size": 16, "channels": 5, "value_range": RANGE, "holdout": 0.5}
    return make_config(**{f"data.{name}": value for name, value in fields.items()} | changes)


@pytest.fixture(scope="module")
def kelvin_run(tmp_path_factory):
    """Returns the work directory, the configuration and the array of a resumed run."""
    workdir = str(tmp_path_factory.mktemp("kelvin") / "run")
    config = kelvin_config(**{"data.dataset": KELVIN})
    run_lib.train(config, workdir)
    config.training.num_steps = 4
    run_lib.train(config, workdir)
    path, _, key = KELVIN.rpartition(":")
    with np.load(path) as file:
        return workdir, config, file[key]


def test_a_run_on_floats_resumes_and_samples_in_their_units(kelvin_run):
    workdir, config, _ = kelvin_run
    step, state = workdirs.load(config, workdir)
    assert step == 4
    samples = runs.read(workdir, "samples", "step_4", "samples.npz")["samples"]
    assert samples.shape == (3, 16, 16, 5) and samples.dtype == np.float32
    # A run with values in [0, 1] has the same chains in [0, 1].
    unit = kelvin_config(**{"data.value_range": (0, 1)})
    params = devices.replicate(jax.tree.map(np.asarray, state.ema_params))
    x = run_samplers.Chains(unit).run(params, [0, 1, 2], 8).images
    np.testing.assert_allclose(samples, 260 + 60 * x, rtol=1e-5, atol=1e-3)
    assert np.ptp(samples) > 30
    with Image.open(f"{workdir}/samples/step_4/grid.png") as picture:
        grid = np.asarray(picture)
    bright = np.floor(np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)
    side_by_side = np.concatenate([bright[..., [c]] for c in range(5)], axis=2)
    runs.assert_shows(grid, runs.rows_of(side_by_side, 2))


def test_floats_are_inpainted_and_interpolated_in_their_units(kelvin_run):
    workdir, config, kelvin = kelvin_run
    held_out = np.asarray(build.load_images(config, "test"))
    assert 2 <= len(held_out) < len(kelvin) == len(held_out) + len(build.load_images(config))
    run_lib.inpaint(config, workdir)
    found = runs.read(workdir, "inpainting", "step_4", "completions.npz")
    np.testing.assert_array_equal(found["originals"], held_out[:2])
    assert found["completions"].shape == (2, 2, 16, 16, 5)
    for image, completions in zip(held_out, found["completions"], strict=False):
        # float32 values are 3e-5 apart there.
        np.testing.assert_allclose(completions[:, :, :8], [image[:, :8]] * 2, atol=1e-4, rtol=0)
        assert np.abs(completions[:, :, 8:] - image[:, 8:]).max() > 1
    config = kelvin_config(**{"data.dataset": KELVIN, "sampling.rtol": 1e-3, "sampling.atol": 1e-3})
    run_lib.interpolate(config, workdir)
    found = runs.read(workdir, "interpolation", "step_4", "interpolation.npz")
    np.testing.assert_array_equal(found["originals"], held_out[None, :2])
    assert found["interpolations"].dtype == np.float32
    ends = found["interpolations"][:, [0, -1]]
    np.testing.assert_allclose(
        ends, found["originals"], rtol=0, atol=60 * 0.1
    )  # at 0.001 for latents


def test_distances_between_floats_are_in_units_of_the_range(kelvin_run):
    workdir, config, _ = kelvin_run
    run_lib.nearest(config, workdir)
    found = runs.read(workdir, "samples", "step_4", "nearest.npz")
    samples = runs.read(workdir, "samples", "step_4", "samples.npz")["samples"].astype(float)
    images = np.asarray(build.load_images(config)).astype(float)
    distances = np.sqrt(np.square(samples[:, None] - images[None]).sum(axis=(2, 3, 4))) / 60
    order = np.argsort(distances, axis=1)[:, : found["indices"].shape[1]]
    np.testing.assert_array_equal(found["indices"], order)
    expected = np.take_along_axis(distances, order, axis=1)
    np.testing.assert_allclose(found["distances"], expected, rtol=1e-6)


def test_likelihoods_of_floats_use_the_density_in_their_units(kelvin_run, gaussian):  # noqa: F811
    """The density is normal, centred in the range; its bits per dimension have a closed form."""
    _, _, kelvin = kelvin_run
    config = runs.vp_config(**{"likelihood.end": 1e-5})
    config.data.update(value_range=RANGE, image_size=16, channels=5)
    images = kelvin[:4]
    judge = run_flows.on_devices(config, run_flows.bits_per_dim)
    bits, _ = judge({}, ((images - 260) / 60).astype(np.float32), 8, np.arange(4))
    # [-1, 1] spans 60 kelvin.
    std = gaussian.STD * 30
    nats = -0.5 * ((images.astype(float) - 290) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(bits, -nats.mean(axis=(1, 2, 3)) / math.log(2), atol=2e-3)


def test_a_run_writes_likelihoods_of_floats(kelvin_run):
    workdir, config, _ = kelvin_run
    run_lib.likelihood(config, workdir)
    bits = runs.read(workdir, "likelihood", "step_4", "bits_per_dim.npz")["bits_per_dim"]
    assert bits.shape == (3, 2) and np.isfinite(bits).all()
    text = storage.read(f"{workdir}/log.txt").decode()
    assert "bits per dimension, of the density in the data's units, of 3 images" in text


def test_a_run_on_an_array_requires_it_again(tmp_path):
    images, workdir = np.load(BYTES), str(tmp_path / "run")
    config = make_config(**{"data.image_size": (24, 40), "data.channels": 3, "data.holdout": 0.4})
    run_lib.train(config, workdir, images=images)
    found = runs.read(workdir, "samples", "step_2", "samples.npz")["samples"]
    assert found.shape == (3, 24, 40, 3) and found.dtype == np.uint8
    modes = (run_lib.nearest, run_lib.inpaint, run_lib.likelihood, run_lib.interpolate)
    for mode in (run_lib.train, *modes):
        with pytest.raises(
            UserError, match="on an array that was passed as images=ARRAY: pass it again"
        ):
            mode(config, workdir)
    with pytest.raises(UserError, match="holds a run on different images"):
        run_lib.train(config, workdir, images=images[::-1])
    run_lib.train(config, workdir, images=images)
    run_lib.inpaint(config, workdir, images=images)
    test = np.asarray(build.load_images(config, "test", images))
    found = runs.read(workdir, "inpainting", "step_2", "completions.npz")
    np.testing.assert_array_equal(found["originals"], test[:2])


def test_an_array_file_may_move_with_data_dir(tmp_path):
    shutil.copy(BYTES, tmp_path / "x.npy")
    fields = {"dataset": "x.npy", "data_dir": str(tmp_path), "image_size": (24, 40), "channels": 3}
    config = make_config(**{f"data.{name}": value for name, value in fields.items()})
    np.testing.assert_array_equal(build.load_images(config), np.load(BYTES))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.channels": 5}, "data.channels=5 must be 1 or 3 for data.dataset='digits'"),
        (
            {"data.value_range": (0, 1)},
            "data.value_range=(0, 1) must be () for data.dataset='digits'",
        ),
    ],
)
def test_image_files_require_bytes_and_one_or_three_channels(changes, message):
    with pytest.raises(UserError) as refused:
        build.load_images(make_config(**changes))
    assert message in str(refused.value)


def test_images_to_complete_may_be_an_array_and_must_be_for_floats(kelvin_run, tmp_path):
    _, config, kelvin = kelvin_run
    config = config.copy_and_resolve_references()
    config.inpainting.images = KELVIN
    np.testing.assert_array_equal(shared.load_originals(config, "", 5), kelvin[:5])
    config.inpainting.images = str(tmp_path)
    with pytest.raises(UserError, match="inpainting.images='.*' must be a .npy or .npz file"):
        shared.load_originals(config, "", 5)


def test_arrays_have_no_labels():
    config = digits_vp.get_config()
    config.data.dataset = BYTES
    with pytest.raises(UserError, match="has no labels"):
        build.load_labels(config)
