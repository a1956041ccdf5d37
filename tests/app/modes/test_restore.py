"""`--mode=restore` against the library's sampler and closed forms, and the files that it writes."""

import os

import jax
import numpy as np
import pytest
from PIL import Image

import run_lib
from ncsn_jax import evaluation, inverse, sampling, sigmas
from ncsn_jax._random import Stream
from ncsn_jax.app import build, devices, pictures, restoration, run_samplers, storage
from ncsn_jax.app.modes import shared
from ncsn_jax.app.sample_store import SampleStore
from ncsn_jax.errors import UserError
from tests.app.modes import runs

HEUN = {"sampling.method": "heun", "sampling.num_steps": 5, "model.sigma_begin": 5.0}
SOME = {"restore.num_images": 3, "restore.num_samples": 2}
DIRECTORY = f"restoration/step_{runs.STEP}"


def restored(run, name, make=runs.vp_config, **fields):
    """Runs the mode with these fields of `config.restore`; returns the configuration and the arrays."""
    changes = {f"restore.{n}" if "." not in n else n: v for n, v in fields.items()}
    sampler = HEUN if make is runs.vp_config else {}
    config = make(**sampler | SOME | {"sampling.name": name} | changes)
    run_lib.restore(config, run)
    return config, runs.read(run, f"{DIRECTORY}_{name}", "restored.npz")


@pytest.fixture(scope="module")
def plain(vp_run):
    """Returns what the mode makes by default, on eight devices, in batches of three."""
    return restored(vp_run, "plain")


def test_restoration_matches_the_library(plain, vp_run):
    config, found = plain
    originals = np.asarray(build.load_images(config, "test")[:3])
    np.testing.assert_array_equal(found["originals"], originals)
    operator = inverse.downsample(2)
    exact = operator.apply(originals / np.float32(255))
    z = (found["measurements"] - exact) / 0.05
    assert abs(np.mean(z**2) - 1) < 5 * np.sqrt(2 / z.size)

    _, sigma_score_fn, _ = runs.library(config, vp_run)
    start, key = runs.keys(Stream.RESTORATION, range(6))

    @jax.jit
    def restore():
        y = 2 * np.repeat(found["measurements"], 2, axis=0) - 1
        given = inverse.posterior_score(sigma_score_fn, operator, y, 0.1, method="mmps")
        ladder = sigmas.karras(5.0, config.model.sigma_end, 5, config.sampling.rho)
        return sampling.heun(key, given, 5.0 * runs.normal(start), ladder)[0]

    expected = 255 * (np.asarray(restore()) + 1) / 2
    samples = found["samples"].reshape(expected.shape)
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, expected, atol=0.05)
    assert np.abs(samples - np.round(samples)).max() > 0.3  # not rounded


def test_an_interrupted_restoration_gives_the_same_bits(plain, vp_run, monkeypatch):
    add, added = SampleStore.add, []

    def stop(self, indices, samples):
        add(self, indices, samples)
        added.append(indices)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SampleStore, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            restored(vp_run, "stopped")
    monkeypatch.setattr(SampleStore, "add", lambda *a: added.append(a[1]) or add(*a))
    _, found = restored(vp_run, "stopped")
    assert added == [[0, 1, 2], [3, 4, 5]]
    jax.tree.map(np.testing.assert_array_equal, found, plain[1])


def test_the_result_of_an_image_does_not_depend_on_the_batch_or_the_number(plain, vp_run):
    _, found = restored(vp_run, "alone", **{"num_images": 2, "sampling.batch_size": 4})
    for name in ("originals", "measurements"):
        np.testing.assert_array_equal(found[name], plain[1][name][:2])
    np.testing.assert_allclose(found["samples"], plain[1]["samples"][:2], atol=0.02)


def test_measurements_of_a_file_are_restored_without_originals(vp_run):
    """The file and the masks are those that the mode wrote."""
    _, first = restored(vp_run, "measured", operator="mask", method="pigdm")
    path = f"{vp_run}/{DIRECTORY}_measured/restored.npz"
    files = {"measurements": f"{path}:measurements", "mask": f"{path}:masks"}
    _, second = restored(vp_run, "filed", operator="mask", method="pigdm", **files)
    assert first.keys() - second.keys() == {"originals"}
    for name, array in second.items():
        np.testing.assert_array_equal(array, first[name])
    with pytest.raises(UserError, match="with other settings: images or measurements is"):
        restored(vp_run, "measured", operator="mask", method="pigdm", **files)  # loses originals
    one, two = (
        storage.read_json(f"{vp_run}/{DIRECTORY}_{name}/summary.json")
        for name in ("measured", "filed")
    )
    assert two.keys() == {"images", "samples", "method", "settings", "chi_square"}
    assert two["chi_square"] == one["chi_square"]
    assert one.keys() - two.keys() == {
        *("psnr", "ssim", "psnr_pseudo_inverse", "coverage", "coverage_nominal"),
    }


@pytest.mark.parametrize(
    ("operator", "method"), [("fourier", "dps"), ("blur", "langevin"), ("grey", "mmps")]
)
def test_other_operators_and_methods_run_on_a_ladder(operator, method, ladder_run):
    changes = {"sampling.epsilon": 1e-5}  # of annealed Langevin dynamics
    _, found = restored(
        ladder_run, operator, runs.ladder_config, operator=operator, method=method, **changes
    )
    assert found["samples"].shape == (3, 2, *runs.SHAPE) and np.isfinite(found["samples"]).all()


def test_normal_data_have_their_exact_posterior(gaussian, tmp_path, monkeypatch):
    """The mean of a block given y is y V / (V + noise^2), with V = 0.6^2 / 4 and noise in [-1, 1]."""
    count, workdir = 20, str(tmp_path)
    monkeypatch.setattr(shared, "begin", lambda *_: None)
    params = devices.replicate({"unused": np.zeros(1)})
    monkeypatch.setattr(shared, "load", lambda c, w: shared.Loaded(c, w, runs.STEP, params))
    x = gaussian.STD * np.random.default_rng(0).standard_normal((count, *runs.SHAPE))
    np.save(f"{workdir}/x.npy", np.float32(x))
    chain = {"model.sigma_begin": 20.0, "model.sigma_end": 0.01, "sampling.num_steps": 20}
    asked = {
        "restore.images": f"{workdir}/x.npy",
        "restore.num_images": count,
        "restore.noise": 0.1,
    }
    config = runs.vp_config(
        **HEUN | chain | asked | {"sampling.batch_size": 19 * count, "data.value_range": (-1, 1)}
    )
    run_lib.restore(config, workdir)
    found = runs.read(workdir, DIRECTORY, "restored.npz")
    figures = storage.read_json(f"{workdir}/{DIRECTORY}/summary.json")
    y = 2 * found["measurements"].astype(float) - 1
    variance, noise = gaussian.STD**2 / 4, 0.2
    mean = np.kron(y * variance / (variance + noise**2), np.ones((1, 2, 2, 1)))
    spread = gaussian.STD**2 - variance**2 / (variance + noise**2)
    z = (found["mean"] - mean) / np.sqrt(spread / 19)
    # The four pixels of a block are correlated.
    assert abs(np.mean(z**2) - 1) < 5 * np.sqrt(2 * 4 / z.size)
    assert abs(np.mean(found["std"].astype(float) ** 2) / spread - 1) < 0.05
    assert abs(figures["coverage"] - 0.9) < 5 * np.sqrt(0.09 * 4 / z.size)
    assert figures["coverage_nominal"] == 0.9
    # Sixteen values an image, whose residuals the samples share in part.
    assert abs(figures["chi_square"] - 1) < 5 * np.sqrt(2 / (16 * count))
    error = spread * (1 + 1 / 19)  # of the mean of 19 samples, in [-1, 1], whose range is 2
    deviation = 10 / np.log(10) * np.sqrt(2 * 4 / z.size)
    assert abs(figures["psnr"] - 10 * np.log10(4 / error)) < 5 * deviation


@pytest.fixture
def unrounded(chains, monkeypatch):
    """Adds a quarter to the samples of `chains`."""
    monkeypatch.setattr(runs.Chains, "value_range", (0.0, 255.0))
    run = runs.Chains.run

    def as_floats(*args, **options):
        made = run(*args, **options)
        return made._replace(images=np.float32(made.images) + np.float32(0.25))

    monkeypatch.setattr(runs.Chains, "run", as_floats)
    return chains


def test_the_files_hold_measurements_samples_and_figures(vp_run, unrounded, monkeypatch):
    monkeypatch.setattr(run_samplers, "FAR", 0.49)
    config, found = restored(vp_run, "files", operator="mask", mask="left", num_samples=5)
    directory = f"{vp_run}/{DIRECTORY}_files"
    names = ["restored.npz", "restored.png", "samples", "summary.json"]
    assert sorted(os.listdir(directory)) == names
    assert " ".join(found) == "originals measurements masks samples mean std chi_square"
    samples = np.stack([runs.drawn(i) for i in range(15)]).reshape(3, 5, *runs.SHAPE) + 0.25
    np.testing.assert_array_equal(found["samples"], samples)
    np.testing.assert_allclose(found["mean"], samples.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found["std"], samples.std(axis=1, ddof=1), rtol=1e-5)
    masks = np.broadcast_to(np.arange(8) < 4, (3, 8, 8))
    np.testing.assert_array_equal(found["masks"], masks)
    for call in unrounded:
        images = np.asarray(call["indices"]) // 5
        assert call["task"] == Stream.RESTORATION
        for told, of_all in zip(call["known"], (found["measurements"], masks), strict=True):
            np.testing.assert_array_equal(told, of_all[images])
    runs.assert_ema(unrounded[0]["params"], config, vp_run)

    truth, mean = found["originals"] / 255, samples.mean(axis=1) / 255
    hidden = np.where(masks[..., None], found["measurements"], 0)
    residual = np.where(masks[:, None, ..., None], hidden[:, None] - samples / 255, 0)
    expected = {
        "images": 3,
        "samples": 5,
        "psnr": evaluation.psnr(mean, truth).mean(),
        "ssim": evaluation.ssim(mean, truth).mean(),
        "psnr_pseudo_inverse": evaluation.psnr(hidden, truth).mean(),
        "coverage": evaluation.coverage(samples.swapaxes(0, 1), found["originals"])[0],
        "coverage_nominal": 2 / 3,
        "chi_square": np.square(residual).sum() / (0.05**2 * 32 * 15),
    }
    figures = storage.read_json(f"{directory}/summary.json")
    assert figures.pop("settings")["restore.operator"] == "mask"
    assert figures.pop("method") == "mmps" and figures.keys() == expected.keys()
    np.testing.assert_allclose(found["chi_square"].mean(), expected["chi_square"], rtol=1e-4)
    for name, value in expected.items():
        np.testing.assert_allclose(figures[name], value, rtol=1e-4, err_msg=name)
    log = storage.read(f"{vp_run}/log.txt").decode()
    assert "restoring 3 images, 5 times each, by 'mmps', from step 4" in log
    far = np.argwhere(np.abs(samples / 255 - 0.5).max(axis=(2, 3, 4)) > 0.49)
    assert 0 < len(far) < 15
    named = f"sample {far[0, 1]} of image {far[0, 0]}:"
    assert f"{len(far)} of 15 samples are far outside [0, 1], first {named} start" in log
    line = (
        f"3 images restored, PSNR of the mean {figures['psnr']:.2f}, of the pseudo-inverse "
        f"{figures['psnr_pseudo_inverse']:.2f}, SSIM {figures['ssim']:.3f}, coverage "
        f"{figures['coverage']:.3f}, nominally 0.667, chi square {figures['chi_square']:.3f}; wrote "
        f"restored.npz, restored.png and summary.json to {directory}"
    )
    assert line in log

    shown = [
        np.where(masks[..., None], found["measurements"], np.float32(0.75)),
        *(samples / 255).swapaxes(0, 1)[:4],
        mean,
        2 * samples.std(axis=1, ddof=1) / 255,
        truth,
    ]
    with Image.open(f"{directory}/restored.png") as picture:
        heading, grid = np.split(np.asarray(picture), [20])
    assert heading.max() > 200
    rows = pictures.to_uint8(np.stack(shown, axis=1))
    runs.assert_shows(grid, rows)


def test_the_picture_shows_blurred_images_and_pseudo_inverses():
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 1)).astype(np.float32)
    for operator in restoration.OPERATORS:
        config = runs.vp_config(**{"restore.operator": operator, "restore.noise": 0.0})
        measured = restoration.measure(config, images)
        shown = measured.picture(measured.pseudo_inverse())
        if operator == "downsample":
            expected = np.kron(measured.y, np.ones((1, 2, 2, 1)))
        elif operator == "fourier":  # what is measured, with the conjugates
            negative = np.roll(measured.masks[:, ::-1, ::-1], 1, axis=(1, 2))
            kept = np.fft.fft2(images[..., 0]) * (measured.masks | negative)
            expected = np.fft.ifft2(kept).real[..., None]
        elif operator == "mask":
            expected = np.where(measured.masks[..., None], images, 0.75)
        else:
            expected = measured.y
        np.testing.assert_allclose(shown, expected, atol=1e-5, err_msg=operator)


@pytest.mark.usefixtures("unrounded")
def test_different_settings_are_refused(vp_run):
    config, _ = restored(vp_run, "apart")
    found = runs.settings(f"{vp_run}/{DIRECTORY}_apart/samples")
    assert {name: value for name, value in found.items() if name.startswith("restore.")} == {
        "restore.operator": "downsample",
        "restore.factor": 2.0,
        "restore.noise": 0.05,
        "restore.method": "mmps",
        "restore.num_samples": 2,
    }
    others = {
        "restore.operator": "grey",
        "restore.factor": 4.0,
        "restore.noise": 0.1,
        "restore.method": "dps",
        "restore.num_samples": 3,
    }
    runs.assert_others_are_refused(run_lib.restore, config, vp_run, others)
    other = config.copy_and_resolve_references()
    other.restore.num_images = 2
    with pytest.raises(UserError, match="with other settings: images or measurements is"):
        run_lib.restore(other, vp_run)
    # Fields that the operator does not use may differ.
    other = config.copy_and_resolve_references()
    other.restore.update(kernel="2.0", mask="left")
    run_lib.restore(other, vp_run)
