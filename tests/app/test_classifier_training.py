"""Tests the training and evaluation of a classifier on tasks whose answer is known."""

import functools
import logging
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_ve
from ncsn_jax import classifier, sde, training
from ncsn_jax._random import Stream, stream_key
from ncsn_jax.app import classifier_training
from ncsn_jax.app.data import Batches, Images
from ncsn_jax.app.data import images as images_of
from ncsn_jax.app.data.images import Source
from ncsn_jax.errors import UserError
from ncsn_jax.models import NoisyClassifier
from tests.running import load_diffusion_config


def make_config(seed=0, sigma_end=0.01, sigma_begin=0.2, centered=False, **options):
    """Returns a configuration with a variance-exploding SDE and these options of the classifier."""
    model = {"model.sigma_end": sigma_end, "model.sigma_begin": sigma_begin}
    of_classifier = {f"classifier.{name}": value for name, value in options.items()}
    changes = {"seed": seed, "data.centered": centered}
    return load_diffusion_config(digits_ve, **model, **of_classifier, **changes)


@pytest.fixture(scope="module")
def stripes():
    """Returns 24 noisy images of vertical stripes and 24 of horizontal stripes."""
    rng = np.random.default_rng(0)
    upright = np.broadcast_to(np.arange(4) % 2 * 200, (4, 4))
    x = np.stack([upright] * 24 + [upright.T] * 24)[..., None]
    x = (x + rng.integers(0, 50, x.shape)).astype(np.uint8)
    return Images(x), np.arange(48) // 24


class Linear(nn.Module):
    """Stands in for the network where only the loop around it is tested."""

    num_classes: int = 2

    @nn.compact
    def __call__(self, x, sigma):
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


def test_training_learns_to_classify_stripes(stripes):
    """With noise of at most 0.2 on pixels that differ by 0.6, only the direction matters."""
    model = NoisyClassifier(2, 4, ch_mult=(1,))
    config = make_config(num_steps=60, batch_size=16, learning_rate=1e-2)
    params, loss = classifier_training.train_classifier(config, model, *stripes)
    assert loss < 0.2
    accuracy = classifier_training.evaluate(config, model, params, *stripes, num_bins=2)
    assert accuracy.shape == (2,) and np.all(accuracy > 0.95)


@pytest.mark.parametrize("centered", [False, True])
def test_training_runs_the_library_steps_on_the_batches_of_the_seed(centered, stripes, caplog):
    images, labels = stripes
    options = dict(num_steps=53, batch_size=16, learning_rate=0.1)
    config = make_config(seed=3, centered=centered, **options)
    log = logging.getLogger("ncsn_jax")
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.DEBUG, "ncsn_jax"):
        patch.setattr(log, "propagate", True)
        patch.setattr(log, "handlers", [])
        found = classifier_training.train_classifier(config, Linear(), images, labels)
    optimizer = training.make_optimizer(0.1)
    init = training.make_init(Linear(), optimizer, (4, 4, 1), ema=False)
    state, losses = init(stream_key(3, Stream.CLASSIFIER_PARAMETERS)), []
    options = dict(model=Linear(), sde=sde.VE(0.01, 0.2), optimizer=optimizer, centered=centered)
    step = jax.jit(functools.partial(classifier.train_step, **options))
    for i in range(53):
        rows = Batches(images, 3, 16).indices(i)
        state, metrics = step(state, images[rows], labels[rows], 3)
        losses.append(metrics.loss)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, found[0], state.params)
    assert found[1] == pytest.approx(np.mean(losses[50:]), rel=1e-4)
    for text, last, first in zip(caplog.messages, (50, 53), (0, 50), strict=True):
        step, _, loss = text.split()[1:4]
        assert int(step) == last and float(loss) == pytest.approx(np.mean(losses[first:last]), 1e-3)


class Damaged(Source):
    """Images whose brightness is their number; 3 and 7, the last, are damaged."""

    shape, dtype, what = (8, 1, 1, 1), np.dtype(np.uint8), "eight"

    def name(self, index):
        return str(index)

    def image(self, index):
        if index in (3, 7):
            raise images_of.Damaged("as it should be")
        return np.full((1, 1, 1), 30 * index, np.uint8)


def test_a_damaged_image_takes_the_label_of_its_replacement(monkeypatch):
    """This holds in training and in evaluation; each label is its image's index."""
    monkeypatch.setattr(images_of, "_MAX_DAMAGED", 0.5)
    seen = []

    class Exact:
        """Classifies an image by its brightness."""

        num_classes = 8

        def apply(self, params, x, sigma):
            brightness = jnp.arange(8)[None] * 30 / 255
            return -1e6 * (x[:, :, 0, 0] - brightness) ** 2

    config = make_config(num_steps=4, batch_size=8, sigma_end=1e-4, sigma_begin=2e-4)
    found = classifier_training.evaluate(
        config, Exact(), None, Images(Damaged()), np.arange(8), num_bins=2
    )
    np.testing.assert_array_equal(found, [1.0, 1.0])

    def step(state, images, labels, seed, **_):
        seen.append((images[:, 0, 0, 0] // 30, labels))
        return state, classifier.Metrics(np.float32(1), np.float32(1))

    monkeypatch.setattr(classifier_training.classifier, "train_step", step)
    as_it_is = types.SimpleNamespace(jit=lambda f, **_: f, device_get=jax.device_get)
    monkeypatch.setattr(classifier_training, "jax", as_it_is)
    classifier_training.train_classifier(config, Linear(8), Images(Damaged()), np.arange(8))
    for brightness, labels in seen:
        np.testing.assert_array_equal(brightness, labels)
        assert sorted(labels) == [0, 0, 1, 2, 4, 4, 5, 6]
    assert len(seen) == 4


def test_a_non_finite_loss_ends_training(stripes):
    config = make_config(num_steps=3, batch_size=16, learning_rate=1e38)
    with pytest.raises(
        UserError, match=r"loss is (nan|inf) at step 3: .*learning_rate=1e\+38 may be"
    ):
        classifier_training.train_classifier(config, Linear(), *stripes)


def test_evaluation_depends_on_noise_and_not_on_batch_size():
    """The accuracy of a threshold between two brightnesses under noise is a normal probability."""

    class Threshold:
        num_classes = 2

        def apply(self, params, x, sigma):
            return jnp.stack([jnp.zeros(len(x)), 1e3 * (x[:, 0, 0, 0] - params)], axis=1)

    x = np.repeat(np.array([64, 191], np.uint8), 500).reshape(1000, 1, 1, 1)
    y = np.arange(1000) // 500
    config = make_config(sigma_end=0.02, sigma_begin=2.0)
    evaluate = functools.partial(
        classifier_training.evaluate, config, Threshold(), 0.5, Images(x), y
    )
    found = evaluate(num_bins=4)
    for i in range(4):
        sigma = 0.02 * 100 ** np.linspace(i / 4, (i + 1) / 4, 100)
        expected = jax.scipy.stats.norm.cdf((191 - 64) / 510 / sigma).mean()
        error = 4 * np.sqrt(expected * (1 - expected) / 1000) + 1e-3  # four standard errors
        assert abs(found[i] - expected) < error
    # Not a divisor: the last batch is padded with images that do not count.
    np.testing.assert_array_equal(evaluate(num_bins=4, batch_size=300), found)
