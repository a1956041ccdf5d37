"""Features by which `--mode=evaluate` judges images: of FID's network, of a classifier, or the pixels."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ncsn_jax import evaluation
from ncsn_jax.app import build, devices, inception_weights, judge, rules, units
from ncsn_jax.app.data import Images
from ncsn_jax.app.progress import progress
from ncsn_jax.errors import UserError

CHOICES = ("inception", "classifier", "pixels")

# Images that a device takes at once.
_AT_ONCE = 32

_log = logging.getLogger("ncsn_jax")


class Features(NamedTuple):
    """What maps images to features.

    Attributes:
      name: one of `CHOICES`.
      is_published: whether these are the features of FID.
      digest: tells them from other features.
      extract: `extract(bytes [B, H, W, C]) -> (features [B, D], logits [B, K] or None)`, for B a multiple of
        `batch`.
      batch: the images that `extract` takes at once.
      accuracy: of a classifier, on the test split; otherwise None.
    """

    name: str
    is_published: bool
    digest: str
    extract: Callable[[np.ndarray], tuple]
    batch: int
    accuracy: float | None = None


def make(config, has_array: bool = False) -> Features:
    """Returns the features that `config.evaluation` names; `has_array`: the images are not those of `data`.

    Raises:
      UserError: if the images cannot have them, or the weights cannot be had.
    """
    options, shape = config.evaluation, build.image_shape(config)
    at_once = _AT_ONCE * jax.local_device_count()
    if options.features == "pixels":
        if (size := int(np.prod(shape))) > rules.MAX_PIXELS:
            raise UserError(
                f"config.evaluation.features='pixels' must be 'inception' or 'classifier' for images of "
                f"{size} numbers: pixels are compared up to {rules.MAX_PIXELS}"
            )
        return Features("pixels", False, "pixels", _pixels, at_once)
    if options.features == "classifier":
        if config.data.value_range or has_array:
            raise UserError(
                "config.evaluation.features='classifier' must be 'pixels' or 'inception' for arrays, which "
                "have no labels"
            )
        try:
            found = judge.load(config)
        except UserError as error:
            raise UserError(
                f"config.evaluation.features='classifier' must be 'pixels' or 'inception' here: {error}"
            ) from None
        _log.info("accuracy of the classifier on the test split: %.3f", found.accuracy)

        def classify(params, images):
            return found.network.apply(params, images / np.float32(255))

        mapped = devices.map_batches(classify, found.params)
        return Features("classifier", False, found.digest, mapped, at_once, found.accuracy)
    if shape[2] not in (1, 3):
        raise UserError(
            f"config.evaluation.features='inception' must be 'pixels' for images of {shape[2]} channels"
        )
    params, digest, is_published = inception_weights.load(options.weights)
    if not is_published:
        _log.warning(
            "%s does not hold the published weights: its figures are not FID", options.weights
        )
    if shape[2] == 1:
        _log.info("the network sees grey images as RGB, with three equal channels")

    def see(params, images):
        found = evaluation.inception_features(params, images)
        return found["2048"], found["logits_unbiased"]

    mapped = devices.map_batches(see, params)
    return Features(
        "inception",
        is_published,
        digest,
        lambda x: mapped(np.broadcast_to(x, (*x.shape[:3], 3))),
        at_once,
    )


def _pixels(images: np.ndarray) -> tuple:
    return images.reshape(len(images), -1).astype(np.float32) / 255, None


def extract(
    features: Features, images: np.ndarray | Images, value_range, what: str, every: int = 1
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns features `[N, D]` of images in the data's units, and logits `[N, K]` if there are any.

    Images are judged as 8-bit pictures, as a PNG would hold them; of every `every` images the first.
    """
    found, logits = [], []
    rows = np.arange(0, len(images), every)
    with progress(what, len(rows), "images") as advanced:
        for first in range(0, len(rows), features.batch):
            here = rows[first : first + features.batch]
            some = units.to_picture(np.asarray(images[here]), value_range)
            # One shape compiles once.
            padded = some[np.arange(features.batch) % len(some)]
            one, two = features.extract(padded)
            found.append(np.asarray(one)[: len(some)])
            if two is not None:
                logits.append(np.asarray(two)[: len(some)])
            advanced(len(some))
    return np.concatenate(found), np.concatenate(logits) if logits else None
