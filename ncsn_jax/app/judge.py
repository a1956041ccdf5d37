"""A small classifier of a dataset's own images, by which `--mode=evaluate` judges samples.

It needs no download. It is trained once for a dataset, on one device, and kept in the cache with its accuracy
on the test split. All runs on the dataset that use this cache share it, so their figures can be compared. A
class of its own takes what is not an image of the dataset: noise, shuffled pixels, mixtures of two images.
"""

import functools
import hashlib
import json
import logging
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.lax import Precision

from ncsn_jax.app import build, schema
from ncsn_jax.app.data import Batches, Images, cache
from ncsn_jax.app.progress import progress

# Part of the cached file's name. Raise it whenever the network or its training changes.
_VERSION = 1
_STEPS, _BATCH, _LEARNING_RATE, _SEED = 1500, 128, 2e-3, 0

_log = logging.getLogger("ncsn_jax")


class Network(nn.Module):
    """A convolutional network of images `[B, H, W, C]` in [0, 1]: returns features `[B, 64]` and logits.

    The last of the `num_classes + 1` logits is that of what is not an image of the dataset.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:  # noqa: D102
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), precision=Precision.HIGHEST)
        dense = functools.partial(nn.Dense, precision=Precision.HIGHEST)
        for features in (32, 64):
            x = nn.relu(conv(features)(x))
            x = nn.relu(conv(features, strides=2)(x))
        x = nn.LayerNorm()(dense(64)(x.reshape(x.shape[0], -1)))
        return x, dense(self.num_classes + 1)(nn.relu(x))


class Judge(NamedTuple):
    """A trained classifier.

    Attributes:
      network: the network.
      params: its parameters.
      accuracy: on the test split.
      digest: tells it from others.
    """

    network: Network
    params: Any
    accuracy: float
    digest: str


def load(config) -> Judge:
    """Returns the classifier of a configuration's dataset, trained if it is not in the cache.

    Raises:
      UserError: if the dataset has no labels or no test split.
    """
    (labels, classes), (unseen_labels, _) = (
        build.load_labels(config, split) for split in ("train", "test")
    )
    images, unseen = (build.load_images(config, split) for split in ("train", "test"))
    network = Network(classes)
    like = jax.jit(network.init)(jax.random.key(_SEED), jnp.zeros((1, *images.shape[1:])))
    _, unravel = ravel_pytree(like)
    settings = [_STEPS, _BATCH, _LEARNING_RATE, _SEED]
    key = [_VERSION, settings, described(config, images), described(config, unseen), classes]

    def make() -> tuple[np.ndarray, str]:
        _log.info("training a classifier of %d classes to judge samples by", classes)
        params = _train(network, like, images, labels)
        classify = jax.jit(
            lambda images: network.apply(params, images / 255.0)[1][:, :-1].argmax(1)
        )
        right = 0
        for first in range(0, len(unseen), _BATCH):
            rows = np.arange(first, first + _BATCH) % len(unseen)  # one shape compiles once
            fits = np.asarray(classify(np.asarray(unseen[rows], np.float32))) == unseen_labels[rows]
            right += fits[: len(unseen) - first].sum()
        return np.asarray(ravel_pytree(params)[0]), json.dumps(right / len(unseen))

    made, note = cache.array("judge", key, make)
    digest = hashlib.sha256(np.asarray(made).tobytes()).hexdigest()[:16]
    return Judge(network, unravel(jnp.asarray(made)), json.loads(note), digest)


def described(config, images: Images) -> list:
    """Returns what determines images: their files, and the fields by which they are read."""
    fields = ("dataset", "image_size", "channels", "crop_size", "background", "value_range")
    flat = schema.flatten(config)
    return [images.describe(), {field: flat[f"data.{field}"] for field in fields}]


def _train(network: Network, params, images, labels):
    schedule = optax.cosine_decay_schedule(_LEARNING_RATE, _STEPS)
    optimizer = optax.adamw(schedule, weight_decay=1e-2)

    @jax.jit
    def step(params, state, images, labels):
        def loss(params):
            logits = network.apply(params, images / 255.0)[1]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, batches = optimizer.init(params), Batches(images, _SEED, _BATCH)
    none = np.full(_BATCH // 2, network.num_classes)
    with progress("training the classifier", _STEPS) as advanced:
        for i in range(_STEPS):
            rows = batches.indices(i)
            some = np.asarray(images[rows], np.float32)
            others = spoil(some[: len(none)], np.random.default_rng([_SEED, i]))
            classes = np.concatenate([labels[images.replacements(rows)], none])
            params, state = step(params, state, np.concatenate([some, others]), classes)
            advanced(1)
    return params


def spoil(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns what is not an image of the dataset, a third each: noise, shuffled pixels, mixtures of two."""
    noise = rng.uniform(0, 255, images.shape)
    shuffled = rng.permuted(images.reshape(len(images), -1), axis=1).reshape(images.shape)
    weight = rng.uniform(0.35, 0.65, (len(images), 1, 1, 1))
    mixed = weight * images + (1 - weight) * np.roll(images, 1, axis=0)
    kind = np.arange(len(images)) % 3
    return np.stack([noise, shuffled, mixed])[kind, np.arange(len(images))].astype(np.float32)
