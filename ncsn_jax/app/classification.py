"""The classifier of noisy images in the application: its training on one device, its test, its file.

`train_classifier` trains a `NoisyClassifier` for an SDE and `evaluate` measures it by noise; `save` and
`load` keep it in one `.npz` file of the parameters by name and, as JSON, of what they belong to. Hidden
here are that format and whatever a file may hold that is no classifier.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ncsn_jax import classifier, losses, training
from ncsn_jax._random import Stream, example_keys, fold_in, split_each, stream_key
from ncsn_jax.app.data import Batches
from ncsn_jax.app.pictures import read_npz, write_npz
from ncsn_jax.errors import UserError, differences, show
from ncsn_jax.images import to_float
from ncsn_jax.models import NoisyClassifier
from ncsn_jax.sampling._langevin import check_count
from ncsn_jax.sde import SDE, VE, VP, SubVP

_SDES = {"VE": VE, "VP": VP, "SubVP": SubVP}

# Between two records of the history.
_STEPS_PER_RECORD = 50

# No network that is described has a larger number in it.
_MOST = 10**6


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


class Trained(NamedTuple):
    """A classifier from a file.

    Attributes:
      model, params, sde: as for `classifier.log_likelihood`.
      meta: what `describe` says of it, and whatever else was saved with it.
    """

    model: NoisyClassifier
    params: Any
    sde: SDE
    meta: dict


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    sde: SDE,
    *,
    seed: int = 0,
    num_steps: int = 1000,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    features: int = 16,
    centered: bool = False,
    advanced: Callable[[int, float, float], None] = lambda step, loss, accuracy: None,
) -> tuple[Any, list[dict]]:
    """Trains `NoisyClassifier(num_classes, features)` with Adam on one device.

    Args:
      images: uint8 `[N, H, W, C]`.
      labels: integers `[N]` in [0, num_classes).
      num_classes: K >= 2.
      sde: the SDE whose noise it is to know, at times uniform in (1e-5, 1].
      seed: of the order, the times, the noise and the initial parameters, >= 0.
      num_steps, batch_size: >= 1.
      learning_rate: > 0.
      features: see `NoisyClassifier`.
      centered: whether the SDE's data is in [-1, 1], and not [0, 1].
      advanced: called with the step, and the mean loss and accuracy of the last 50 of them.

    Returns:
      The parameters, and a record `{"step": ..., "loss": ..., "accuracy": ...}` for each call of
      `advanced`.

    Raises:
      ValueError: if an argument has the wrong shape or is out of range.
      UserError: if the loss is not finite.
    """
    _check_data(images, labels, num_classes)
    for name, value in (("num_steps", num_steps), ("batch_size", batch_size)):
        check_count(name, value)
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be finite and more than 0, got {show(learning_rate)}")
    model = NoisyClassifier(num_classes, features)
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
      batch_size: >= 1; of no influence on the result but for rounding.

    Raises:
      ValueError: if an argument has the wrong shape or is out of range.
    """
    _check_data(images, labels, model.num_classes)
    for name, value in (("num_bins", num_bins), ("batch_size", batch_size)):
        check_count(name, value)

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


def describe(
    model: NoisyClassifier,
    sde: SDE,
    *,
    dataset: str,
    image_shape: tuple[int, int, int],
    centered: bool,
) -> dict:
    """Returns what a classifier's file says of it: JSON-serialisable values."""
    return {
        "num_classes": model.num_classes,
        "features": model.features,
        "ch_mult": list(model.ch_mult),
        "sde": {"name": type(sde).__name__, **dataclasses.asdict(sde)},
        "dataset": dataset,
        "image_shape": list(image_shape),
        "centered": centered,
    }


def save(path: str, params: Any, meta: dict) -> None:
    """Writes a classifier to a `.npz` file, complete or not at all.

    Args:
      path: of the file, which may be in object storage.
      params: the network's parameters.
      meta: what `describe` returns, and any other JSON-serialisable values, such as its accuracy.

    Raises:
      ValueError: if `meta` lacks something, or is of another network.
      OSError: if the file cannot be written, with its name.
    """
    model, _ = _rebuild(meta)
    arrays = traverse_util.flatten_dict(params, sep="/")
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    _check_parameters(arrays, _shapes(model, meta))
    write_npz(path, meta=np.asarray(json.dumps(meta)), **arrays)


def load(path: str, expected: dict | None = None) -> Trained:
    """Reads what `save` wrote.

    Args:
      path: of the file, which may be in object storage.
      expected: some of what `describe` returns, which the file has to agree with.

    Raises:
      UserError: if there is no such file, or it is damaged, of something else, or does not agree.
    """
    try:
        (text,) = read_npz(path, "meta")
        if text.dtype.kind != "U" or text.ndim:
            raise ValueError("'meta' is no text")
        meta = json.loads(text.item())
        model, sde = _rebuild(meta)
        shapes = _shapes(model, meta)
        arrays = dict(zip(shapes, read_npz(path, *shapes), strict=True))
        _check_parameters(arrays, shapes)
    # Damaged files raise all kinds of exceptions.
    except Exception as error:
        reason = f"{type(error).__name__}: {show(str(error))}"
        raise UserError(
            f"{path} cannot be read as a classifier ({reason}); train it again"
        ) from None
    expected = json.loads(json.dumps(expected or {}))
    there = {name: meta[name] for name in expected if name in meta}
    if differing := differences(there, expected):
        raise UserError(f"{path} holds a classifier of something else: {differing}")
    return Trained(model, traverse_util.unflatten_dict(arrays, sep="/"), sde, meta)


def rebuild(meta: dict) -> tuple[NoisyClassifier, Any]:
    """Returns the network that a file describes, and its parameters without values.

    Args:
      meta: as `Trained` has it.
    """
    model, _ = _rebuild(meta)
    return model, _parameters(model, meta)


def _check_data(images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise ValueError(
            f"images must be uint8 [N, H, W, C], got {images.dtype} of shape {images.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must be integers of shape ({len(images)},), "
            f"got {labels.dtype} of shape {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must be in [0, {num_classes}), got {labels.min()} to {labels.max()}"
        )


def _rebuild(meta: dict) -> tuple[NoisyClassifier, SDE]:
    """Returns the network and the SDE of a description, or raises ValueError if it is none."""
    if not isinstance(meta, dict):
        raise ValueError("the description is no object of fields")

    def natural(value, low=1):
        return type(value) is int and low <= value <= _MOST

    def naturals(value, most):
        return type(value) is list and 0 < len(value) <= most and all(map(natural, value))

    sound = {
        "num_classes": lambda v: natural(v, 2),
        "features": lambda v: natural(v, 4),
        "ch_mult": lambda v: naturals(v, 16),
        "image_shape": lambda v: naturals(v, 3) and len(v) == 3,
        "centered": lambda v: type(v) is bool,
        "dataset": lambda v: type(v) is str,
        "sde": lambda v: type(v) is dict and v.get("name") in list(_SDES),
    }
    for name, is_sound in sound.items():
        if not is_sound(meta.get(name)):
            raise ValueError(f"the description has {name}={show(meta.get(name))}")
    fields = dict(meta["sde"])
    kind = _SDES[fields.pop("name")]
    names = {field.name for field in dataclasses.fields(kind)}
    if fields.keys() != names or not all(type(v) in (int, float) for v in fields.values()):
        raise ValueError(f"the description has sde={show(meta['sde'])}")
    model = NoisyClassifier(meta["num_classes"], meta["features"], tuple(meta["ch_mult"]))
    return model, kind(**fields)


def _shapes(model: NoisyClassifier, meta: dict) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a network's parameters by name."""
    params = _parameters(model, meta)
    return {k: v.shape for k, v in traverse_util.flatten_dict(params, sep="/").items()}


def _parameters(model: NoisyClassifier, meta: dict) -> Any:
    """Returns a network's parameters without values."""
    images = jax.ShapeDtypeStruct((1, *meta["image_shape"]), jnp.float32)
    sigma = jax.ShapeDtypeStruct((1,), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images, sigma)


def _check_parameters(arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless the parameters are those of the network, and finite."""
    if differing := sorted(arrays.keys() ^ shapes.keys()):
        raise ValueError(f"parameters are there or missing that should not be: {differing[0]}")
    for name, array in arrays.items():
        if array.shape != shapes[name] or array.dtype != np.float32:
            raise ValueError(
                f"{name} is {array.dtype} of shape {array.shape}, expected float32 of {shapes[name]}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has values that are not finite")
