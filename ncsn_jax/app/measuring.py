"""Measures images by their features: distances from the training split, and what a classifier sees."""

import io
import logging
import math

import numpy as np

from ncsn_jax import evaluation
from ncsn_jax.app import features, judge, storage
from ncsn_jax.app.data import Images, cache
from ncsn_jax.errors import UserError, one_line

# Part of the name of cached features. Raise it whenever their conversion changes.
_VERSION = 1
# Of a larger dataset, evenly spaced images, at most this many, stand for all.
_MAX_REFERENCE = 200_000
# The time of these comparisons grows with the square of the number.
_MAX_COMPARED = 10_000
# Parts of the samples, from which standard errors come.
_PARTS = 10
# A classifier recognises an image if one class has a larger probability.
_RECOGNISED = 0.9

_log = logging.getLogger("ncsn_jax")


def measure(config, chosen: features.Features, samples: np.ndarray, reference) -> dict:
    """Returns the measures of samples in the data's units, by name; the names carry the number.

    Args:
      config: the configuration.
      chosen: the features.
      samples: `[N, H, W, C]`.
      reference: the features `[M, D]` of real images, or their `Statistics`, and their logits, if any.
    """
    found, logits = features.extract(chosen, samples, config.data.value_range, "judging samples")
    real, real_logits = reference
    summary = _distances(chosen, found, real, len(found))
    if logits is not None and chosen.name == "inception":
        score, spread = evaluation.inception_score(logits, min(10, len(found)))
        names = "inception_score" if chosen.is_published else "inception_other_score"
        summary |= {f"{names}_{len(found)}": score, f"{names}_{len(found)}_std": spread}
    if chosen.name == "classifier":
        summary |= {
            "classifier_accuracy": chosen.accuracy,
            f"recognised_{len(found)}": recognised(logits),
            "class_shares": _shares(logits),
        }
        if real_logits is not None:
            summary["class_shares_real"] = _shares(real_logits)
    return summary


def of_unseen(config, chosen: features.Features, unseen: np.ndarray, reference) -> dict:
    """Returns the same measures of images that the run has not seen, as a yardstick."""
    found, logits = features.extract(chosen, unseen, config.data.value_range, "judging real images")
    if len(found) < _PARTS:
        return {}
    summary = _distances(chosen, found, reference[0], f"real_{len(found)}")
    if chosen.name == "classifier":
        summary[f"recognised_real_{len(found)}"] = recognised(logits)
    return summary


def reference(config, chosen: features.Features, dataset: Images):
    """Returns what samples are compared with: the training split, or the user's file."""
    if len(dataset) < _PARTS:
        raise UserError(
            f"{len(dataset)} training images are too few to compare with; {_PARTS} are enough"
        )
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
    size = features.extract(chosen, dataset[:1], config.data.value_range, "judging an image")[
        0
    ].size
    digest = str(found.get("digest", ""))
    is_own = digest == chosen.digest or (not digest and chosen.name != "classifier")
    if mean.shape != (size,) or covariance.shape != (size, size) or not is_own:
        raise UserError(
            f"config.evaluation.reference={path!r} holds statistics of {mean.shape} other features than "
            f"config.evaluation.features={chosen.name!r}, which has {size}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"config.evaluation.reference={path!r} has values that are not finite")
    return evaluation.Statistics(mean, covariance), None


def features_of(config, chosen: features.Features, dataset: Images):
    """Returns features of real images, and a classifier's logits, from the cache if they are there."""
    every = math.ceil(len(dataset) / _MAX_REFERENCE)
    if every > 1:
        _log.info("the reference is every %dth of %d training images", every, len(dataset))
    key = [_VERSION, chosen.name, chosen.digest, judge.described(config, dataset), every]

    def make() -> tuple[np.ndarray, str]:
        found, logits = features.extract(
            chosen, dataset, config.data.value_range, "judging training images", every
        )
        if chosen.name == "classifier":
            return np.concatenate([found, logits], axis=1), str(found.shape[1])
        return found, str(found.shape[1])

    both, width = cache.array("features", key, make)
    found, logits = np.split(np.asarray(both), [int(width)], axis=1)
    return found, logits if logits.size else None


def _distances(chosen: features.Features, found: np.ndarray, real, label) -> dict:
    """Returns the distances of features from the reference, with their standard errors."""
    frechet, kernel, of = f"frechet_{chosen.name}", f"kernel_{chosen.name}", f"{chosen.name}_"
    if chosen.is_published:
        frechet, kernel, of = "fid", "kid", ""
    is_statistics = isinstance(real, evaluation.Statistics)
    moments = real if is_statistics else evaluation.statistics(real)
    parts = min(_PARTS, len(found))

    def distance(some: np.ndarray) -> float:
        return evaluation.frechet_distance(moments, some)

    summary = {
        f"{frechet}_{label}": distance(found),
        f"{frechet}_{label}_error": evaluation.standard_error(distance, found, parts),
    }
    if is_statistics:
        return summary
    some, others = found[:_MAX_COMPARED], _some(real)

    def kernel_distance(features: np.ndarray) -> float:
        return evaluation.kernel_distance(features, others)

    neighbours = min(3, len(some) - 1, len(others) - 1)
    precision, recall = evaluation.precision_recall(some, others, neighbours)
    return summary | {
        f"{kernel}_{label}": kernel_distance(some),
        f"{kernel}_{label}_error": evaluation.standard_error(kernel_distance, some, parts),
        f"precision_{of}{label}": precision,
        f"recall_{of}{label}": recall,
    }


def _some(array: np.ndarray) -> np.ndarray:
    """Returns evenly spaced rows, at most as many as can be compared."""
    return array[:: math.ceil(len(array) / _MAX_COMPARED)]


def _probabilities(logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities of the classes, without the last logit's, which stands for other images."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True))[:, :-1]


def recognised(logits: np.ndarray) -> float:
    """Returns the share of images in which the classifier recognises a class."""
    return float((_probabilities(logits).max(1) > _RECOGNISED).mean())


def _shares(logits: np.ndarray) -> list[float]:
    p = _probabilities(logits)
    return (np.bincount(p.argmax(1), minlength=p.shape[1]) / len(p)).tolist()
