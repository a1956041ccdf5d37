"""`--mode=evaluate` measures how good samples are; `--mode=statistics` writes statistics of the data."""

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
    measuring,
    pictures,
    run_samplers,
    storage,
    units,
    workdirs,
)
from ncsn_jax.app.data import Images
from ncsn_jax.app.metrics import Writer
from ncsn_jax.app.modes import shared
from ncsn_jax.app.modes.nearest import find_nearest
from ncsn_jax.app.modes.sample import write_samples
from ncsn_jax.app.progress import progress
from ncsn_jax.errors import UserError

# The time of this comparison grows with the number.
_MAX_SEARCHED = 1000
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
    reference = measuring.reference(config, chosen, dataset)  # may fail, so before sampling
    loaded = shared.load(config, workdir)
    config = config.copy_and_resolve_references()
    config.sampling.num_samples = config.evaluation.num_samples
    samples = write_samples(loaded._replace(config=config), run_samplers.Chains(config))
    samples = samples[: config.evaluation.num_samples]
    unseen = _unseen(config, images)
    summary = measuring.measure(config, chosen, samples, reference)
    if unseen is not None:
        summary |= measuring.of_unseen(config, chosen, unseen, reference)
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
    found, _ = measuring.features_of(config, chosen, dataset)
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


def _bits_per_dim(loaded: shared.Loaded) -> dict:
    """Returns what `--mode=likelihood` has found, if it has run."""
    found = storage.read_json(os.path.join(loaded.directory("likelihood"), "summary.json")) or {}
    names = {"bits_per_dim": "bits_per_dim", "standard_error": "bits_per_dim_error"}
    return {new: found[old] for old, new in names.items() if found.get(old) is not None}


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
