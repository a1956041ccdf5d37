"""What is made from the newest checkpoint of a run: samples, and images of other kinds.

Each public function is a mode of `main.py`, but for `agree` and `write_samples`, which training calls as
well. All load the run in the same way, make what is missing of their samples in batches, and write below
the work directory; nothing that was made with other settings is overwritten.
"""

import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ncsn_jax import likelihood as likelihoods
from ncsn_jax import models
from ncsn_jax._random import Stream
from ncsn_jax.app import (
    build,
    classification,
    cost,
    devices,
    distributed,
    logs,
    neighbours,
    pictures,
    run_flows,
    run_samplers,
    samplers,
    schema,
    storage,
    workdirs,
)
from ncsn_jax.app.data.masks import make_masks, read_images
from ncsn_jax.app.sample_store import SampleStore
from ncsn_jax.errors import UserError, one_line

_log = logging.getLogger("ncsn_jax")

# Frames of a GIF, and samples in it; training images shown beside a sample, and samples compared at once.
_GIF_FRAMES, _GIF_SAMPLES = 60, 36
_NEIGHBOURS, _COMPARED_AT_ONCE = 6, 100

# What a sample or an image takes where the solver chooses its steps.
_BY_TOLERANCE = "as many network evaluations as the tolerance needs"


def sample(config, workdir: str) -> None:
    """Samples from the newest checkpoint of a work directory."""
    schema.check(config)
    samplers.check(config)
    agree(config, "sample")
    step, params = _load(config, workdir)
    write_samples(config, workdir, step, params, run_samplers.Chains(config))


def inpaint(config, workdir: str) -> None:
    """Completes images of which a part is hidden, several times each."""
    options, shape = config.inpainting, build.image_shape(config)

    def hide(originals: np.ndarray) -> _Hidden:
        masks = make_masks(options.mask, shape, len(originals), config.seed)
        settings = {
            "inpainting.keep_observed": options.keep_observed,
            "images and masks": zlib.crc32(masks.tobytes(), zlib.crc32(originals.tobytes())),
        }
        if config.sampling.method == "annealed_langevin":
            settings["inpainting.scheme"] = options.scheme
        known = (originals / np.float32(255), masks)
        occluded = np.where(masks, originals, np.uint8(192))
        return _Hidden(known, occluded, settings, {"masks": masks})

    _complete_images(config, workdir, "inpaint", Stream.INPAINTING, hide)


def colorize(config, workdir: str) -> None:
    """Colours images of which the mean of the channels is known, several times each."""

    def hide(originals: np.ndarray) -> _Hidden:
        grey = np.mean(originals / np.float32(255), axis=-1, keepdims=True)
        settings = {"images": zlib.crc32(originals.tobytes())}
        shown = np.broadcast_to(pictures.to_uint8(grey), originals.shape)
        return _Hidden((grey,), shown, settings, {"grey": pictures.to_uint8(grey)})

    _complete_images(config, workdir, "colorize", Stream.COLORIZATION, hide)


class _Hidden(NamedTuple):
    """What is known of some images: for the sampler, to be shown, for the settings, to be kept."""

    known: tuple[np.ndarray, ...]
    shown: np.ndarray
    settings: dict
    kept: dict[str, np.ndarray]


def _complete_images(config, workdir: str, mode: str, task: Stream, hide: Callable) -> None:
    """Completes images, several times each, and writes them beside what was known of them.

    Args:
      config, workdir: of the run.
      mode: of `main.py`.
      task: of the samples; see `samplers`.
      hide: returns what is known of the originals, `hide(originals) -> _Hidden`.
    """
    schema.check(config)
    samplers.check(config, task)
    agree(config, mode)
    distributed.on_first("to find the run", lambda: workdirs.require_run(config, workdir))
    options, shape = config.inpainting, build.image_shape(config)
    originals, left_out = _originals(config, options.num_images)
    hidden = hide(originals)
    step, params = _load(config, workdir)
    runner = run_samplers.Chains(config, task)

    each, size = options.num_completions, config.sampling.batch_size
    directory = _directory(config, workdir, samplers.NAMES[task], step)
    settings = _settings(config, step) | {"inpainting.num_completions": each} | hidden.settings
    distributed.agree("what it completes", settings)
    if distributed.is_first():
        storage.remove_leftovers(directory)
    _log.info("completing %d images, %d times each, from step %d", len(originals), each, step)
    if left_out:
        _log.warning("%s: %s", one_line(options.images), left_out)

    def make(indices: list[int], advanced: Callable[[int], None]) -> np.ndarray:
        image = np.asarray(indices) // each
        known = (a[image] for a in hidden.known)
        return runner.run(params, indices, size, *known, advanced=advanced).images

    completions = _complete(
        samplers.NAMES[task],
        lambda: SampleStore(os.path.join(directory, "samples"), settings, shape),
        len(originals) * each,
        size,
        runner.num_steps,
        make,
        _cost(runner),
    )
    if completions is None:
        return
    completions = completions.reshape(len(originals), each, *shape)
    pictures.write_npz(
        os.path.join(directory, "completions.npz"),
        originals=originals,
        completions=completions,
        **hidden.kept,
    )
    rows = np.concatenate([originals[:, None], hidden.shown[:, None], completions], axis=1)
    picture = pictures.grid(rows.reshape(-1, *shape), columns=each + 2)
    pictures.write_png(os.path.join(directory, "completions.png"), picture)
    _log.info("wrote completions.npz and completions.png to %s", directory)


def _originals(config, count: int) -> tuple[np.ndarray, str]:
    """Returns images to work on, uint8 `[count, H, W, C]`, and what had to be left out."""
    directory = config.inpainting.images
    if not directory:
        return np.asarray(build.load_images(config, "test")[:count]), ""
    data = config.data
    found, left_out = read_images(directory, data.image_size, data.channels, data.crop_size or -1)
    return np.asarray(found[:count]), left_out


def interpolate(config, workdir: str) -> None:
    """Encodes pairs of images, and decodes what lies between their latents."""
    schema.check(config)
    agree(config, "interpolate")
    distributed.on_first("to find the run", lambda: workdirs.require_run(config, workdir))
    options, shape = config.interpolation, build.image_shape(config)
    originals, left_out = _originals(config, 2 * options.num_pairs)
    pairs = len(originals) // 2
    if not pairs:
        raise UserError("there is one image only: to interpolate takes two")
    originals = originals[: 2 * pairs].reshape(pairs, 2, *shape)
    step, params = _load(config, workdir)
    if left_out:
        _log.warning("%s: %s", one_line(config.inpainting.images), left_out)
    directory = _directory(config, workdir, "interpolation", step)
    fields = [f"sampling.{f}" for f in ("rtol", "atol", "end", "temperature", "dtype")]
    settings = _chosen(config, [*fields, "interpolation.num_steps"]) | {
        "step": step,
        "images": zlib.crc32(originals.tobytes()),
    }
    distributed.agree("what it interpolates", settings)
    flow, count = run_flows.Flow(config), options.num_steps
    at_once = min(pairs, max(1, config.sampling.batch_size // count))

    def make(indices: list[int], advanced: Callable[[int], None]) -> np.ndarray:
        ends = originals[np.asarray(indices)].reshape(-1, *shape) / np.float32(255)
        latents = flow.encode(params, ends, 2 * at_once).values.reshape(-1, 2, *shape)
        between = np.concatenate([likelihoods.interpolate(*pair, count) for pair in latents])
        decoded = flow.decode(params, between, count * at_once).values
        if not np.isfinite(decoded).all():
            raise UserError(
                "an image cannot be encoded and decoded: config.sampling.rtol and atol may be too small for "
                "float32"
            )
        advanced(len(indices))
        return pictures.to_uint8(decoded).reshape(-1, count, *shape)

    found = _complete(
        "interpolation",
        lambda: SampleStore(
            os.path.join(directory, "pairs"), settings, (count, *shape), name="interpolations"
        ),
        pairs,
        at_once,
        0,
        make,
        _BY_TOLERANCE,
        "pairs",
    )
    if found is None:
        return
    pictures.write_npz(
        os.path.join(directory, "interpolation.npz"), originals=originals, interpolations=found
    )
    rows = np.concatenate([originals[:, :1], found, originals[:, 1:]], axis=1)
    picture = pictures.grid(rows.reshape(-1, *shape), columns=count + 2)
    pictures.write_png(os.path.join(directory, "interpolation.png"), picture)
    _log.info("wrote interpolation.png and interpolation.npz to %s", directory)


def likelihood(config, workdir: str) -> None:
    """Computes the bits per dimension of images under the newest checkpoint."""
    schema.check(config)
    agree(config, "likelihood")
    distributed.on_first("to find the run", lambda: workdirs.require_run(config, workdir))
    options = config.likelihood
    dataset = build.load_images(config, options.split)
    described = workdirs.describe_images(dataset)
    dataset = np.asarray(dataset[: options.num_images])
    step, params = _load(config, workdir)
    directory = _directory(config, workdir, "likelihood", step)
    fields = ("split", "exact", "num_projections", "rtol", "atol", "end")
    settings = _chosen(config, [*(f"likelihood.{f}" for f in fields), "sampling.dtype"])
    settings |= {"step": step, "images": described}
    distributed.agree("what it judges", settings)
    flow, size = run_flows.Flow(config), min(config.sampling.batch_size, len(dataset))

    def make(indices: list[int], advanced: Callable[[int], None]) -> np.ndarray:
        found = flow.bits_per_dim(params, indices, dataset[np.asarray(indices)], size)
        bad = np.asarray(indices)[~np.isfinite(found.values)]
        if len(bad):
            raise UserError(
                f"the likelihood of image {bad[0]} is not finite: config.likelihood.rtol={options.rtol} and "
                f"atol={options.atol} may be too small for float32"
            )
        advanced(len(indices))
        return np.stack([found.values, found.evaluations], axis=1).astype(np.float32)

    values = _complete(
        "likelihood",
        lambda: SampleStore(directory, settings, (2,), name="bits_per_dim", dtype=np.float32),
        len(dataset),
        size,
        0,
        make,
        _BY_TOLERANCE,
    )
    if values is None:
        return
    bits, evaluations = values[: len(dataset)].T
    summary = {
        "bits_per_dim": float(np.mean(bits)),
        "standard_error": float(np.std(bits, ddof=1) / np.sqrt(len(bits)))
        if len(bits) > 1
        else None,
        "images": len(bits),
        "evaluations": float(np.mean(evaluations)),
    }
    storage.write(
        os.path.join(directory, "summary.json"), (json.dumps(summary, indent=2) + "\n").encode()
    )
    _log.info(
        "%.4f bits per dimension of %d images of %r, standard error %s, %.0f evaluations each; wrote "
        "bits_per_dim.npz and summary.json to %s",
        summary["bits_per_dim"],
        len(bits),
        options.split,
        "unknown" if len(bits) < 2 else f"{summary['standard_error']:.4f}",
        summary["evaluations"],
        directory,
    )


def classifier(config, workdir: str) -> None:
    """Trains the classifier of noisy images that class-conditional sampling needs."""
    schema.check(config)
    agree(config, "classifier")
    if distributed.count() > 1:
        raise UserError("--mode=classifier runs in one process: it trains on one device")
    workdirs.require_run(config, workdir)
    options, process = config.classifier, build.make_sde(config)
    path = _classifier_path(workdir)
    if storage.exists(path):
        raise UserError(f"{path} is there already: move it away to train another")
    # All of it first, so that nothing is found missing when the training is done.
    (labels, count), (unseen_labels, _) = (build.load_labels(config, s) for s in ("train", "test"))
    dataset, unseen = (build.load_images(config, s) for s in ("train", "test"))
    workdirs.claim_images(dataset, workdir, read_only=True)
    logs.start(workdir)
    _log.info("training a classifier of %d classes on %d noisy images", count, len(dataset))
    with cost.progress("training", options.num_steps) as progressed:
        done = 0

        def advanced(step: int, loss: float, accuracy: float) -> None:
            nonlocal done
            progressed(step - done)
            done = step
            _log.debug("step %d  loss %.4g  accuracy %.3f", step, loss, accuracy)

        params, history = classification.train_classifier(
            dataset,
            labels,
            count,
            process,
            seed=config.seed,
            num_steps=options.num_steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            features=options.features,
            centered=config.data.centered,
            advanced=advanced,
        )
    model = models.NoisyClassifier(count, options.features)
    found = classification.evaluate(
        model,
        params,
        process,
        np.asarray(unseen),
        unseen_labels,
        centered=config.data.centered,
    )
    for t, sigma, accuracy in zip(found.t, found.sigma, found.accuracy, strict=True):
        _log.info("t %.2f  sigma %-8.3g  accuracy on the test split %.3f", t, sigma, accuracy)
    meta = _describe_classifier(config, model) | {"accuracy": found.accuracy.tolist()}
    storage.make_directory(os.path.dirname(path))
    classification.save(path, params, meta)
    _log.info("loss %.3f; wrote %s", history[-1]["loss"], path)


def classconditional(config, workdir: str) -> None:
    """Samples of given classes, by the gradient of the classifier."""
    schema.check(config)
    agree(config, "classconditional")
    samplers.check(config, Stream.CLASSES)
    distributed.on_first("to find the run", lambda: workdirs.require_run(config, workdir))
    model, classifier_params, checksum = _load_classifier(config, workdir)
    count, wanted = model.num_classes, config.classifier.label
    if wanted >= count:
        raise UserError(
            f"config.classifier.label={wanted} must be -1 (all), or below the classifier's {count} classes"
        )
    step, params = _load(config, workdir)
    runner = run_samplers.Chains(config, Stream.CLASSES, model)
    params = (params, devices.replicate(classifier_params))
    directory = _directory(config, workdir, samplers.NAMES[Stream.CLASSES], step)
    size = config.sampling.batch_size
    settings = _settings(config, step) | {
        "classifier": checksum,
        "classifier.scale": config.classifier.scale,
        "classifier.label": wanted,
    }

    def make(indices: list[int], advanced: Callable[[int], None]) -> np.ndarray:
        labels = np.asarray(indices) % count if wanted < 0 else np.full(len(indices), wanted)
        labels = labels.astype(np.int32)
        return runner.run(params, indices, size, labels, advanced=advanced).images

    _complete(
        "sampling",
        lambda: SampleStore(directory, settings, build.image_shape(config)),
        config.sampling.num_samples,
        size,
        runner.num_steps,
        make,
        _cost(runner),
    )
    _log.info(
        "wrote %s and grid.png: %s",
        os.path.join(directory, "samples.npz"),
        f"class {wanted}" if wanted >= 0 else f"sample i is of class i modulo {count}",
    )


def _classifier_path(workdir: str) -> str:
    return os.path.join(workdir, "classifier", "classifier.npz")


def _load_classifier(config, workdir: str) -> tuple[models.NoisyClassifier, Any, int]:
    """Returns a run's classifier, its parameters, and the checksum of its file, in all processes.

    Raises:
      UserError: if there is none, or one of other images or another SDE.
    """
    path, trained = _classifier_path(workdir), None

    def read() -> dict:
        nonlocal trained
        if not storage.exists(path):
            raise UserError(
                f"--workdir={workdir!r} holds no classifier: train it with --mode=classifier first"
            )
        described = _describe_classifier(config, models.NoisyClassifier(2))
        expected = {name: described[name] for name in ("sde", "dataset", "image_shape", "centered")}
        trained = classification.load(path, expected)
        return {"meta": trained.meta, "checksum": zlib.crc32(storage.read(path))}

    found = distributed.on_first("to read the classifier", read)
    model, like = classification.rebuild(found["meta"])
    params = distributed.broadcast(None if trained is None else trained.params, like)
    return model, params, found["checksum"]


def _describe_classifier(config, model: models.NoisyClassifier) -> dict:
    return classification.describe(
        model,
        build.make_sde(config),
        dataset=config.data.dataset,
        image_shape=build.image_shape(config),
        centered=config.data.centered,
    )


def nearest(config, workdir: str) -> None:
    """Shows samples of the newest checkpoint beside the nearest training images."""
    schema.check(config)
    samplers.check(config)
    agree(config, "nearest")
    step, params = _load(config, workdir)
    dataset = build.load_images(config)
    workdirs.claim_images(dataset, workdir, read_only=True)
    samples = write_samples(config, workdir, step, params, run_samplers.Chains(config))
    if samples is None:
        return
    samples = samples[: config.sampling.num_samples]
    count = min(_NEIGHBOURS, len(dataset))
    with cost.progress("comparing", len(samples)) as advanced:
        found = []
        for first in range(0, len(samples), _COMPARED_AT_ONCE):
            some = samples[first : first + _COMPARED_AT_ONCE]
            found.append(neighbours.nearest(some, dataset, count))
            advanced(len(some))
    indices, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
    directory = _directory(config, workdir, "samples", step)
    pictures.write_npz(os.path.join(directory, "nearest.npz"), indices=indices, distances=distances)
    shown = samples[: config.sampling.preview_samples]
    rows = [np.concatenate([s[None], dataset[i]]) for s, i in zip(shown, indices, strict=False)]
    picture = pictures.grid(np.concatenate(rows), columns=count + 1)
    pictures.write_png(os.path.join(directory, "nearest.png"), picture)
    _log.info(
        "distance to the nearest training image: smallest %.3g, median %.3g; wrote nearest.png and "
        "nearest.npz to %s",
        distances[:, 0].min(),
        np.median(distances[:, 0]),
        directory,
    )


def write_samples(config, workdir, step, params, runner) -> np.ndarray | None:
    """Writes the samples that are missing to `samples/step_<step>/`; returns all, in process 0."""
    directory = _directory(config, workdir, "samples", step)
    count, size = config.sampling.num_samples, config.sampling.batch_size
    evaluations = []

    def make(indices: list[int], advanced: Callable[[int], None]) -> np.ndarray:
        made = runner.run(params, indices, size, advanced=advanced)
        evaluations.extend(made.evaluations)
        return made.images

    samples = _complete(
        "sampling",
        lambda: SampleStore(directory, _settings(config, step), build.image_shape(config)),
        count,
        size,
        runner.num_steps,
        make,
        _cost(runner),
    )
    if evaluations and runner.evaluations is None:
        _log.info("%.0f network evaluations each", np.mean(evaluations))
    _log.info("wrote %s and grid.png", os.path.join(directory, "samples.npz"))
    if config.sampling.gif:
        indices = list(range(min(count, size, _GIF_SAMPLES)))
        with cost.progress("filming", runner.num_steps) as advanced:
            film = runner.run(params, indices, size, num_frames=_GIF_FRAMES, advanced=advanced)
        if distributed.is_first():
            _write_film(directory, film.frames)
    return samples


def _cost(runner: run_samplers.Chains) -> str:
    """Says what a sample takes."""
    if runner.evaluations is None:
        return _BY_TOLERANCE
    return f"{runner.evaluations} network evaluations each"


def _complete(
    what: str,
    open_store: Callable[[], SampleStore],
    count: int,
    size: int,
    steps: int,
    make: Callable,
    price: str,
    unit: str = "images",
) -> np.ndarray | None:
    """Makes those of `count` samples, or values of images, that are missing; returns all, in process 0.

    Args:
      what: it is, for the progress bar.
      open_store: returns where they are kept; called in process 0.
      count: how many there are to be.
      size: how many are made at once.
      steps: of a batch, which are counted; 0 to count what is made.
      make: returns samples, `make(indices, advanced)`.
      price: what one takes, for the log.
      unit: what is made, in the plural.
    """
    store = None

    def list_missing() -> list[int]:
        nonlocal store
        store = open_store()
        return store.missing(count)

    missing = distributed.on_first("to list what is there", list_missing)
    batches = [missing[first : first + size] for first in range(0, len(missing), size)]
    if missing:
        _log.info("%s: %d %s in batches of %d, %s", what, len(missing), unit, size, price)
    else:
        _log.info("all of it is there")
    total, unit = (len(batches) * steps, "steps") if steps else (len(missing), unit)
    with cost.progress(what, total, unit) as advanced:
        for indices in batches:
            made = make(indices, advanced)
            if store is not None:
                store.add(indices, made)
    return None if store is None else store.finish()


def _write_film(directory: str, taken: np.ndarray) -> None:
    """Writes `annealing.gif` and `filmstrip.png` of frames `[F, N, H, W, C]`."""
    columns = int(np.ceil(np.sqrt(taken.shape[1])))
    gif = pictures.encode_gif(np.stack([pictures.grid(f, columns) for f in taken]), min_side=400)
    storage.write(os.path.join(directory, "annealing.gif"), gif)
    strip = pictures.filmstrip(taken, rows=8, columns=12)
    pictures.write_png(os.path.join(directory, "filmstrip.png"), strip)
    _log.info("wrote annealing.gif and filmstrip.png there")


def _chosen(config, fields: Iterable[str]) -> dict:
    """Returns fields with their values, and the seed."""
    flat = schema.flatten(config)
    return {f: flat[f] for f in fields} | {"seed": config.seed}


def _settings(config, step: int) -> dict:
    """Returns what determines every sample of a checkpoint."""
    return samplers.settings(config) | {"step": step}


def _directory(config, workdir: str, kind: str, step: int) -> str:
    """Returns the directory for what is made from the checkpoint of a step."""
    name = f"step_{step}" + (f"_{config.sampling.name}" if config.sampling.name else "")
    return os.path.join(workdir, kind, name)


def agree(config, mode: str) -> None:
    """Raises UserError unless all processes were started to do the same."""
    fields = schema.flatten(config)
    local = ("data.data_dir", "inpainting.images", "inpainting.mask")
    distributed.agree(
        "its configuration", {"mode": mode} | {f: fields[f] for f in fields if f not in local}
    )


def _load(config, workdir: str) -> tuple[int, dict]:
    """Returns step and replicated parameters of a work directory's newest checkpoint."""
    distributed.on_first("to find the run", lambda: workdirs.require_run(config, workdir))
    logs.start(workdir)
    step, state = workdirs.load_newest(config, workdir)
    return step, devices.replicate(state.ema_params or state.params)
