"""Trains the noisy-image classifier on one device, and measures its accuracy by noise level."""

import functools
import logging
import math
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ncsn_jax import classifier, losses, training
from ncsn_jax._random import Stream, example_keys, fold_in, split_each, stream_key
from ncsn_jax.app import build
from ncsn_jax.app.data import Batches, Images
from ncsn_jax.app.data.sources import Labels
from ncsn_jax.app.progress import progress
from ncsn_jax.errors import UserError
from ncsn_jax.images import to_float
from ncsn_jax.models import NoisyClassifier

_STEPS_PER_LOG = 50

_log = logging.getLogger("ncsn_jax")


def train_classifier(
    config: ConfigDict, model: NoisyClassifier, images: Images, labels: np.ndarray | Labels
) -> tuple[Any, float]:
    """Trains a classifier with Adam on one device, as `config.classifier` says.

    It sees the noise of the configuration's SDE at times uniform in (1e-5, 1]. The order of the images,
    the times, the noise and the initial parameters are functions of `config.seed`. Every 50 steps it logs
    their mean loss and accuracy.

    Args:
      config: the configuration.
      model: the network.
      images: uint8 `[N, H, W, C]`.
      labels: integers `[N]` in [0, K), in memory or read on demand.

    Returns:
      The parameters, and the mean loss that was logged last.

    Raises:
      UserError: if the loss is not finite.
    """
    options, optimizer = config.classifier, training.make_optimizer(config.classifier.learning_rate)
    key = stream_key(config.seed, Stream.CLASSIFIER_PARAMETERS)
    state = training.make_init(model, optimizer, images.shape[1:], ema=False)(key)
    train_step = functools.partial(
        classifier.train_step,
        model=model,
        sde=build.make_sde(config),
        optimizer=optimizer,
        centered=config.data.centered,
    )
    step = jax.jit(train_step, donate_argnums=0)
    batches = Batches(images, config.seed, options.batch_size)
    measured = []
    with progress("training", options.num_steps) as advanced:
        for i in range(1, options.num_steps + 1):
            rows = batches.indices(i - 1)
            some = images[rows]  # reading them finds the damaged ones
            state, metrics = step(state, some, labels[images.replacements(rows)], config.seed)
            measured.append(metrics)
            if i % _STEPS_PER_LOG and i < options.num_steps:
                continue
            loss, accuracy = np.mean(jax.device_get(measured), axis=0)
            if not math.isfinite(loss):
                raise UserError(
                    f"the classifier's loss is {loss} at step {i}: config.classifier.learning_rate="
                    f"{options.learning_rate} may be too large"
                )
            _log.debug("step %d  loss %.4g  accuracy %.3f", i, loss, accuracy)
            advanced(len(measured))
            measured = []
    return state.params, float(loss)


def evaluate(
    config: ConfigDict,
    model: NoisyClassifier,
    params: Any,
    images: Images,
    labels: np.ndarray | Labels,
    *,
    num_bins: int = 10,
    batch_size: int = 250,
) -> np.ndarray:
    """Measures a classifier by noise: every image once in each of `num_bins` equal intervals of (0, 1].

    Args:
      config: the configuration it was trained with.
      model, params: as for `classifier.log_likelihood`.
      images: uint8 `[N, H, W, C]`, which it was not trained on.
      labels: integers `[N]`.
      num_bins: at least 1.
      batch_size: at least 1; it does not change the result.

    Returns:
      The accuracy in each bin, `[num_bins]`.
    """
    process = build.make_sde(config)

    @jax.jit
    def measure(params, place, images, labels, index):
        keys = example_keys(stream_key(0, Stream.CLASSIFIER_TEST), place)
        time_keys, noise_keys = split_each(fold_in(keys, index), 2)
        t = (index + losses.sample_times(time_keys, len(place))) / num_bins
        x = to_float(images, centered=config.data.centered)
        logits_fn = classifier.logits_fn(model, params, process)
        return classifier.loss(noise_keys, process, logits_fn, x, labels, t)[1]

    right = np.zeros(num_bins)
    batch_size = min(batch_size, len(images))
    for start in range(0, len(images), batch_size):
        # Padding the last batch gives all batches one shape.
        place = np.arange(start, start + batch_size)
        rows = place % len(images)
        some = images[rows]
        classes = labels[images.replacements(rows)]
        for index in range(num_bins):
            found = measure(params, place, some, classes, index)
            right[index] += np.asarray(found)[place < len(images)].sum()
    return right / len(images)
