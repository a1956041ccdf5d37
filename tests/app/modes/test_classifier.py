"""Tests `--mode=classifier` and `--mode=classconditional` with a network of one layer."""

import json
import os
import re
import shutil
import zlib

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

import run_lib
from ncsn_jax import classifier as library_classifier
from ncsn_jax import sampling, sde, sigmas
from ncsn_jax._random import Stream
from ncsn_jax.app import build, classifier_file, classifier_training, storage
from ncsn_jax.app.data import Images
from ncsn_jax.app.modes import classifier
from ncsn_jax.errors import UserError
from tests.app.modes import runs


class Linear(nn.Module):
    num_classes: int
    features: int = 4
    ch_mult: tuple[int, ...] = (1, 2)

    @nn.compact
    def __call__(self, x, sigma):
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1) * self.features)


@pytest.fixture
def workdir(vp_run, tmp_path, monkeypatch):
    """Returns a copy of the run, in which the classifier is `Linear`."""
    monkeypatch.setattr(classifier_file, "NoisyClassifier", Linear)
    monkeypatch.setattr(classifier, "NoisyClassifier", Linear)
    return str(shutil.copytree(vp_run, tmp_path / "run"))


def test_a_classifier_is_trained_on_one_split_and_tested_on_the_other(workdir):
    config = runs.vp_config(
        **{"classifier.features": 8, "classifier.num_steps": 3, "classifier.batch_size": 16}
    )
    run_lib.classifier(config, workdir)
    model = Linear(10, 8)
    (images, labels), (test_images, test_labels) = (
        (build.load_images(config, split), build.load_labels(config, split)[0])
        for split in ("train", "test")
    )
    params, _ = classifier_training.train_classifier(config, model, images, labels)
    accuracy = classifier_training.evaluate(config, model, params, test_images, test_labels)
    described = classifier_file.describe(config, model)
    found, meta = classifier_file.load(f"{workdir}/classifier/classifier.npz", described)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert meta == described | {"accuracy": accuracy.tolist()}
    with pytest.raises(UserError, match="already exists: move it away"):
        run_lib.classifier(config, workdir)


@pytest.fixture
def of_three(workdir):
    """Returns the work directory with a classifier of three classes, and that classifier."""
    model = Linear(3)
    meta = classifier_file.describe(runs.vp_config(), model)
    shapes = classifier_file.rebuild(meta)[1]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: 0.02 * rng.standard_normal(a.shape, np.float32), shapes)
    os.makedirs(f"{workdir}/classifier")
    classifier_file.save(f"{workdir}/classifier/classifier.npz", params, meta)
    return workdir, model, params


@pytest.mark.parametrize(("label", "labels"), [(-1, [0, 1, 2, 0, 1]), (2, [2] * 5)])
def test_class_conditional_samples_match_guided_sampling_of_the_library(label, labels, of_three):
    workdir, model, params = of_three
    config = runs.vp_config(**{"classifier.label": label, "classifier.scale": 1.5})
    run_lib.classconditional(config, workdir)
    found = runs.read(workdir, f"classconditional/step_{runs.STEP}", "samples.npz")["samples"]
    process, _, time_score_fn = runs.library(config, workdir)
    start, key = runs.keys(Stream.CLASSES, range(5))

    @jax.jit
    def expected():
        log_likelihood = library_classifier.log_likelihood(
            model, params, process, np.asarray(labels)
        )
        score_fn = sde.to_sigma_score(process, sampling.guided(time_score_fn, log_likelihood, 1.5))
        ladder = sigmas.karras(10.0, 0.02, 5, config.sampling.rho)
        return sampling.heun(key, score_fn, 10.0 * runs.normal(start), ladder)[0]

    runs.assert_alike(found, runs.as_bytes(config, expected()))


def test_class_conditional_mistakes_are_named(of_three, vp_run):
    workdir = of_three[0]
    with pytest.raises(UserError, match="holds no classifier: train one with --mode=classifier"):
        run_lib.classconditional(runs.vp_config(), vp_run)
    with pytest.raises(UserError, match="label=3 must be -1 .* or below 3"):
        run_lib.classconditional(runs.vp_config(**{"classifier.label": 3}), workdir)


def test_a_classifier_file_describes_its_run(workdir, monkeypatch):
    """Training and evaluation are replaced by fixed results."""
    config = runs.vp_config(**{"classifier.features": 8})
    accuracy, given = np.linspace(0.95, 0.05, 10), []
    params = {"params": {"Dense_0": {"kernel": np.ones((64, 10)), "bias": np.arange(10.0)}}}
    params = jax.tree.map(np.float32, params)

    def train(*arguments):
        given.append(arguments)
        return params, 1.2345

    def evaluate(*arguments):
        given.append(arguments)
        return accuracy

    monkeypatch.setattr(classifier_training, "train_classifier", train)
    monkeypatch.setattr(classifier_training, "evaluate", evaluate)
    run_lib.classifier(config, workdir)
    (_, model, images, labels), (_, tested, trained, unseen, unseen_labels) = given
    assert model == tested == Linear(10, 8) and trained is params
    for found, expected in [
        (images, build.load_images(config, "train")),
        (labels, build.load_labels(config, "train")[0]),
        (unseen, build.load_images(config, "test")),
        (unseen_labels, build.load_labels(config, "test")[0]),
    ]:
        np.testing.assert_array_equal(found, expected)
    assert os.listdir(f"{workdir}/classifier") == ["classifier.npz"]
    file = runs.read(workdir, "classifier/classifier.npz")
    assert file.keys() == {"meta", "params/Dense_0/kernel", "params/Dense_0/bias"}
    np.testing.assert_array_equal(file["params/Dense_0/bias"], np.arange(10))
    np.testing.assert_array_equal(file["params/Dense_0/kernel"], np.ones((64, 10)))
    assert json.loads(file["meta"].item()) == {
        "num_classes": 10,
        "features": 8,
        "ch_mult": [1, 2],
        "sde": {"name": "VP", "beta_min": 0.1, "beta_max": 15.0},
        "dataset": "digits",
        "image_shape": [8, 8, 1],
        "centered": True,
        "accuracy": accuracy.tolist(),
    }
    log = storage.read(f"{workdir}/log.txt").decode()
    assert f"training a classifier of 10 classes on {len(images)} noisy images" in log
    for t, right in zip(np.arange(0.05, 1, 0.1), accuracy, strict=True):
        alpha = np.exp(-(0.1 * t + 14.9 * t**2 / 2) / 2)
        sigma = f"{np.sqrt(1 - alpha**2) / alpha:.2g}"
        found = re.search(rf"t {t:.2f}  sigma (\S+) +accuracy on the test split {right:.3f}", log)
        assert f"{float(found[1]):.2g}" == sigma
    assert f"loss 1.234; wrote {workdir}/classifier/classifier.npz" in log


def test_training_a_classifier_on_different_images_is_refused(workdir, monkeypatch):
    config = runs.vp_config()
    images = Images(np.asarray(build.load_images(config)), identity="others")
    monkeypatch.setattr(build, "load_images", lambda config, split="train": images)
    with pytest.raises(UserError, match="holds a run on different images: files is"):
        run_lib.classifier(config, workdir)
    assert not os.path.exists(f"{workdir}/classifier")


@pytest.mark.parametrize(
    ("label", "of_five", "of_more"),
    [(-1, [0, 1, 2, 0, 1], [2, 0, 1]), (0, [0] * 5, [0] * 3), (2, [2] * 5, [2] * 3)],
)
def test_samples_get_their_classes_and_settings_are_kept_separate(
    label, of_five, of_more, of_three, chains
):
    workdir, model, params = of_three
    name = f"label_{label}"
    config = runs.vp_config(
        **{"classifier.label": label, "classifier.scale": 1.5, "sampling.name": name}
    )
    directory = f"{workdir}/classconditional/step_{runs.STEP}_{name}"
    for count, expected, columns in [(5, of_five, 3), (8, of_more, 3), (1, [], 3)]:
        config.sampling.num_samples = count
        chains.clear()
        run_lib.classconditional(config, workdir)
        told = [label for call in chains for label in call["known"][0]]
        assert told == expected and all(call["known"][0].dtype == np.int32 for call in chains)
        for call in chains:
            assert (call["size"], call["task"]) == (3, Stream.CLASSES)
            assert (call["classifier"], call["num_frames"]) == (model, 0)
            network, of_classes = call["params"]
            runs.assert_ema(network, config, workdir)
            jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[-1], b), of_classes, params)
        assert sorted(os.listdir(directory)) == [
            "cost.json",
            "grid.png",
            "samples.npz",
            "settings.json",
        ]
        found = runs.read(directory, "samples.npz")
        images = [runs.drawn(i) for i in range(max(count, 5) if count != 1 else 8)]
        np.testing.assert_array_equal(found["samples"], images)
        np.testing.assert_array_equal(
            found["labels"], np.resize([0, 1, 2] if label < 0 else label, len(images))
        )
        picture = np.asarray(Image.open(f"{directory}/grid.png"))
        if label < 0:  # the class names are above the columns
            heading, picture = picture[:20], picture[20:]
            assert all((part > 128).any() for part in np.array_split(heading, columns, axis=1))
        runs.assert_shows(picture, runs.rows_of(images, columns))
    of_which = f"class {label}" if label >= 0 else "sample i has class i modulo 3"
    log = storage.read(f"{workdir}/log.txt").decode()
    assert f"wrote {directory}/samples.npz and grid.png: {of_which}\n" in log
    path = f"{workdir}/classifier/classifier.npz"
    assert runs.settings(directory) == {
        "sampling.method": "heun",
        "sampling.num_steps": 5,
        "sampling.schedule": "karras",
        "sampling.rho": 7.0,
        "sampling.churn": 0.0,
        "sampling.dtype": "float32",
        "sampling.precision": "default",
        "model.sigma_begin": 10.0,
        "model.sigma_end": 0.02,
        "model.num_levels": 6,
        "classifier": zlib.crc32(storage.read(path)),
        "classifier.scale": 1.5,
        "classifier.label": label,
        "seed": 7,
        "step": 4,
    }
    others = {
        "sampling.num_steps": 6,
        "sampling.schedule": "cosine",
        "sampling.rho": 6.0,
        "sampling.churn": 1.0,
        "sampling.dtype": "bfloat16",
        "sampling.precision": "high",
        "model.sigma_begin": 9.0,
        "classifier.scale": 1.0,
        "classifier.label": 1,
    }
    runs.assert_others_are_refused(run_lib.classconditional, config, workdir, others)
    meta = classifier_file.describe(config, model)
    classifier_file.save(path, jax.tree.map(lambda a: 2 * a, params), meta)
    with pytest.raises(
        UserError, match=r"with other settings: classifier is \d+ there and \d+ here"
    ):
        run_lib.classconditional(config, workdir)
