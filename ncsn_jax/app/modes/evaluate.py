"""`--mode=evaluate` measures how good samples are; `--mode=statistics` writes statistics of the data."""

import json
import math
import os
from collections.abc import Iterable

import numpy as np

from ncsn_jax import evaluation
from ncsn_jax._random import Stream
from ncsn_jax.app import (
    build,
    comparison,
    copies,
    devices,
    distributed,
    features,
    measuring,
    pictures,
    run_config,
    run_samplers,
    samplers,
    schema,
    storage,
    sweep,
    workdirs,
)
from ncsn_jax.app.data import Images, arrays
from ncsn_jax.app.metrics import Writer
from ncsn_jax.app.modes import shared
from ncsn_jax.app.modes.sample import write_samples
from ncsn_jax.errors import UserError

# Unseen images that are measured as a yardstick.
_MAX_UNSEEN = 1000


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
    newest = shared.load(configs[0], workdir).step  # may fail, so before the reference
    subject = _Subject(config, workdir, images)
    folder, failures = os.path.join(workdir, "evaluation"), []
    for i, one in enumerate(configs):
        # Training may go on meanwhile.
        one.sampling.step = newest if one.sampling.step < 0 else one.sampling.step
        name = f"step {one.sampling.step} {one.sampling.name}".strip()
        if len(configs) > 1:
            shared.log.info("evaluation %d of %d: %s", i + 1, len(configs), name)
        try:
            _evaluate(one, workdir, subject)
        except UserError as error:
            if len(configs) == 1:
                raise
            shared.log.warning("no evaluation of %s: %s", name, error)
            failures.append(name)
            continue
        rows = comparison.find(workdir)
        storage.write(os.path.join(folder, "table.md"), comparison.table(rows).encode())
    if len(failures) < len(configs):
        if len([row for row in rows if not row.is_real]) > 1:
            storage.write(os.path.join(folder, "quality.png"), comparison.draw(rows))
        shared.log.info("%s has all evaluations of the run", os.path.join(folder, "table.md"))
    if subject.chosen.is_published and config.evaluation.num_samples < 50_000:
        shared.log.warning(
            "FID of %d samples is not comparable with published ones, which are of 50,000",
            config.evaluation.num_samples,
        )
    if failures:
        raise UserError(
            f"{len(failures)} of {len(configs)} evaluations of the sweep failed, the first of them "
            f"{failures[0]!r}; the log says why"
        )


class _Subject:
    """A run's images, and what its samples are measured by.

    Args:
      config, workdir: the run's.
      images: the array the run began with, if any.
    """

    def __init__(self, config, workdir: str, images: np.ndarray | None = None):
        self._value_range = config.data.value_range
        self._dataset = _begin(config, workdir, images)
        self._unseen = _unseen(config, images)
        self.chosen = features.make(config, has_array=images is not None)
        self.standard = measuring.Standard.make(config, self.chosen, self._dataset)
        self.yardstick = {}
        if self._unseen is not None and len(self._unseen) >= measuring.LEAST:
            self.yardstick = self.standard.measure(self._unseen, "real_")
            _log_figures(self.yardstick)

    def measure(self, samples: np.ndarray, known: dict, labels: np.ndarray | None = None) -> dict:
        """Returns the figures of samples in the data's units, and of unseen images.

        Args:
          samples: `[N, H, W, C]`.
          known: what this returned before, of samples of the same settings; taken if it is of so many samples
            by the same standard.
          labels: the classes that were wanted, `int[N]`, if any.
        """
        about = {"digest": self.standard.digest, "samples": len(samples)}
        if {name: known.get(name) for name in about} == about:
            return known
        return about | self.standard.measure(samples, labels=labels) | self.yardstick

    def look_for_copies(self, samples: np.ndarray) -> tuple[dict, np.ndarray]:
        """Returns `copies.look_for_copies` of samples."""
        return copies.look_for_copies(samples, self._dataset, self._unseen, self._value_range)


def _evaluate(config, workdir: str, subject: _Subject) -> None:
    """Samples one configuration's images and writes their figures."""
    loaded = shared.load(config, workdir)
    config = config.copy_and_resolve_references()
    config.sampling.num_samples = config.evaluation.num_samples
    samples = write_samples(loaded._replace(config=config), run_samplers.Chains(config))
    samples = samples[: config.evaluation.num_samples]
    directory, name = loaded.directory("evaluation"), subject.chosen.name
    path = os.path.join(directory, "summary.json")
    about = {
        "step": loaded.step,
        "run": workdirs.digest(config),
        "sampler": loaded.sampler_settings(),
    }
    found = storage.read_json(path) or {}
    by = found.get("by", {}) if {field: found.get(field) for field in about} == about else {}
    classes = samplers.classes_of(config)
    labels = None if classes is None else np.resize(classes, len(samples))
    by[name] = subject.measure(samples, by.get(name, {}), labels)
    of_samples, picture = subject.look_for_copies(samples)
    of_samples |= shared.read_cost(loaded.directory("samples")) | _bits_per_dim(loaded)
    storage.make_directory(directory)
    pictures.write_png(os.path.join(directory, "closest.png"), picture)
    storage.write(path, (json.dumps(about | of_samples | {"by": by}, indent=2) + "\n").encode())
    numbers = {n: v for n, v in (by[name] | of_samples).items() if isinstance(v, float)}
    prefix = "/".join(filter(None, ["evaluation", config.sampling.name]))
    with Writer(workdir) as writer:
        writer.write_scalars(loaded.step, {f"{prefix}/{n}": v for n, v in numbers.items()})
    _log_figures({n: v for n, v in numbers.items() if n not in subject.yardstick})
    shared.log.info("wrote summary.json and closest.png to %s", directory)


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
    config, by = run_config.get_config(workdir).unlock(), {}
    config.evaluation.weights = weights or config.evaluation.weights
    shape, value_range = build.image_shape(config), config.data.value_range
    samples = np.asarray(arrays.load(path, shape, value_range, field="samples")[:])
    measuring.check_count(len(samples), path)
    for name in names:
        config.evaluation.features = name
        schema.check(config)
        subject = _Subject(config, workdir)
        by[name] = subject.measure(samples, {})
    return subject.look_for_copies(samples)[0] | {"by": by}


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
    contents = {"mu": made.mean, "sigma": made.covariance, "count": np.asarray(len(found))}
    pictures.write_npz(path, **contents, digest=np.asarray(chosen.digest))
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


def _unseen(config, images: np.ndarray | None) -> np.ndarray | None:
    """Returns images that the run was not trained on, or None if there are none."""
    try:
        found = build.load_images(config, "test", images)
    except UserError as error:
        shared.log.info("no yardstick, and no share of copies, without unseen images: %s", error)
        return None
    return found[np.arange(0, len(found), math.ceil(len(found) / _MAX_UNSEEN))]


def _bits_per_dim(loaded: shared.Loaded) -> dict:
    """Returns what `--mode=likelihood` has found, if it has run."""
    found = storage.read_json(os.path.join(loaded.directory("likelihood"), "summary.json")) or {}
    names = {"bits_per_dim": "bits_per_dim", "standard_error": "bits_per_dim_error"}
    return {new: found[old] for old, new in names.items() if found.get(old) is not None}
