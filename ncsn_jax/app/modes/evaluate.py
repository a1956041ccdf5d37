"""`--mode=evaluate` measures how good samples are; `--mode=statistics` writes statistics of the data."""

import json
import math
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ncsn_jax import evaluation
from ncsn_jax._random import Stream
from ncsn_jax.app import (
    build,
    comparison,
    devices,
    distributed,
    features,
    measuring,
    pictures,
    run_config,
    run_samplers,
    schema,
    storage,
    sweep,
    units,
    workdirs,
)
from ncsn_jax.app.data import Images, arrays
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

    `evaluation/table.md` then has all evaluations of the run. `quality.png` shows them if there are several.

    Args:
      config, workdir: the run's.
      images: the array the run began with, if any.
    """
    shared.begin(config, workdir, "evaluate", Stream.SAMPLES)
    configs = sweep.expand(config)
    standard = Standard.make(config, workdir, images)  # may fail, so before sampling
    for i, one in enumerate(configs):
        if len(configs) > 1:
            shared.log.info("evaluation %d of %d: %s", i + 1, len(configs), one.sampling.name)
        _evaluate(one, workdir, standard)
    rows = comparison.find(workdir)
    folder = os.path.join(workdir, "evaluation")
    storage.write(os.path.join(folder, "table.md"), comparison.table(rows).encode())
    if len([row for row in rows if not row.is_real]) > 1:
        storage.write(os.path.join(folder, "quality.png"), comparison.draw(rows))
    shared.log.info("%s has all evaluations of the run", os.path.join(folder, "table.md"))
    if standard.chosen.is_published and config.evaluation.num_samples < 50_000:
        shared.log.warning(
            "FID of %d samples is not comparable with published ones, which are of 50,000",
            config.evaluation.num_samples,
        )


def _evaluate(config, workdir: str, standard: "Standard") -> None:
    """Samples one configuration's images and writes their figures."""
    loaded = shared.load(config, workdir)
    config = config.copy_and_resolve_references()
    config.sampling.num_samples = config.evaluation.num_samples
    samples = write_samples(loaded._replace(config=config), run_samplers.Chains(config))
    samples = samples[: config.evaluation.num_samples]
    directory = loaded.directory("evaluation")
    storage.make_directory(directory)
    summary = standard.judge(samples, directory) | shared.read_cost(loaded.directory("samples"))
    summary |= _bits_per_dim(loaded)
    _write(loaded, standard.chosen, summary, directory)
    _log_figures({name: v for name, v in summary.items() if name not in standard.yardstick})
    shared.log.info("wrote summary.json and closest.png to %s", directory)


class Standard(NamedTuple):
    """What a run's samples are measured by.

    Attributes:
      config: the run's configuration.
      chosen: the features.
      dataset: the training images.
      reference: the features `[M, D]` of the training images, or their `Statistics`, and their logits.
      unseen: images that the run has not seen, in the data's units, or None.
      yardstick: the figures of the unseen images.
    """

    config: Any
    chosen: features.Features
    dataset: Images
    reference: tuple
    unseen: np.ndarray | None
    yardstick: dict

    @classmethod
    def make(cls, config, workdir: str, images: np.ndarray | None = None) -> "Standard":
        """Returns the standard of a run; `images` is the array it began with, if any."""
        dataset = _begin(config, workdir, images)
        chosen = features.make(config, has_array=images is not None)
        reference = measuring.reference(config, chosen, dataset)
        unseen = _unseen(config, images)
        yardstick = {} if unseen is None else measuring.of_unseen(config, chosen, unseen, reference)
        _log_figures(yardstick)
        return cls(config, chosen, dataset, reference, unseen, yardstick)

    def judge(self, samples: np.ndarray, directory: str = "") -> dict:
        """Returns the figures of samples in the data's units; `closest.png` goes to a given directory."""
        summary = measuring.measure(self.config, self.chosen, samples, self.reference)
        summary |= _look_for_copies(self.config, samples, self.dataset, self.unseen, directory)
        return summary | self.yardstick


def _log_figures(figures: dict) -> None:
    for name, value in figures.items():
        if isinstance(value, float):
            shared.log.info("%-40s %.4g", name, value)


@devices.jax_defaults()
def measure_file(path: str, workdir: str, names: Iterable[str], weights: str = "") -> dict:
    """Returns the figures of samples in a file, as `summary.json` has them.

    Args:
      path: the file, as `data.dataset` names arrays.
      workdir: the run by whose data they are measured.
      names: the features; see `features.CHOICES`.
      weights: as `config.evaluation.weights`.
    """
    config, summary, digests = run_config.get_config(workdir).unlock(), {}, {}
    config.evaluation.weights = weights or config.evaluation.weights
    shape, value_range = build.image_shape(config), config.data.value_range
    samples = np.asarray(arrays.load(path, shape, value_range, field="samples")[:])
    for name in names:
        config.evaluation.features = name
        schema.check(config)
        standard = Standard.make(config, workdir)
        summary |= standard.judge(samples)
        digests[name] = standard.chosen.digest
    return summary | {"digests": digests}


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
    if directory:
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
