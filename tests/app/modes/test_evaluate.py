"""`--mode=evaluate` and `--mode=statistics`, against the measures called directly."""

import hashlib
import itertools
import json
import urllib.error
import urllib.request
from typing import NamedTuple

import jax
import numpy as np
import pytest

import run_lib
from ncsn_jax import evaluation
from ncsn_jax.app import build, copies, data, features, inception_weights, judge, measuring
from ncsn_jax.app.modes import evaluate
from ncsn_jax.errors import UserError
from tests.app.modes import runs
from tests.evaluation import drawn_weights

NUMBERS = {"evaluation.num_samples": 12, "sampling.batch_size": 5, "evaluation.features": "pixels"}


def config_of(**changes):
    return runs.ladder_config(**NUMBERS | changes)


def pixels(images):
    return np.asarray(images, np.float32).reshape(len(images), -1) / 255


def summary_of(workdir, name):
    """Returns a summary with the figures by pixels among the others."""
    with open(f"{workdir}/evaluation/step_{runs.STEP}_{name}/summary.json") as file:
        summary = json.load(file)
    return summary | summary.pop("by")["pixels"]


def test_a_run_is_measured_in_pixels(ladder_run):
    config = config_of(**{"sampling.name": "pixels"})
    run_lib.evaluate(config, ladder_run)
    summary = summary_of(ladder_run, "pixels")
    samples = runs.read(ladder_run, f"samples/step_{runs.STEP}_pixels/samples.npz")["samples"]
    assert len(samples) == 12 and summary["step"] == runs.STEP
    train, found = pixels(build.load_images(config)[:]), pixels(samples)
    reference = evaluation.statistics(train)
    distance = evaluation.frechet_distance(reference, found)
    np.testing.assert_allclose(summary["frechet_pixels_12"], distance, rtol=1e-9)
    kernel = evaluation.kernel_distance(found, train)
    np.testing.assert_allclose(summary["kernel_pixels_12"], kernel, rtol=1e-9)
    for name, measure in (
        ("frechet", lambda x: evaluation.frechet_distance(reference, x)),
        ("kernel", lambda x: evaluation.kernel_distance(x, train)),
    ):
        error = evaluation.standard_error(measure, found, 10)
        np.testing.assert_allclose(summary[f"{name}_pixels_12_error"], error, rtol=1e-6)
    both = evaluation.precision_recall(found, train)
    assert both == (summary["precision_pixels_12"], summary["recall_pixels_12"])
    unseen = pixels(build.load_images(config, "test")[:])
    expected = evaluation.frechet_distance(reference, unseen)
    np.testing.assert_allclose(summary["frechet_pixels_real_297"], expected, rtol=1e-9)
    lines = (runs.storage.read(f"{ladder_run}/metrics.jsonl").decode()).splitlines()
    logged = json.loads(lines[-1])["evaluation/pixels/frechet_pixels_12"]
    assert logged == summary["frechet_pixels_12"]
    # Again, and with more samples: only the missing ones are made.
    run_lib.evaluate(config, ladder_run)
    assert summary_of(ladder_run, "pixels") == summary
    config.evaluation.num_samples = 15
    likelihood = f"{ladder_run}/likelihood/step_{runs.STEP}_pixels"
    runs.storage.make_directory(likelihood)
    runs.storage.write(
        f"{likelihood}/summary.json", b'{"bits_per_dim": 2.5, "standard_error": null}'
    )
    run_lib.evaluate(config, ladder_run)
    more = summary_of(ladder_run, "pixels")
    assert more["bits_per_dim"] == 2.5 and "bits_per_dim_error" not in more
    again = runs.read(ladder_run, f"samples/step_{runs.STEP}_pixels/samples.npz")["samples"]
    np.testing.assert_array_equal(again[:12], samples)


def test_statistics_serve_as_the_reference(ladder_run):
    config = config_of(**{"sampling.name": "pixels"})
    run_lib.statistics(config, ladder_run)
    path = f"{ladder_run}/statistics/pixels.npz"
    with np.load(path) as file:
        expected = evaluation.statistics(pixels(build.load_images(config)[:]))
        np.testing.assert_allclose(file["mu"], expected.mean, atol=1e-7)
        np.testing.assert_allclose(file["sigma"], expected.covariance, atol=1e-7)
        assert file["count"] == 1500
    run_lib.evaluate(config, ladder_run)
    whole = summary_of(ladder_run, "pixels")
    config.evaluation.reference, config.sampling.name = path, "other"
    run_lib.evaluate(config, ladder_run)
    from_file = summary_of(ladder_run, "other")
    assert abs(from_file["frechet_pixels_12"] / whole["frechet_pixels_12"] - 1) < 1e-6
    assert "precision_pixels_12" in whole and "precision_pixels_12" not in from_file


def test_a_reference_that_does_not_fit_is_refused(ladder_run, tmp_path):
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.savez(tmp_path / "nan.npz", mu=np.zeros(64), sigma=np.full((64, 64), np.nan))
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(64), sigma=np.eye(64), digest="classifier")
    (tmp_path / "text.npz").write_text("no array")
    for name, message in (
        ("nan", "values that are not finite"),
        ("foreign", "of the 64 features that .* not of 64 other"),
        ("other", "of the 64 features that .*='pixels' has here, not of 3 other"),
        ("text", "'mu' and 'sigma'"),
    ):
        config = config_of(**{"evaluation.reference": str(tmp_path / f"{name}.npz")})
        with pytest.raises(UserError, match=message):
            run_lib.evaluate(config, ladder_run)


class Drawn(NamedTuple):
    """A stand-in for a classifier: its class is the brighter half of an image, or none if they are alike."""

    network: object = None
    params: object = ()
    accuracy: float = 0.875
    digest: str = "drawn"

    @staticmethod
    def apply(params, x):
        left, right = x[:, :, :4].mean((1, 2, 3)), x[:, :, 4:].mean((1, 2, 3))
        logits = 30.0 * jax.numpy.stack([left - right, right - left, 0.2 + 0 * left], axis=1)
        return jax.numpy.stack([left, right, left * right], axis=1), logits


def measured(samples, real, monkeypatch, **changes):
    """Returns what the stand-in finds, for images `[N, 8, 8, 1]`."""
    monkeypatch.setattr(judge, "load", lambda config: Drawn(network=Drawn))
    config = config_of(**{"evaluation.features": "classifier"} | changes)
    chosen = features.make(config)
    return measuring.Standard.make(config, chosen, data.Images(real)).measure(samples)


def halves(rng, left, right, count):
    """Returns images whose halves have so many grey levels, and a little noise."""
    images = np.full((count, 8, 8, 1), left, float)
    images[:, :, 4:] = right
    return np.clip(images + rng.normal(0, 5, images.shape), 0, 255).astype(np.uint8)


def test_lost_classes_show_in_shares_and_recall(monkeypatch):
    rng = np.random.default_rng(0)
    real = np.concatenate([halves(rng, 200, 50, 60), halves(rng, 50, 200, 60)])
    one = halves(rng, 200, 50, 100)
    found = measured(one, real, monkeypatch)
    assert found["class_shares"] == [1.0, 0.0] and found["class_shares_real"] == [0.5, 0.5]
    assert found["recall_classifier_100"] < 0.6 and found["classifier_accuracy"] == 0.875
    assert found["recognised_100"] == 1.0
    flat = np.full((100, 8, 8, 1), 128, np.uint8)
    assert measured(flat, real, monkeypatch)["recognised_100"] == 0.0


def test_a_sampler_that_copies_is_named_as_such(caplog):
    """Training images with 1 % of noise are copies; unseen images, and smoothed ones, are not."""
    config = config_of()
    dataset, unseen = build.load_images(config), build.load_images(config, "test")[:]
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 2.55, (200, 8, 8, 1))
    noisy = np.clip(dataset[:200] + noise, 0, 255).astype(np.uint8)
    smooth = (0.5 * unseen + 0.25 * np.roll(unseen, 1, 1) + 0.25 * np.roll(unseen, 1, 2)).astype(
        "uint8"
    )
    runs.shared.log.propagate = True
    for images in (unseen[:200], smooth[:200]):
        copies.look_for_copies(images, dataset, unseen, ())
    assert "copies" not in caplog.text
    found, picture = copies.look_for_copies(noisy, dataset, unseen, ())
    assert found["copies_200"] > 0.95 and "% of the samples look like copies" in caplog.text
    assert picture.shape == (10 * 9 + 1, 4 * 9 + 1, 1)  # ten rows of a sample and three images
    few, _ = copies.look_for_copies(noisy, dataset, unseen[:50], ())
    assert "copies_200" not in few  # 50 images do not tell


def test_another_crop_has_other_cached_features_and_another_digest(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        runs.Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(tmp_path / f"{i}.png")
    found, digests = {}, set()
    for crop in (-1, 8):
        changes = {"data.dataset": "image_folder", "data.data_dir": str(tmp_path)}
        config = config_of(**changes | {"data.crop_size": crop})
        dataset = build.load_images(config)
        chosen = features.make(config)._replace(name="cached")
        found[crop], _ = measuring.features_of(config, chosen, dataset)
        np.testing.assert_array_equal(found[crop], pixels(dataset[:]))
        digests.add(measuring.Standard.make(config, chosen, dataset).digest)
    assert abs(found[-1] - found[8]).max() > 0.1 and len(digests) == 2


def test_floats_are_judged_as_pictures():
    config = config_of(**{"data.value_range": (-1.0, 3.0)})
    images = np.random.default_rng(0).uniform(-2, 4, (12, 8, 8, 1)).astype(np.float32)
    found, _ = features.extract(features.make(config), images, (-1.0, 3.0), "")
    expected = np.clip((images.reshape(12, -1) + 1) / 4, 0, 1)
    np.testing.assert_allclose(found, expected, atol=0.5 / 255 + 1e-6)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.npz"
    np.savez(path, **drawn_weights())
    return str(path)


def test_the_network_sees_grey_images_as_rgb(monkeypatch):
    def mapped(function, params):
        return lambda batch: (batch.reshape(len(batch), -1), None)

    monkeypatch.setattr(features.devices, "map_batches", mapped)
    monkeypatch.setattr(features.inception_weights, "load", lambda path: ({}, "drawn", False))
    config = config_of(**{"evaluation.features": "inception"})
    grey = np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8, 1)
    found, _ = features.extract(features.make(config), grey, (), "")
    np.testing.assert_array_equal(found.reshape(2, 8, 8, 3), np.repeat(grey, 3, axis=3))


def test_the_network_of_fid_on_eight_devices_matches_the_figures(weights_file, golden):
    """Without the published weights, no figure is called FID."""
    figures = golden("inception")
    config = config_of(**{"evaluation.features": "inception", "evaluation.weights": weights_file})
    chosen = features.make(config)._replace(batch=8)
    assert not chosen.is_published and jax.local_device_count() == 8
    found, logits = features.extract(chosen, figures["8x8/images"], (), "")
    for array, name in ((found, "2048"), (logits, "logits_unbiased")):
        expected = figures[f"8x8/{name}"]
        np.testing.assert_allclose(array, expected, atol=1e-5 * abs(expected).max(), rtol=0)
    rng = np.random.default_rng(0)
    images, real = rng.integers(0, 256, (20, 8, 8, 1), np.uint8), rng.normal(size=(20, 5))
    drawn = chosen._replace(extract=lambda x: (rng.normal(size=(len(x), 5)), None))
    for published, name in ((False, "frechet_inception_20"), (True, "fid_20")):
        drawn = drawn._replace(is_published=published)
        moments = evaluation.statistics(real)
        standard = measuring.Standard(config, drawn, moments, real, None, "drawn")
        summary = standard.measure(images)
        assert name in summary and len([n for n in summary if "fid" in n]) == 2 * published


def test_features_that_images_cannot_have_are_refused():
    for changes, message in (
        ({"data.channels": 5, "data.value_range": (0.0, 1.0)}, "'pixels' for images of 5 channels"),
        (
            {"data.image_size": 128, "evaluation.features": "pixels"},
            "pixels are compared up to 4096",
        ),
        (
            {"data.value_range": (0.0, 1.0), "evaluation.features": "classifier"},
            "arrays, which have no labels",
        ),
    ):
        with pytest.raises(UserError, match=message):
            features.make(config_of(**{"evaluation.features": "inception"} | changes))


def test_weights_that_cannot_be_had_are_one_line(tmp_path, monkeypatch, weights_file):
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path))

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(UserError, match=r"cannot be downloaded \(no network\): give the file"):
        inception_weights.load("")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        inception_weights.load(str(tmp_path / "absent.npz"))
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        inception_weights.load(str(tmp_path))
    (tmp_path / "text.npz").write_text("no weights")
    with pytest.raises(UserError, match="does not hold the weights of FID's network"):
        inception_weights.load(str(tmp_path / "text.npz"))
    np.savez(tmp_path / "few.npz", **{"fc.bias": np.zeros(1008, np.float32)})
    with pytest.raises(UserError, match="does not hold .* fc.weight is missing"):
        inception_weights.load(str(tmp_path / "few.npz"))


def test_a_download_of_another_hash_is_refused_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path))

    class Response:
        headers = {"Content-Length": "4"}  # noqa: RUF012

        def __init__(self):
            self._left = [b"abcd"]

        def read(self, size):
            return self._left.pop() if self._left else b""

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: Response())
    with pytest.raises(UserError, match="SHA-256 does not begin with 6726825d"):
        inception_weights.load("")
    assert not list(tmp_path.iterdir())
    digest = hashlib.sha256(b"abcd").hexdigest()
    monkeypatch.setattr(inception_weights, "_SHA256", digest[:8])
    assert inception_weights._download().endswith(".pth")


def test_the_classifier_of_a_dataset_is_trained_once_and_tells_digits_from_noise(monkeypatch):
    config = config_of()
    for name, value in (("_STEPS", 100), ("_BATCH", 32), ("_LEARNING_RATE", 4e-3)):
        monkeypatch.setattr(judge, name, value)
    first = judge.load(config)
    assert first.accuracy > 0.6  # 0.1 is chance
    unseen = build.load_images(config, "test")[:]
    noise = np.random.default_rng(0).uniform(0, 255, unseen.shape)
    real, none = (first.network.apply(first.params, x / 255.0)[1] for x in (unseen, noise))
    assert measuring.recognised(none) < 0.05 < measuring.recognised(real)
    monkeypatch.setattr(judge, "_train", None)
    again = judge.load(config)
    assert (again.accuracy, again.digest) == (first.accuracy, first.digest)
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)


def test_an_array_cannot_be_judged_by_the_classifier_of_a_dataset():
    config = config_of(**{"evaluation.features": "classifier"})
    with pytest.raises(UserError, match="arrays, which have no labels"):
        features.make(config, has_array=True)


def test_a_sweep_evaluates_every_combination_and_goes_on_after_an_interruption(
    ladder_run, monkeypatch
):
    """The figures after interruptions at batches and writes are those of an undisturbed sweep."""
    text = "sampling.steps_per_level=1,2 sampling.step=4"
    config = config_of(**{"sampling.name": "whole", "evaluation.sweep": text})
    run_lib.evaluate(config, ladder_run)
    names = [f"whole_steps_per_level={n}" for n in (1, 2)]
    whole = [summary_of(ladder_run, name) for name in names]
    assert [s["nfe"] for s in whole] == [4, 7]  # three levels, and denoising
    table = runs.storage.read(f"{ladder_run}/evaluation/table.md").decode()
    assert all(name in table for name in names)

    class Killed(Exception):
        pass

    calls = itertools.count()

    def dies(function):
        def call(*args, **kwargs):
            if next(calls) in (4, 13, 28):
                raise Killed
            return function(*args, **kwargs)

        return call

    for where, name in (
        (runs.run_samplers.Chains, "run"),
        (runs.shared.SampleStore, "add"),
        (runs.storage, "write"),
        (measuring.Standard, "measure"),
    ):
        monkeypatch.setattr(where, name, dies(getattr(where, name)))
    config.sampling.name = "killed"
    for _ in range(3):
        with pytest.raises(Killed):
            run_lib.evaluate(config, ladder_run)
    run_lib.evaluate(config, ladder_run)
    for name, expected in zip(names, whole, strict=True):
        found = summary_of(ladder_run, name.replace("whole", "killed"))
        del found["seconds_per_sample"], expected["seconds_per_sample"]
        assert found == expected


def test_features_do_not_depend_on_devices_or_batches(monkeypatch):
    """The means of features are the same to float32 rounding, and so are their covariances."""
    network = judge.Network(3)
    params = network.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    drawn = judge.Judge(network, params, 1.0, "drawn")
    monkeypatch.setattr(judge, "load", lambda config: drawn)
    config = config_of(**{"evaluation.features": "classifier"})
    images = build.load_images(config)[:100]
    of_eight = features.extract(features.make(config), images, (), "")[0]
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    chosen = features.make(config)._replace(batch=7)
    one, two = (
        evaluation.statistics(x) for x in (features.extract(chosen, images, (), "")[0], of_eight)
    )
    np.testing.assert_allclose(one.mean, two.mean, atol=1e-6 * abs(two.mean).max())
    np.testing.assert_allclose(
        one.covariance, two.covariance, atol=1e-5 * abs(two.covariance).max()
    )


def test_several_processes_are_refused(ladder_run, monkeypatch):
    monkeypatch.setattr(evaluate.distributed, "count", lambda: 2)
    for mode in (run_lib.evaluate, run_lib.statistics):
        with pytest.raises(UserError, match="must run in one process"):
            mode(config_of(), ladder_run)


def test_samples_of_another_program_are_measured_by_a_run(ladder_run, tmp_path):
    config = config_of(**{"sampling.name": "ours"})
    run_lib.evaluate(config, ladder_run)
    path = f"{ladder_run}/samples/step_{runs.STEP}_ours/samples.npz"
    found, ours = (
        evaluate.measure_file(path, ladder_run, ["pixels"]),
        summary_of(ladder_run, "ours"),
    )
    assert "frechet_pixels_12" in found["by"]["pixels"]
    found |= found.pop("by")["pixels"]
    assert {name: ours[name] for name in found} == found
    np.save(tmp_path / "few.npy", np.zeros((3, 8, 8, 1), np.uint8))
    with pytest.raises(
        UserError, match="few.npy must have at least 10 images to be measured, has 3"
    ):
        evaluate.measure_file(str(tmp_path / "few.npy"), ladder_run, ["pixels"])
    np.save(tmp_path / "small.npy", np.zeros((3, 4, 4, 1), np.uint8))
    with pytest.raises(UserError, match=r"samples='.*' has images of \(4, 4\)"):
        evaluate.measure_file(str(tmp_path / "small.npy"), ladder_run, ["pixels"])


def test_figures_of_other_features_stay_and_those_by_another_reference_go(
    ladder_run, tmp_path, monkeypatch
):
    config = config_of(**{"sampling.name": "both"})
    run_lib.evaluate(config, ladder_run)
    path = f"{ladder_run}/evaluation/step_{runs.STEP}_both/summary.json"
    summary = runs.storage.read_json(path)
    runs.storage.write(
        path,
        json.dumps(
            summary | {"by": summary["by"] | {"inception": {"digest": "a", "samples": 12}}}
        ).encode(),
    )
    measured = []
    original = measuring.Standard.measure
    monkeypatch.setattr(
        measuring.Standard,
        "measure",
        lambda self, images, real="", **given: (
            measured.append(real) or original(self, images, real, **given)
        ),
    )
    run_lib.evaluate(config, ladder_run)
    again = runs.storage.read_json(path)["by"]
    assert again == summary["by"] | {"inception": {"digest": "a", "samples": 12}}
    assert measured == ["real_"]  # the samples are not measured again
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "other.npz", mu=rng.normal(size=64), sigma=np.eye(64))
    config.evaluation.reference = str(tmp_path / "other.npz")
    run_lib.evaluate(config, ladder_run)
    by = runs.storage.read_json(path)["by"]
    assert "inception" in by and "precision_pixels_12" not in by["pixels"]
    assert by["pixels"]["digest"] != again["pixels"]["digest"]


def test_a_sweep_goes_on_after_a_combination_that_fails(ladder_run):
    changes = {"sampling.name": "far", "evaluation.sweep": "sampling.step=99,4"}
    config = config_of(**changes)
    with pytest.raises(UserError, match="holds no checkpoint of step 99"):
        run_lib.evaluate(config, ladder_run)  # the first must exist
    config.evaluation.sweep = "sampling.step=4,99"
    with pytest.raises(
        UserError, match="1 of 2 evaluations .* failed, the first of them 'step 99 far'"
    ):
        run_lib.evaluate(config, ladder_run)
    assert "frechet_pixels_12" in summary_of(ladder_run, "far")


def test_the_seconds_of_a_sample_leave_out_the_batch_that_compiles(tmp_path):
    for first, seconds in ((0, None), (5, 1.0), (10, 0.5)):
        indices = list(range(first, min(first + 5, 12)))
        runs.shared._write_cost(str(tmp_path), indices, [first + 1] * len(indices), seconds)
        if not first:
            assert runs.shared.read_cost(str(tmp_path)) == {"nfe": 1.0}
    cost = runs.shared.read_cost(str(tmp_path))
    assert cost == {"nfe": (5 * 1 + 5 * 6 + 2 * 11) / 12, "seconds_per_sample": 0.2}
