"""Tests a classifier's file: the round trip, and one-line errors for other files."""

import copy
import json
import os

import jax
import numpy as np
import pytest
from flax import traverse_util

from ncsn_jax.app import classifier_file, pictures
from ncsn_jax.errors import UserError
from ncsn_jax.models import NoisyClassifier
from tests.running import load_diffusion_config

MODEL = NoisyClassifier(3, 4)


def describe(model=MODEL, **changes):
    config = load_diffusion_config(**{"model.sigma_begin": 0.2} | changes)
    return classifier_file.describe(config, model)


META = describe() | {"accuracy": [0.9, 0.5]}


@pytest.fixture(scope="module")
def weights():
    """Returns parameters of MODEL."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda like: rng.standard_normal(like.shape, np.float32), classifier_file.rebuild(META)[1]
    )


@pytest.mark.parametrize("process", ["ve", "vp", "subvp"])
def test_a_classifier_survives_the_round_trip(process, weights, tmp_path):
    path = str(tmp_path / "classifier.npz")
    changes = {"training.sde": process}
    meta = describe(**changes) | {"accuracy": [0.9]}
    classifier_file.save(path, weights, meta)
    assert os.listdir(tmp_path) == ["classifier.npz"]
    params, found = classifier_file.load(path, describe(NoisyClassifier(2), **changes))
    assert found == meta and classifier_file.rebuild(found)[0] == MODEL
    jax.tree.map(np.testing.assert_array_equal, params, weights)


def test_a_classifier_for_a_different_run_is_refused(weights, tmp_path):
    path = str(tmp_path / "classifier.npz")
    classifier_file.save(path, weights, META)
    for field, value, message in [
        ("data.dataset", "mnist", "dataset is 'digits' there and 'mnist' here"),
        ("model.sigma_begin", 3.0, "sde is .*0.2.* there and .*3.0.* here"),
        ("training.sde", "vp", "sde is .*'VE'.* there and .*'VP'.* here"),
        ("data.image_size", 16, r"image_shape is \[8, 8, 1\] there and \[16, 16, 1\] here"),
        ("data.centered", True, "centered is False there and True here"),
    ]:
        with pytest.raises(
            UserError, match=f"{path} holds a classifier for a different run: {message}$"
        ):
            classifier_file.load(path, describe(**{field: value}))


def assert_refused(path, message="cannot be read as a classifier"):
    with pytest.raises(UserError, match=message) as caught:
        classifier_file.load(str(path), describe())
    text = str(caught.value)
    assert str(path) in text and text.isprintable() and "cannot be read as a classifier" in text


def test_damaged_and_foreign_files_are_refused_on_one_line(weights, tmp_path):
    path = tmp_path / "classifier.npz"
    assert_refused(path, "FileNotFoundError")
    classifier_file.save(str(path), weights, META)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\x00" * 100):
        path.write_bytes(damaged)
        assert_refused(path, "BadZipFile")
    np.savez(path, other=np.zeros(3))
    assert_refused(path, "KeyError")
    np.savez(path, meta=np.zeros(3))
    assert_refused(path)
    for text in ("[]", "[" * 9999, "{", "{}", "5", json.dumps(META)):
        np.savez(path, meta=np.asarray(text))
        assert_refused(path)


@pytest.mark.parametrize(
    ("name", "value"),  # All are invalid.
    [
        ("num_classes", 1),
        ("num_classes", 4),
        ("num_classes", "3"),
        ("num_classes", 10**9),
        ("num_classes", 10**30),
        ("features", 6.0),
        ("features", 9),  # not divisible into equal groups
        ("features", None),
    ],
)
def test_files_that_describe_a_different_network_are_refused(name, value, weights, tmp_path):
    path = tmp_path / "classifier.npz"
    classifier_file.save(str(path), weights, META | {name: value})
    assert_refused(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kernel: kernel[:1], r"begin_conv/kernel is float32 of shape .* expected float32"),
        (lambda kernel: kernel.astype("f8"), "begin_conv/kernel is float64"),
        (lambda kernel: kernel * np.nan, "begin_conv/kernel has non-finite values"),
        (lambda kernel: None, "begin_conv/kernel.npy"),
    ],
)
def test_parameters_of_a_different_network_are_refused(change, message, weights, tmp_path):
    path = str(tmp_path / "classifier.npz")
    flat = traverse_util.flatten_dict(copy.deepcopy(weights), sep="/")
    changed = change(flat.pop("params/begin_conv/kernel"))
    if changed is not None:
        flat["params/begin_conv/kernel"] = changed
    pictures.write_npz(path, meta=np.asarray(json.dumps(META)), **flat)
    assert_refused(path, message)
