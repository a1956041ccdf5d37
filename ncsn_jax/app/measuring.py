"""Measures images by their features: distances from the training split, and what a classifier sees."""

import io
import logging
import math
from typing import Any, NamedTuple

import numpy as np

from ncsn_jax import evaluation
from ncsn_jax.app import copies, features, judge, storage
from ncsn_jax.app.data import Images, cache
from ncsn_jax.errors import UserError, one_line
from ncsn_jax.evaluation._measures import mean_kernel

# Part of the name of cached features. Raise it whenever their conversion changes.
_VERSION = 1
# Of a larger dataset, evenly spaced images, at most this many, stand for all.
_MAX_REFERENCE = 200_000
# The time of these comparisons grows with the square of the number.
_MAX_COMPARED = 10_000
# Parts of the samples, from which standard errors come.
_PARTS = 10
# Fewer images are not measured.
LEAST = 10
# A classifier recognises an image if one class has a larger probability.
_RECOGNISED = 0.9

_log = logging.getLogger("ncsn_jax")


class Standard(NamedTuple):
    """What images are measured by.

    Attributes:
      config: the run's configuration.
      chosen: the features.
      moments: the statistics of the reference.
      real: the features `[M, D]` of the training images; None if the reference is a file.
      shares: the shares of a classifier's classes among the training images, or None.
      digest: tells figures by this reference and these features from others.
    """

    config: Any
    chosen: features.Features
    moments: evaluation.Statistics
    real: np.ndarray | None
    shares: list[float] | None
    digest: str

    @classmethod
    def make(cls, config, chosen: features.Features, dataset: Images) -> "Standard":
        """Returns the standard of a run whose training images these are."""
        real, logits = reference(config, chosen, dataset)
        if isinstance(real, evaluation.Statistics):
            key = real.mean.tolist()
            return cls(config, chosen, real, None, None, cache.digest([chosen.digest, key]))
        key = [chosen.digest, judge.described(config, dataset)]
        shares = None if logits is None else _shares(logits)
        return cls(config, chosen, evaluation.statistics(real), real, shares, cache.digest(key))

    def measure(self, images: np.ndarray, real: str = "", labels: np.ndarray | None = None) -> dict:
        """Returns the figures of images in the data's units, by names that carry the number.

        Args:
          images: `[N, H, W, C]`, N >= 10.
          real: "real_" for real images, "" for samples.
          labels: the classes that were wanted, `int[N]`, if any.
        """
        what = f"judging {'real images' if real else 'samples'}"
        found, logits = features.extract(self.chosen, images, self.config.data.value_range, what)
        label = f"{real}{len(found)}"
        figures = self._distances(found, real)
        if self.chosen.is_published and logits is not None:
            score, spread = evaluation.inception_score(logits, 10)
            figures |= {f"inception_score_{label}": score, f"inception_score_{label}_std": spread}
        if self.chosen.name == "classifier":
            figures[f"recognised_{label}"] = recognised(logits)
            if labels is not None:
                figures |= of_labels(logits, labels)
            if not real:
                figures |= {
                    "classifier_accuracy": self.chosen.accuracy,
                    "class_shares": _shares(logits),
                }
                figures |= {"class_shares_real": self.shares} if self.shares else {}
        return figures

    def _distances(self, found: np.ndarray, real: str) -> dict:
        """Returns the distances of features from the reference, with their standard errors."""
        name = self.chosen.name
        frechet, kernel, of = f"frechet_{name}", f"kernel_{name}", f"{name}_"
        if self.chosen.is_published:
            frechet, kernel, of = "fid", "kid", ""

        def distance(some: np.ndarray) -> float:
            return evaluation.frechet_distance(self.moments, some)

        label = f"{real}{len(found)}"
        figures = {
            f"{frechet}_{label}": distance(found),
            f"{frechet}_{label}_error": evaluation.standard_error(distance, found, _PARTS),
        }
        if self.real is None:
            return figures
        some, others = (copies.spread(array, _MAX_COMPARED) for array in (found, self.real))
        others = np.asarray(others, np.float64)
        of_others, label = mean_kernel(others), f"{real}{len(some)}"

        def kernel_distance(part: np.ndarray) -> float:
            part = np.asarray(part, np.float64)
            return mean_kernel(part) + of_others - 2 * mean_kernel(part, others)

        precision, recall = evaluation.precision_recall(some, others, 3)
        return figures | {
            f"{kernel}_{label}": kernel_distance(some),
            f"{kernel}_{label}_error": evaluation.standard_error(kernel_distance, some, _PARTS),
            f"precision_{of}{label}": precision,
            f"recall_{of}{label}": recall,
        }


def check_count(count: int, what: str) -> None:
    """Raises UserError if images are too few to be measured."""
    if count < LEAST:
        raise UserError(f"{what} must have at least {LEAST} images to be measured, has {count}")


def reference(config, chosen: features.Features, dataset: Images):
    """Returns what samples are compared with: the training split, or the user's file."""
    check_count(len(dataset), "the training split")
    path = storage.path(config.evaluation.reference)
    if not path:
        return features_of(config, chosen, dataset)
    try:
        with np.load(io.BytesIO(storage.read(path)), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        mean, covariance = (np.asarray(found[name], np.float64) for name in ("mu", "sigma"))
    except Exception as error:  # damaged files can raise any exception
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(
            f"config.evaluation.reference={path!r} must be a .npz file with 'mu' and 'sigma' ({reason})"
        ) from None
    one, _ = features.extract(chosen, dataset[:1], config.data.value_range, "judging an image")
    digest = str(found.get("digest", ""))
    is_own = digest == chosen.digest or (not digest and chosen.name != "classifier")
    if mean.shape != (one.size,) or covariance.shape != (one.size, one.size) or not is_own:
        raise UserError(
            f"config.evaluation.reference={path!r} must hold statistics of the {one.size} features that "
            f"config.evaluation.features={chosen.name!r} has here, not of {mean.size} other features"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"config.evaluation.reference={path!r} has values that are not finite")
    return evaluation.Statistics(mean, covariance), None


def features_of(config, chosen: features.Features, dataset: Images):
    """Returns features of real images, and a classifier's logits, from the cache if they are there."""
    every, what = math.ceil(len(dataset) / _MAX_REFERENCE), "judging training images"
    if every > 1:
        _log.info("the reference is every %dth of %d training images", every, len(dataset))
    if chosen.name == "pixels":
        return features.extract(chosen, dataset, config.data.value_range, what, every)
    key = [_VERSION, chosen.name, chosen.digest, judge.described(config, dataset), every]

    def make() -> tuple[np.ndarray, str]:
        found, logits = features.extract(chosen, dataset, config.data.value_range, what, every)
        if chosen.name == "classifier":
            return np.concatenate([found, logits], axis=1), str(found.shape[1])
        return found, str(found.shape[1])

    both, width = cache.array("features", key, make)
    found, logits = np.split(np.asarray(both), [int(width)], axis=1)
    return found, logits if logits.size else None


def _probabilities(logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities of the classes, without the last logit's, which stands for other images."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True))[:, :-1]


def recognised(logits: np.ndarray) -> float:
    """Returns the share of images in which the classifier recognises a class."""
    return float((_probabilities(logits).max(1) > _RECOGNISED).mean())


def of_labels(logits: np.ndarray, labels: np.ndarray) -> dict:
    """Returns the shares of samples that the classifier recognises as the wanted class, or prefers it for."""
    p = _probabilities(logits)
    wanted, count = p[np.arange(len(p)), labels], len(p)
    return {
        f"recognised_label_{count}": float((wanted > _RECOGNISED).mean()),
        f"likeliest_label_{count}": float((p.argmax(1) == labels).mean()),
    }


def _shares(logits: np.ndarray) -> list[float]:
    p = _probabilities(logits)
    return (np.bincount(p.argmax(1), minlength=p.shape[1]) / len(p)).tolist()
