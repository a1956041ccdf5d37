"""`--mode=evaluate` measures how good samples are; `--mode=statistics` writes statistics of the data."""

import io
import json
import math
import os

import numpy as np

from ncsn_jax import evaluation
from ncsn_jax._random import Stream
from ncsn_jax.app import (
    build,
    devices,
    distributed,
    features,
    judge,
    pictures,
    run_samplers,
    storage,
    units,
    workdirs,
)
from ncsn_jax.app.data import Images, cache
from ncsn_jax.app.metrics import Writer
from ncsn_jax.app.modes import shared
from ncsn_jax.app.modes.nearest import find_nearest
from ncsn_jax.app.modes.sample import write_samples
from ncsn_jax.app.progress import progress
from ncsn_jax.errors import UserError, one_line

# Part of the name of cached features. Raise it whenever their conversion changes.
_VERSION = 1
# Of a larger dataset, evenly spaced images, at most this many, stand for all.
_MAX_REFERENCE = 200_000
# The time of these comparisons grows with the square of the numbers.
_MAX_COMPARED, _MAX_SEARCHED = 10_000, 1000
# Parts of the samples, from which standard errors come.
_PARTS = 10
# A classifier recognises an image if one class has a larger probability.
_RECOGNISED = 0.9
# A sample counts as a copy if its nearest training image is much nearer than the next one: more so than for
# all but this share of unseen images, if these are enough. Above the last number, a share, the log warns.
_LONELY, _MIN_UNSEEN, _MAX_COPIES = 0.01, 100, 0.1
# Rows of the picture of the closest samples, and training images in each.
_ROWS, _NEIGHBOURS = 10, 3


@devices.jax_defaults()
def evaluate(config, workdir: str, images: np.ndarray | None = None) -> None:
    """Samples what is missing, and writes `evaluation/step_<step>/summary.json` and `closest.png`.

    Args:
      config, workdir: the run's.
      images: the array the run began with, if any.
    """
    shared.begin(config, workdir, "evaluate", Stream.SAMPLES)
    dataset = _begin(config, workdir, images)
    chosen = features.make(config, has_array=images is not None)
    reference = _reference(config, chosen, dataset)  # may fail, so before sampling
    loaded = shared.load(config, workdir)
    config = config.copy_and_resolve_references()
    config.sampling.num_samples = config.evaluation.num_samples
    samples = write_samples(loaded._replace(config=config), run_samplers.Chains(config))
    samples = samples[: config.evaluation.num_samples]
    unseen = _unseen(config, images)
    summary = measure(config, chosen, samples, reference)
    if unseen is not None:
        summary |= _of_unseen(config, chosen, unseen, reference)
    directory = loaded.directory("evaluation")
    storage.make_directory(directory)
    summary |= _look_for_copies(config, samples, dataset, unseen, directory)
    summary |= _bits_per_dim(loaded)
    _write(loaded, chosen, summary, directory)
    if chosen.is_published and len(samples) < 50_000:
        shared.log.warning(
            "FID of %d samples is not comparable with published ones, which are of 50,000",
            len(samples),
        )
    shared.log.info("wrote summary.json and closest.png to %s", directory)


@devices.jax_defaults()
def statistics(config, workdir: str, images: np.ndarray | None = None) -> None:
    """Writes mean and covariance of the training images' features to `statistics/<features>.npz`.

    Other runs and programs take the file, with `mu` `[D]` and `sigma` `[D, D]`, as a reference.

    Args:
      config, workdir: the run's.
      images: the array the run began with, if any.
    """
    shared.begin(config, workdir, "statistics")
    dataset = _begin(config, workdir, images)
    chosen = features.make(config, has_array=images is not None)
    found, _ = _features_of(config, chosen, dataset)
    made = evaluation.statistics(found)
    directory = os.path.join(workdir, "statistics")
    storage.make_directory(directory)
    path = os.path.join(directory, f"{chosen.name}.npz")
    arrays = {"mu": made.mean, "sigma": made.covariance, "count": np.asarray(len(found))}
    pictures.write_npz(path, **arrays, digest=np.asarray(chosen.digest))
    shared.log.info("wrote the statistics of %d images to %s", len(found), path)


def _begin(config, workdir: str, images: np.ndarray | None) -> Images:
    """Returns the training images; refuses several processes."""
    if distributed.count() > 1:
        raise UserError(
            "--mode=evaluate and --mode=statistics must run in one process; on several hosts make the "
            "samples with --mode=sample first"
        )
    dataset = shared.load_images(config, workdir, images=images)
    workdirs.claim_images(dataset, workdir, read_only=True)
    return dataset


def _write(loaded: shared.Loaded, chosen: features.Features, summary: dict, directory: str) -> None:
    """Writes the figures to `summary.json`, beside those by other features, and to the metrics."""
    path = os.path.join(directory, "summary.json")
    about = {"step": loaded.step, "sampler": loaded.sampler_settings()}
    found = storage.read_json(path) or {}
    kept = found if {name: found.get(name) for name in about} == about else {}
    digests = kept.get("digests", {}) | {chosen.name: chosen.digest}
    text = json.dumps(kept | about | {"digests": digests} | summary, indent=2) + "\n"
    storage.write(path, text.encode())
    name = loaded.config.sampling.name
    numbers = {n: v for n, v in summary.items() if isinstance(v, float)}
    with Writer(loaded.workdir) as writer:
        prefix = f"evaluation/{name}/" if name else "evaluation/"
        writer.write_scalars(loaded.step, {prefix + n: v for n, v in numbers.items()})
    for name, value in numbers.items():
        shared.log.info("%-40s %.4g", name, value)


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
            f"recognised_{len(found)}": _recognised(logits),
            "class_shares": _shares(logits),
        }
        if real_logits is not None:
            summary["class_shares_real"] = _shares(real_logits)
    return summary


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


def _of_unseen(config, chosen: features.Features, unseen: np.ndarray, reference) -> dict:
    """Returns the same measures of images that the run has not seen, as a yardstick."""
    found, logits = features.extract(chosen, unseen, config.data.value_range, "judging real images")
    if len(found) < _PARTS:
        return {}
    summary = _distances(chosen, found, reference[0], f"real_{len(found)}")
    if chosen.name == "classifier":
        summary[f"recognised_real_{len(found)}"] = _recognised(logits)
    return summary


def _bits_per_dim(loaded: shared.Loaded) -> dict:
    """Returns what `--mode=likelihood` has found, if it has run."""
    found = storage.read_json(os.path.join(loaded.directory("likelihood"), "summary.json")) or {}
    names = {"bits_per_dim": "bits_per_dim", "standard_error": "bits_per_dim_error"}
    return {new: found[old] for old, new in names.items() if found.get(old) is not None}


def _reference(config, chosen: features.Features, dataset: Images):
    """Returns what samples are compared with: the training split, or the user's file."""
    if len(dataset) < _PARTS:
        raise UserError(
            f"{len(dataset)} training images are too few to compare with; {_PARTS} are enough"
        )
    path = storage.path(config.evaluation.reference)
    if not path:
        return _features_of(config, chosen, dataset)
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


def _features_of(config, chosen: features.Features, dataset: Images):
    """Returns features of real images, and a classifier's logits, from the cache if they are there."""
    every = math.ceil(len(dataset) / _MAX_REFERENCE)
    if every > 1:
        shared.log.info("the reference is every %dth of %d training images", every, len(dataset))
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


def _some(array: np.ndarray) -> np.ndarray:
    """Returns evenly spaced rows, at most as many as can be compared."""
    return array[:: math.ceil(len(array) / _MAX_COMPARED)]


def _probabilities(logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities of the classes, without the last logit's, which stands for other images."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True))[:, :-1]


def _recognised(logits: np.ndarray) -> float:
    return float((_probabilities(logits).max(1) > _RECOGNISED).mean())


def _shares(logits: np.ndarray) -> list[float]:
    p = _probabilities(logits)
    return (np.bincount(p.argmax(1), minlength=p.shape[1]) / len(p)).tolist()


def _unseen(config, images: np.ndarray | None) -> np.ndarray | None:
    """Returns images that the run was not trained on, or None if there are none."""
    try:
        found = build.load_images(config, "test", images)
    except UserError:
        shared.log.info("the data have no test split to compare with")
        return None
    return found[np.arange(0, len(found), math.ceil(len(found) / _MAX_SEARCHED))]


def _look_for_copies(
    config, samples: np.ndarray, dataset: Images, unseen: np.ndarray | None, directory: str
) -> dict:
    """Compares samples, and unseen images, with the nearest training images."""
    value_range, samples = config.data.value_range, samples[:_MAX_SEARCHED]
    count, total = min(_NEIGHBOURS, len(dataset)), len(dataset) * (1 if unseen is None else 2)
    with progress("comparing", total, "images") as advanced:
        indices, distances = find_nearest(samples, dataset, count, value_range, advanced)
        if unseen is not None:
            real = find_nearest(unseen, dataset, 2, value_range, advanced)[1]
    closest = np.argsort(distances[:, 0])[:_ROWS]
    rows = [np.concatenate([samples[i][None], dataset[indices[i]]]) for i in closest]
    picture = pictures.grid(units.to_picture(np.concatenate(rows), value_range), columns=count + 1)
    pictures.write_png(os.path.join(directory, "closest.png"), picture)
    summary = {"nearest_median": float(np.median(distances[:, 0]))}
    if unseen is None:
        return summary
    summary["nearest_median_real"] = float(np.median(real[:, 0]))
    if len(real) < _MIN_UNSEEN:
        return summary
    ratio, real_ratio = (d[:, 0] / np.maximum(d[:, 1], 1e-12) for d in (distances, real))
    copies = float((ratio < np.quantile(real_ratio, _LONELY)).mean())
    if copies > _MAX_COPIES:
        shared.log.warning(
            "%.0f %% of the samples look like copies: one training image is much nearer than the next, as "
            "for %g %% of unseen images (closest.png)",
            100 * copies,
            100 * _LONELY,
        )
    return summary | {f"copies_{len(samples)}": copies}
