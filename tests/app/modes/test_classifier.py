"""`--mode=classifier` and `--mode=classconditional` with a network of one layer."""

import json
import os
import shutil
import zlib

import flax.linen as nn
import jax
import numpy as np
import pytest

import run_lib
from ncsn_jax import classifier as library_classifier
from ncsn_jax import sampling, sde, sigmas
from ncsn_jax._random import Stream
from ncsn_jax.app import build, classifier_file, classifier_training, samplers, storage
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
    """A copy of the run, where a classifier is `Linear`."""
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
    accuracy = classifier_training.evaluate(
        config, model, params, np.asarray(test_images), test_labels
    )
    described = classifier_file.describe(config, model)
    found, meta = classifier_file.load(f"{workdir}/classifier/classifier.npz", described)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert meta == described | {"accuracy": accuracy.tolist()}
    with pytest.raises(UserError, match="is there already: move it away"):
        run_lib.classifier(config, workdir)


@pytest.fixture
def of_three(workdir):
    """The work directory with a classifier of three classes, and that classifier."""
    model = Linear(3)
    meta = classifier_file.describe(runs.vp_config(), model)
    shapes = classifier_file.rebuild(meta)[1]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: 0.02 * rng.standard_normal(a.shape, np.float32), shapes)
    os.makedirs(f"{workdir}/classifier")
    classifier_file.save(f"{workdir}/classifier/classifier.npz", params, meta)
    return workdir, model, params


@pytest.mark.parametrize(("label", "labels"), [(-1, [0, 1, 2, 0, 1]), (2, [2] * 5)])
def test_samples_of_classes_are_the_library_s_guided_ones(label, labels, of_three):
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
    path = f"{workdir}/classconditional/step_{runs.STEP}/settings.json"
    assert json.loads(storage.read(path)) == samplers.settings(config) | {
        "step": runs.STEP,
        "classifier": zlib.crc32(storage.read(f"{workdir}/classifier/classifier.npz")),
        "classifier.scale": 1.5,
        "classifier.label": label,
    }


def test_class_conditional_mistakes_are_named(of_three, vp_run):
    workdir = of_three[0]
    with pytest.raises(UserError, match="holds no classifier: train it with --mode=classifier"):
        run_lib.classconditional(runs.vp_config(), vp_run)
    with pytest.raises(UserError, match="label=3 must be -1 .*, or below the classifier's 3"):
        run_lib.classconditional(runs.vp_config(**{"classifier.label": 3}), workdir)
