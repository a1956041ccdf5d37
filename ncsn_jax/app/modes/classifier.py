"""`--mode=classifier` trains a classifier of noisy images; `--mode=classconditional` samples by its gradient.

See Song et al. (2021), section 5 and appendix I.1.
"""

import logging
import os
import zlib
from typing import Any

import numpy as np

from ncsn_jax._random import Stream
from ncsn_jax.app import (
    build,
    classifier_file,
    classifier_training,
    devices,
    distributed,
    run_samplers,
    samplers,
    storage,
    workdirs,
)
from ncsn_jax.app.modes import shared
from ncsn_jax.app.progress import progress
from ncsn_jax.app.sample_store import SampleStore
from ncsn_jax.errors import UserError
from ncsn_jax.models import NoisyClassifier

_log = logging.getLogger("ncsn_jax")


def classifier(config, workdir: str) -> None:
    """Trains the classifier that `classconditional` needs, to `classifier/classifier.npz`."""
    shared.begin(config, workdir, "classifier")
    if distributed.count() > 1:
        raise UserError("--mode=classifier runs in one process: it trains on one device")
    options, process = config.classifier, build.make_sde(config)
    path = _path(workdir)
    if storage.exists(path):
        raise UserError(f"{path} is there already: move it away to train another")
    # All of it first, so that nothing is found missing when the training is done.
    (labels, count), (unseen_labels, _) = (build.load_labels(config, s) for s in ("train", "test"))
    dataset, unseen = (build.load_images(config, s) for s in ("train", "test"))
    workdirs.claim_images(dataset, workdir, read_only=True)
    _log.info("training a classifier of %d classes on %d noisy images", count, len(dataset))
    model = NoisyClassifier(count, options.features)
    with progress("training", options.num_steps) as progressed:
        done = 0

        def advanced(step: int, loss: float, accuracy: float) -> None:
            nonlocal done
            progressed(step - done)
            done = step
            _log.debug("step %d  loss %.4g  accuracy %.3f", step, loss, accuracy)

        params, history = classifier_training.train_classifier(
            model,
            process,
            dataset,
            labels,
            seed=config.seed,
            num_steps=options.num_steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            centered=config.data.centered,
            advanced=advanced,
        )
    unseen, centered = np.asarray(unseen), config.data.centered
    found = classifier_training.evaluate(
        model, params, process, unseen, unseen_labels, centered=centered
    )
    for t, sigma, accuracy in zip(found.t, found.sigma, found.accuracy, strict=True):
        _log.info("t %.2f  sigma %-8.3g  accuracy on the test split %.3f", t, sigma, accuracy)
    storage.make_directory(os.path.dirname(path))
    meta = _describe(config, model) | {"accuracy": found.accuracy.tolist()}
    classifier_file.save(path, params, meta)
    _log.info("loss %.3f; wrote %s", history[-1]["loss"], path)


def classconditional(config, workdir: str) -> None:
    """Writes samples of given classes to `classconditional/step_<step>/`."""
    shared.begin(config, workdir, "classconditional", Stream.CLASSES)
    model, classifier_params, checksum = _load_classifier(config, workdir)
    count, wanted = model.num_classes, config.classifier.label
    if wanted >= count:
        raise UserError(
            f"config.classifier.label={wanted} must be -1 (all), or below the classifier's {count} classes"
        )
    loaded = shared.load(config, workdir)
    directory = loaded.directory(samplers.NAMES[Stream.CLASSES])
    settings = loaded.sampler_settings() | {
        "classifier": checksum,
        "classifier.scale": config.classifier.scale,
        "classifier.label": wanted,
    }

    def known(indices: np.ndarray) -> tuple[np.ndarray]:
        labels = indices % count if wanted < 0 else np.full(len(indices), wanted)
        return (labels.astype(np.int32),)

    shared.make_samples(
        "sampling",
        loaded._replace(params=(loaded.params, devices.replicate(classifier_params))),
        run_samplers.Chains(config, Stream.CLASSES, model),
        lambda: SampleStore(directory, settings, build.image_shape(config)),
        config.sampling.num_samples,
        known,
    )
    _log.info(
        "wrote %s and grid.png: %s",
        os.path.join(directory, "samples.npz"),
        f"class {wanted}" if wanted >= 0 else f"sample i is of class i modulo {count}",
    )


def _path(workdir: str) -> str:
    return os.path.join(workdir, "classifier", "classifier.npz")


def _load_classifier(config, workdir: str) -> tuple[NoisyClassifier, Any, int]:
    """Returns a run's classifier, its parameters, and the checksum of its file, in all processes.

    Raises:
      UserError: if there is none, or one of other images or another SDE.
    """
    path, params = _path(workdir), None

    def read() -> dict:
        nonlocal params
        if not storage.exists(path):
            raise UserError(
                f"--workdir={workdir!r} holds no classifier: train it with --mode=classifier first"
            )
        params, meta = classifier_file.load(path, _describe(config, NoisyClassifier(2)))
        return {"meta": meta, "checksum": zlib.crc32(storage.read(path))}

    found = distributed.on_first("to read the classifier", read)
    model, like = classifier_file.rebuild(found["meta"])
    return model, distributed.broadcast(params, like), found["checksum"]


def _describe(config, model: NoisyClassifier) -> dict:
    return classifier_file.describe(
        model,
        build.make_sde(config),
        dataset=config.data.dataset,
        image_shape=build.image_shape(config),
        centered=config.data.centered,
    )
