"""Trains the classifier of noisy images on one device, and measures it by noise."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax import classifier, losses, training
from ncsn_jax._random import Stream, example_keys, fold_in, split_each, stream_key
from ncsn_jax.app.data import Batches
from ncsn_jax.errors import UserError
from ncsn_jax.images import to_float
from ncsn_jax.models import NoisyClassifier
from ncsn_jax.sde import SDE

# Between two records of the history.
_STEPS_PER_RECORD = 50


class Evaluation(NamedTuple):
    """How well images are classified by noise, each array `[num_bins]`.

    Attributes:
      t: the middle of each bin of times.
      sigma: the noise at that time in units of the data, `sde.sigma(t)`.
      loss: the mean cross-entropy in nats.
      accuracy: the share that is classified as its label.
    """

    t: np.ndarray
    sigma: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray


def train_classifier(
    model: NoisyClassifier,
    sde: SDE,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    centered: bool = False,
    advanced: Callable[[int, float, float], None] = lambda step, loss, accuracy: None,
) -> tuple[Any, list[dict]]:
    """Trains a classifier with Adam on one device.

    Args:
      model: the network.
      sde: the SDE whose noise it is to know, at times uniform in (1e-5, 1].
      images: uint8 `[N, H, W, C]`.
      labels: integers `[N]` in [0, K).
      seed: of the order, the times, the noise and the initial parameters, >= 0.
      num_steps, batch_size: >= 1.
      learning_rate: > 0.
      centered: whether the SDE's data is in [-1, 1], and not [0, 1].
      advanced: called with the step, and the mean loss and accuracy of the last 50 of them.

    Returns:
      The parameters, and a record `{"step": ..., "loss": ..., "accuracy": ...}` for each call of
      `advanced`.

    Raises:
      UserError: if the loss is not finite.
    """
    optimizer = training.make_optimizer(learning_rate)
    key = stream_key(seed, Stream.CLASSIFIER_PARAMETERS)
    state = training.make_init(model, optimizer, images.shape[1:], ema=False)(key)
    options = {"model": model, "sde": sde, "optimizer": optimizer, "centered": centered}
    step = jax.jit(functools.partial(classifier.train_step, **options), donate_argnums=0)
    batches = Batches(images, seed, batch_size)
    history, measured = [], []
    for i in range(1, num_steps + 1):
        rows = batches.indices(i - 1)
        state, metrics = step(state, images[rows], labels[rows], seed)
        measured.append(metrics)
        if i % _STEPS_PER_RECORD == 0 or i == num_steps:
            means = np.mean(jax.device_get(measured), axis=0)
            loss, accuracy = (float(mean) for mean in means)
            if not math.isfinite(loss):
                raise UserError(
                    f"the classifier's loss is {loss} by step {i}: "
                    f"config.classifier.learning_rate={learning_rate} may be too large"
                )
            history.append({"step": i, "loss": loss, "accuracy": accuracy})
            advanced(i, loss, accuracy)
            measured = []
    return state.params, history


def evaluate(
    model: NoisyClassifier,
    params: Any,
    sde: SDE,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int = 0,
    centered: bool = False,
    num_bins: int = 10,
    batch_size: int = 250,
) -> Evaluation:
    """Measures a classifier by noise: every image once in each of `num_bins` equal parts of (0, 1].

    Args:
      model, params, sde: as for `classifier.log_likelihood`.
      images: uint8 `[N, H, W, C]`, which it was not trained on.
      labels: integers `[N]`.
      seed: of the times in each bin and the noise.
      centered: as for `train_classifier`.
      num_bins: >= 1.
      batch_size: >= 1; it changes nothing but rounding.
    """

    @jax.jit
    def measure(params, place, images, labels, index):
        keys = example_keys(stream_key(seed, Stream.CLASSIFIER_TEST), place)
        time_keys, noise_keys = split_each(fold_in(keys, index), 2)
        t = (index + losses.sample_times(time_keys, len(place))) / num_bins
        x = to_float(images, centered=centered)
        logits_fn = classifier.logits_fn(model, params, sde)
        return classifier.loss(noise_keys, sde, logits_fn, x, labels, t)

    totals = np.zeros((2, num_bins))
    batch_size = min(batch_size, len(images))
    for start in range(0, len(images), batch_size):
        # The last batch is filled up, so that all have one shape.
        place = np.arange(start, start + batch_size)
        rows = place % len(images)
        for index in range(num_bins):
            found = measure(params, place, images[rows], labels[rows], index)
            totals[:, index] += [np.asarray(a)[place < len(images)].sum() for a in found]
    t = (np.arange(num_bins) + 0.5) / num_bins
    sigma = np.asarray(sde.sigma(jnp.asarray(t, jnp.float32)))
    return Evaluation(t, sigma, *(totals / len(images)))
