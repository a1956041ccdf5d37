"""The classifier in the application: learns a task that is known to be easy, and survives its file."""

import copy
import functools
import json
import os
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ncsn_jax import sde
from ncsn_jax.app import classification, pictures
from ncsn_jax.errors import UserError, show
from ncsn_jax.models import NoisyClassifier

VE = sde.VE(0.01, 0.2)
MODEL = NoisyClassifier(3, 4)
META = classification.describe(
    MODEL, VE, dataset="digits", image_shape=(8, 8, 1), centered=False
) | {"accuracy": [0.9, 0.5]}


@pytest.fixture(scope="module")
def stripes():
    """24 noisy images of vertical stripes, 24 of horizontal ones."""
    rng = np.random.default_rng(0)
    upright = np.broadcast_to(np.arange(4) % 2 * 200, (4, 4))
    x = np.stack([upright] * 24 + [upright.T] * 24)[..., None]
    return (x + rng.integers(0, 50, x.shape)).astype(np.uint8), np.arange(48) // 24


@pytest.fixture(scope="module")
def weights():
    """Parameters of MODEL."""
    shapes = classification._shapes(MODEL, META)
    rng = np.random.default_rng(0)
    flat = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


class Linear(nn.Module):
    """A stand-in for the network where only the loop around it is tested."""

    num_classes: int
    features: int

    @nn.compact
    def __call__(self, x, sigma):
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


def test_training_learns_stripes(stripes, monkeypatch):
    """Noise of at most 0.2 on pixels that differ by 0.6: nothing but the direction is to be learned."""
    small = functools.partial(NoisyClassifier, ch_mult=(1,))  # half as much to compile
    monkeypatch.setattr(classification, "NoisyClassifier", small)
    calls = []
    options = dict(num_steps=60, batch_size=16, learning_rate=1e-2, features=4)
    params, history = classification.train_classifier(
        *stripes, 2, VE, **options, advanced=lambda *call: calls.append(call)
    )
    assert [tuple(record.values()) for record in history] == calls
    assert [record["step"] for record in history] == [50, 60]
    assert history[-1]["accuracy"] > 0.95 and history[-1]["loss"] < 0.2
    found = classification.evaluate(small(2, 4), params, VE, *stripes, num_bins=2)
    assert np.all(found.accuracy > 0.95) and np.all(found.loss < 0.2)


def test_evaluation_is_by_noise_and_not_by_batch():
    """A threshold between two brightnesses: its accuracy under noise is a normal probability."""

    class Threshold:
        num_classes = 2

        def apply(self, params, x, sigma):
            return jnp.stack([jnp.zeros(len(x)), 1e3 * (x[:, 0, 0, 0] - params)], axis=1)

    x = np.repeat(np.array([64, 191], np.uint8), 500).reshape(1000, 1, 1, 1)
    y = np.arange(1000) // 500
    process = sde.VE(0.02, 2.0)
    evaluate = functools.partial(classification.evaluate, Threshold(), 0.5, process, x, y)
    found = evaluate(num_bins=4)
    np.testing.assert_allclose(found.t, [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(found.sigma, 0.02 * 100**found.t, rtol=1e-5)
    for i in range(4):
        sigma = 0.02 * 100 ** np.linspace(i / 4, (i + 1) / 4, 100)
        expected = jax.scipy.stats.norm.cdf((191 - 64) / 510 / sigma).mean()
        error = 4 * np.sqrt(expected * (1 - expected) / 1000) + 1e-3  # four standard errors
        assert abs(found.accuracy[i] - expected) < error
    # Not a divisor: the last batch is filled up with images that do not count.
    ragged = evaluate(num_bins=4, batch_size=300)
    np.testing.assert_array_equal(ragged.accuracy, found.accuracy)
    np.testing.assert_allclose(ragged.loss, found.loss, rtol=1e-5)


def test_training_is_a_function_of_its_arguments(stripes, monkeypatch):
    monkeypatch.setattr(classification, "NoisyClassifier", Linear)
    options = dict(seed=3, num_steps=3, batch_size=16)
    first, again = (classification.train_classifier(*stripes, 2, VE, **options) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_a_loss_that_is_not_finite_ends_the_training(stripes, monkeypatch):
    monkeypatch.setattr(classification, "NoisyClassifier", Linear)
    with pytest.raises(
        UserError, match=r"loss is (nan|inf) by step 3: .*learning_rate=1e\+38 may be"
    ):
        classification.train_classifier(
            *stripes, 2, VE, num_steps=3, batch_size=16, learning_rate=1e38
        )


def test_wrong_data_is_refused(stripes):
    x, y = stripes
    train = lambda *a, **k: classification.train_classifier(*a, VE, **k)
    for call, message in [
        (lambda: train(x / 255, y, 2), "images must be uint8"),
        (lambda: train(x[0], y, 2), r"images must be uint8 \[N, H, W, C\], got uint8 of shape"),
        (lambda: train(x, y[:3], 2), r"labels must be integers of shape \(48,\), got int64 of"),
        (lambda: train(x, y / 2, 2), "labels must be integers"),
        (lambda: train(x, y + 1, 2), r"labels must be in \[0, 2\), got 1 to 2"),
        (lambda: train(x, y, 2, num_steps=0), "num_steps must be"),
        (lambda: train(x, y, 2, batch_size=0), "batch_size must be"),
        (lambda: train(x, y, 2, learning_rate=0.0), "learning_rate must be"),
        (lambda: train(x, y * 0, 1), "num_classes must be at least 2"),
        (
            lambda: classification.evaluate(MODEL, {}, VE, x, y, num_bins=0),
            "num_bins must be",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("process", [VE, sde.VP(0.2, 10.0), sde.SubVP()])
def test_a_file_holds_all_of_it(process, weights, tmp_path):
    path = str(tmp_path / "classifier.npz")
    meta = META | {
        "sde": classification.describe(MODEL, process, dataset="", image_shape=(), centered=True)[
            "sde"
        ]
    }
    classification.save(path, weights, meta)
    assert os.listdir(tmp_path) == ["classifier.npz"]
    found = classification.load(path, {"dataset": "digits", "image_shape": (8, 8, 1)})
    assert (found.model, found.sde, found.meta) == (MODEL, process, meta)
    jax.tree.map(np.testing.assert_array_equal, found.params, weights)
    expected = classification.describe(
        MODEL, sde.VE(0.01, 3.0), dataset="mnist", image_shape=(8, 8, 1), centered=False
    )
    with pytest.raises(
        UserError, match="dataset is 'digits' there and 'mnist' here; sde is"
    ) as caught:
        classification.load(path, expected)
    assert path in str(caught.value) and "image_shape" not in str(caught.value)


def refused(path, message):
    with pytest.raises(UserError, match=message) as caught:
        classification.load(str(path))
    text = str(caught.value)
    assert str(path) in text and text.isprintable() and "cannot be read as a classifier" in text


def test_damaged_and_foreign_files_are_one_line(weights, tmp_path):
    path = tmp_path / "classifier.npz"
    refused(path, "is no file")
    classification.save(str(path), weights, META)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refused(path, "BadZipFile")
    middle = whole.index(b"kernel") + 100
    path.write_bytes(whole[:middle] + bytes(20) + whole[middle + 20 :])
    refused(path, "BadZipFile: .Bad CRC|error")
    np.savez(path, samples=np.zeros(3))
    refused(path, "KeyError")
    np.savez(path, meta=np.zeros(3))
    refused(path, "'meta' is no text")
    for text, message in [
        ("[]", "no object"),
        ("[" * 9999, "Recursion"),
        ("{", "JSON"),
        ("{}", "num_classes=None"),
    ]:
        np.savez(path, meta=np.asarray(text))
        refused(path, message)
    path.unlink()
    os.mkfifo(path)
    refused(path, "is no file")


@pytest.mark.parametrize(
    ("name", "value"),  # None of them is sound.
    [
        ("num_classes", 1),
        ("num_classes", True),
        ("num_classes", 10**9),
        ("features", 6.0),
        ("features", 9),  # no groups of one size
        ("ch_mult", []),
        ("ch_mult", [1] * 99),
        ("image_shape", [8, 8]),
        ("centered", 0),
        ("dataset", None),
        ("sde", {"name": "VE", "sigma_min": 0.01}),
        ("sde", {"name": "VE", "sigma_min": 0.01, "sigma_max": "x"}),
        ("sde", {"name": "VE", "sigma_min": 2.0, "sigma_max": 1.0}),
        ("sde", {"name": "XX"}),
        ("sde", {"name": []}),
    ],
)
def test_files_that_describe_no_classifier_are_refused(name, value, weights, tmp_path):
    meta = META | {name: value}
    path = tmp_path / "classifier.npz"
    message = f"the description has {name}=" + re.escape(show(value))
    message = f"{message}|GroupNorm needs|0 < sigma_min < sigma_max must hold"
    with pytest.raises(ValueError, match=message):
        classification.save(str(path), weights, meta)
    assert not path.exists()
    pictures.write_npz(str(path), meta=np.asarray(json.dumps(meta)))
    refused(path, "ValueError")


def test_parameters_of_another_network_are_refused(weights, tmp_path):
    path = str(tmp_path / "classifier.npz")
    params = copy.deepcopy(weights)
    with pytest.raises(ValueError, match=r"end_dense/bias is float32 of shape \(3,\), expected"):
        classification.save(path, params, META | {"num_classes": 4})
    kernel = params["params"]["begin_conv"]["kernel"]
    kernel[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="begin_conv/kernel has values that are not finite"):
        classification.save(path, params, META)
    del params["params"]["begin_conv"]
    with pytest.raises(ValueError, match="there or missing that should not be: .*begin_conv/bias"):
        classification.save(path, params, META)
