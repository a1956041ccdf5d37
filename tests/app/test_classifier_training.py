"""The training and the test of a classifier, on tasks whose answer is known."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import classifier, sde, training
from ncsn_jax._random import Stream, stream_key
from ncsn_jax.app import classifier_training
from ncsn_jax.app.data import Batches
from ncsn_jax.errors import UserError
from ncsn_jax.models import NoisyClassifier

VE = sde.VE(0.01, 0.2)


@pytest.fixture(scope="module")
def stripes():
    """24 noisy images of vertical stripes, 24 of horizontal ones."""
    rng = np.random.default_rng(0)
    upright = np.broadcast_to(np.arange(4) % 2 * 200, (4, 4))
    x = np.stack([upright] * 24 + [upright.T] * 24)[..., None]
    return (x + rng.integers(0, 50, x.shape)).astype(np.uint8), np.arange(48) // 24


class Linear(nn.Module):
    """A stand-in for the network where only the loop around it is tested."""

    num_classes: int = 2

    @nn.compact
    def __call__(self, x, sigma):
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


def test_training_learns_stripes(stripes):
    """Noise of at most 0.2 on pixels that differ by 0.6: nothing but the direction is to be learned."""
    model = NoisyClassifier(2, 4, ch_mult=(1,))
    calls = []
    params, history = classifier_training.train_classifier(
        *(model, VE, *stripes),
        **dict(seed=0, num_steps=60, batch_size=16, learning_rate=1e-2),
        advanced=lambda *call: calls.append(call),
    )
    assert [tuple(record.values()) for record in history] == calls
    assert [record["step"] for record in history] == [50, 60]
    assert history[-1]["accuracy"] > 0.95 and history[-1]["loss"] < 0.2
    found = classifier_training.evaluate(model, params, VE, *stripes, num_bins=2)
    assert np.all(found.accuracy > 0.95) and np.all(found.loss < 0.2)


@pytest.mark.parametrize("centered", [False, True])
def test_training_is_the_library_s_steps_on_the_batches_of_the_seed(centered, stripes):
    images, labels = stripes
    options = dict(seed=3, num_steps=3, batch_size=16, learning_rate=0.1, centered=centered)
    params, history = classifier_training.train_classifier(Linear(), VE, images, labels, **options)
    optimizer = training.make_optimizer(0.1)
    init = training.make_init(Linear(), optimizer, (4, 4, 1), ema=False)
    state, losses = init(stream_key(3, Stream.CLASSIFIER_PARAMETERS)), []
    for i in range(3):
        rows = Batches(images, 3, 16).indices(i)
        state, metrics = jax.jit(
            functools.partial(
                classifier.train_step,
                **dict(model=Linear(), sde=VE, optimizer=optimizer, centered=centered),
            )
        )(state, images[rows], labels[rows], 3)
        losses.append(metrics.loss)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), params, state.params)
    assert history == [
        {"step": 3, "loss": pytest.approx(np.mean(losses)), "accuracy": history[0]["accuracy"]}
    ]


def test_a_loss_that_is_not_finite_ends_the_training(stripes):
    options = dict(seed=0, num_steps=3, batch_size=16, learning_rate=1e38)
    with pytest.raises(
        UserError, match=r"loss is (nan|inf) by step 3: .*learning_rate=1e\+38 may be"
    ):
        classifier_training.train_classifier(Linear(), VE, *stripes, **options)


def test_evaluation_is_by_noise_and_not_by_batch():
    """A threshold between two brightnesses: its accuracy under noise is a normal probability."""

    class Threshold:
        num_classes = 2

        def apply(self, params, x, sigma):
            return jnp.stack([jnp.zeros(len(x)), 1e3 * (x[:, 0, 0, 0] - params)], axis=1)

    x = np.repeat(np.array([64, 191], np.uint8), 500).reshape(1000, 1, 1, 1)
    y = np.arange(1000) // 500
    process = sde.VE(0.02, 2.0)
    evaluate = functools.partial(classifier_training.evaluate, Threshold(), 0.5, process, x, y)
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
