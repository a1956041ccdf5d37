"""Does what the modes share: opens the run and its newest checkpoint, and makes missing results.

A mode calls `begin`, then `load`, and then `make_samples` or `make_missing`. It writes below the work
directory, and never overwrites what was made with other settings.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ncsn_jax import training
from ncsn_jax._random import Stream
from ncsn_jax.app import (
    build,
    data,
    devices,
    distributed,
    logs,
    run_samplers,
    samplers,
    schema,
    storage,
    units,
    workdirs,
)
from ncsn_jax.app.data import arrays, image_folder
from ncsn_jax.app.data.images import describe_damaged
from ncsn_jax.app.progress import progress
from ncsn_jax.app.sample_store import SampleStore
from ncsn_jax.errors import UserError, one_line

log = logging.getLogger("ncsn_jax")

# How many damaged images that a process finds the log names at a time, and how many in all.
_NAMED, _MAX_NAMED = 5, 50


class Loaded(NamedTuple):
    """A run's checkpoint with its parameters, replicated: the EMA if there is one."""

    config: Any
    workdir: str
    step: int
    params: Any

    def directory(self, kind: str) -> str:
        """Returns the directory for one kind of result, such as "samples"."""
        name = self.config.sampling.name
        step = f"step_{self.step}" + (f"_{name}" if name else "")
        return os.path.join(self.workdir, kind, step)

    def settings(self, *fields: str) -> dict:
        """Returns what determines a result: the fields with their values, the seed and the step."""
        flat = schema.flatten(self.config)
        return {f: flat[f] for f in (*fields, "seed")} | {"step": self.step}

    def sampler_settings(self) -> dict:
        """Returns what determines every sample."""
        return samplers.settings(self.config) | {"step": self.step}


def agree(config, mode: str) -> None:
    """Raises UserError unless all processes have the same mode and configuration."""
    local = {"data.data_dir", "inpainting.images", "inpainting.mask"}
    local |= {f"restore.{name}" for name in ("images", "measurements", "mask", "kernel")}
    fields = {f: value for f, value in schema.flatten(config).items() if f not in local}
    distributed.agree("its configuration", {"mode": mode} | fields)


def begin(config, workdir: str, mode: str, task: Stream | None = None) -> None:
    """Checks the configuration, finds the run, and starts the log.

    Args:
      config, workdir: the run's.
      mode: the mode of `main.py`.
      task: what samples are made for, if any.

    Raises:
      UserError: if the mode cannot work with this configuration, or it has no run.
    """
    schema.check(config)
    if task is not None:
        samplers.check(config, task)
    agree(config, mode)
    distributed.on_first("to find the run", lambda: workdirs.require_run(config, workdir))
    logs.start(workdir)
    devices.keep_compiled()


def load(config, workdir: str) -> Loaded:
    """Returns the checkpoint of a run that `config.sampling.step` names."""
    wanted = config.sampling.step
    step, state = workdirs.load(config, workdir, None if wanted < 0 else wanted)
    return Loaded(config, workdir, step, devices.replicate(training.sampling_params(state)))


def load_images(
    config, workdir: str, split: str = "train", images: np.ndarray | None = None
) -> data.Images:
    """Returns a run's images as `build.load_images` does; `images` is the array it began with, if any.

    Raises:
      UserError: also if the run began with an array that is not given.
    """
    if images is None:
        workdirs.require_images(workdir)
    return build.load_images(config, split, images)


def name_damaged(dataset: data.Images) -> int:
    """Logs damaged images that were newly found, in any process. All processes must call it.

    Returns:
      How many damaged images a process has found, the largest number over the processes.
    """
    if dataset.source is None:
        return len(dataset.damaged)
    reported = set(dataset.reported)
    rows = np.full(1 + _NAMED, -1)
    rows[0] = len(dataset.damaged)
    if len(reported) < _MAX_NAMED:
        found = dataset.newly_damaged(_NAMED)
        rows[1 : 1 + len(found)] = found
    gathered = distributed.gather(rows)
    total = int(gathered[:, 0].max())
    if new := set(gathered[:, 1:].ravel().tolist()) - reported - {-1}:
        dataset.reported.update(new)
        named = describe_damaged(dataset.source, {row: dataset.damaged.get(row, "") for row in new})
        count = f" ({total} damaged so far)" if total > len(new) else ""
        log.warning(
            "%s: %s, each replaced by the next good image%s", dataset.source.what, named, count
        )
    return total


def load_originals(
    config,
    workdir: str,
    count: int,
    images: np.ndarray | None = None,
    section: str = "inpainting",
) -> np.ndarray:
    """Returns images to work on, the user's or else the test split's, `[count at most, H, W, C]`.

    Args:
      config, workdir: the run's.
      count: how many, at most.
      images: as for `load_images`.
      section: the section of the configuration whose field `images` names the user's.
    """
    path, options = storage.path(config[section].images), config.data
    if not path:
        return np.asarray(load_images(config, workdir, "test", images)[:count])
    field = f"config.{section}.images"
    if arrays.is_array(path):
        shape = build.image_shape(config)
        return np.asarray(arrays.load(path, shape, options.value_range, field=field)[:count])
    if options.value_range or options.channels not in (1, 3):
        raise UserError(
            f"{field}={path!r} must be a .npy or .npz file for a run on floating-point "
            "data, or on images with a number of channels other than 1 and 3"
        )
    size, channels, crop_size = options.image_size, options.channels, options.crop_size or -1
    storage.check(path, field)
    folder = image_folder.Folder(
        path, size, channels, crop_size, field, background=options.background
    )
    found, note = image_folder.first(folder, count)
    if note:
        log.warning("%s: %s", one_line(path), note)
    return found


def make_samples(
    what: str,
    loaded: Loaded,
    runner: run_samplers.Chains,
    directory: str,
    settings: dict,
    count: int,
    known: Callable[[np.ndarray], tuple] = lambda indices: (),
    classes: np.ndarray | None = None,
) -> np.ndarray | None:
    """Makes those of `count` samples that are missing from a directory, as `make_missing` does.

    Args:
      what: what they are, for the progress bar.
      loaded: has the sampler's parameters.
      runner: makes the samples.
      directory: the directory of their `SampleStore`.
      settings: what determines them.
      count: how many samples there should be.
      known: returns what the sampler knows of the samples with these indices.
      classes: the classes that samples have in turn; by default those of the runner.
    """
    config, evaluations = loaded.config, []
    size, shape = min(config.sampling.batch_size, count), build.image_shape(config)
    value_range = runner.value_range

    def make(indices: list[int], advanced: Callable[[int], None]) -> np.ndarray:
        conditions, started = known(np.asarray(indices)), time.perf_counter()
        made = runner.run(loaded.params, indices, size, *conditions, advanced=advanced)
        seconds = time.perf_counter() - started if evaluations else None  # the first compiles
        evaluations.extend(made.evaluations)
        if distributed.is_first():
            _write_cost(directory, indices, made.evaluations, seconds)
        return made.images

    samples = make_missing(
        what,
        lambda: SampleStore(
            directory,
            settings,
            shape,
            dtype=units.dtype(value_range),
            to_picture=lambda images: units.to_picture(images, value_range),
            classes=runner.classes if classes is None else classes,
        ),
        count,
        size,
        make,
        steps=runner.num_steps,
        evaluations=runner.evaluations,
    )
    if evaluations and runner.evaluations is None:
        log.info("%.0f network evaluations each", np.mean(evaluations))
    return samples


def _write_cost(directory: str, indices: list[int], evaluations, seconds: float | None) -> None:
    """Adds a batch to `cost.json`, under its first index; a batch that is made again replaces itself."""
    path = os.path.join(directory, "cost.json")
    costs = storage.read_json(path) or {}
    nfe = float(np.mean(evaluations))
    costs[str(indices[0])] = {"samples": len(indices), "nfe": nfe, "seconds": seconds}
    storage.write(path, (json.dumps(costs, indent=1) + "\n").encode())


def read_cost(directory: str) -> dict:
    """Returns what a sample took, by `cost.json`: network evaluations, and seconds in the fastest batch."""
    batches = (storage.read_json(os.path.join(directory, "cost.json")) or {}).values()
    if not batches:
        return {}
    total = sum(b["samples"] for b in batches)
    cost = {"nfe": sum(b["nfe"] * b["samples"] for b in batches) / total}
    seconds = [b["seconds"] / b["samples"] for b in batches if b["seconds"] is not None]
    return cost | ({"seconds_per_sample": min(seconds)} if seconds else {})


def make_missing(
    what: str,
    open_store: Callable[[], SampleStore],
    count: int,
    size: int,
    make: Callable[[list[int], Callable[[int], None]], np.ndarray],
    *,
    steps: int = 0,
    evaluations: int | None = None,
    unit: str = "images",
) -> np.ndarray | None:
    """Makes missing results in batches, and shows progress.

    Args:
      what: what they are, for the progress bar.
      open_store: returns where the results are kept; called in process 0.
      count: how many results there should be.
      size: how many to make at once, at most.
      make: returns the results of some indices, `make(indices, advanced)`, and calls `advanced` with the
        number of steps, or of results, just done.
      steps: the steps of a batch; 0 counts results.
      evaluations: a result's network evaluations (NFE); None if a solver chooses them.
      unit: what is made, in the plural.

    Returns:
      All results in process 0, and None in the others.
    """
    store = None

    def list_missing() -> list[int]:
        nonlocal store
        store = open_store()
        return store.missing(count)

    missing = distributed.on_first("to list the existing results", list_missing)
    batches = [missing[first : first + size] for first in range(0, len(missing), size)]
    many = "as many network evaluations as the tolerance needs"
    price = many if evaluations is None else f"{evaluations} network evaluations each"
    if missing:
        log.info("%s: %d %s in batches of %d, %s", what, len(missing), unit, size, price)
    else:
        log.info("%s: all %d %s already exist", what, count, unit)
    total, unit = (len(batches) * steps, "steps") if steps else (len(missing), unit)
    with progress(what, total, unit) as advanced:
        for indices in batches:
            made = make(indices, advanced)
            if store is not None:
                store.add(indices, made)
    return None if store is None else store.finish()
