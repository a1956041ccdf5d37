"""`--mode=classifier` trains a classifier of noisy images; `--mode=classconditional` samples by its gradient.

See Song et al. (2021), section 5 and appendix I.1.
"""

import os
import zlib
from typing import Any

import jax.numpy as jnp
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
from ncsn_jax.errors import UserError
from ncsn_jax.models import NoisyClassifier


@devices.jax_defaults()
def classifier(config, workdir: str) -> None:
    """Trains the classifier that `classconditional` needs, to `classifier/classifier.npz`."""
    shared.begin(config, workdir, "classifier")
    if distributed.count() > 1:
        raise UserError("--mode=classifier must run in one process: it trains on one device")
    path = _path(workdir)
    if storage.exists(path):
        raise UserError(f"{path} already exists: move it away to train another")
    # Load everything now, so that nothing turns out to be missing after training.
    (labels, count), (unseen_labels, _) = (build.load_labels(config, s) for s in ("train", "test"))
    dataset, unseen = (build.load_images(config, s) for s in ("train", "test"))
    workdirs.claim_images(dataset, workdir, read_only=True)
    shared.log.info("training a classifier of %d classes on %d noisy images", count, len(dataset))
    model = NoisyClassifier(count, config.classifier.features)
    params, loss = classifier_training.train_classifier(config, model, dataset, labels)
    accuracy = classifier_training.evaluate(config, model, params, unseen, unseen_labels)
    t = (np.arange(len(accuracy)) + 0.5) / len(accuracy)
    sigma = np.asarray(build.make_sde(config).sigma(jnp.asarray(t)))
    for row in zip(t, sigma, accuracy, strict=True):
        shared.log.info("t %.2f  sigma %-8.3g  accuracy on the test split %.3f", *row)
    storage.make_directory(os.path.dirname(path))
    meta = classifier_file.describe(config, model) | {"accuracy": accuracy.tolist()}
    classifier_file.save(path, params, meta)
    shared.log.info("loss %.3f; wrote %s", loss, path)


@devices.jax_defaults()
def classconditional(config, workdir: str) -> None:
    """Writes samples of given classes to `classconditional/step_<step>/`."""
    shared.begin(config, workdir, "classconditional", Stream.CLASSES)
    model, classifier_params, checksum = _load_classifier(config, workdir)
    count, label = model.num_classes, config.classifier.label
    if label >= count:
        raise UserError(
            f"config.classifier.label={label} must be -1 (all) or below {count}, the "
            "classifier's number of classes"
        )
    loaded = shared.load(config, workdir)
    directory = loaded.directory(samplers.NAMES[Stream.CLASSES])
    settings = loaded.sampler_settings() | {
        "classifier": checksum,
        "classifier.scale": config.classifier.scale,
        "classifier.label": label,
    }

    classes = np.asarray(range(count) if label < 0 else [label], np.int32)
    shared.make_samples(
        "sampling",
        loaded._replace(params=(loaded.params, devices.replicate(classifier_params))),
        run_samplers.Chains(config, Stream.CLASSES, model),
        directory,
        settings,
        config.sampling.num_samples,
        lambda indices: (classes[indices % len(classes)],),
        classes,
    )
    shared.log.info(
        "wrote %s and grid.png: %s",
        os.path.join(directory, "samples.npz"),
        f"class {label}" if label >= 0 else f"sample i has class i modulo {count}",
    )


def _path(workdir: str) -> str:
    return os.path.join(workdir, "classifier", "classifier.npz")


def _load_classifier(config, workdir: str) -> tuple[NoisyClassifier, Any, int]:
    """Returns a run's classifier, its parameters, and its file's checksum, in all processes.

    Raises:
      UserError: if there is none, or it was trained on other images or another SDE.
    """
    path, params = _path(workdir), None

    def read() -> dict:
        nonlocal params
        if not storage.exists(path):
            raise UserError(
                f"--workdir={workdir!r} holds no classifier: train one with --mode=classifier first"
            )
        params, meta = classifier_file.load(
            path, classifier_file.describe(config, NoisyClassifier(2))
        )
        return {"meta": meta, "checksum": zlib.crc32(storage.read(path))}

    found = distributed.on_first("to read the classifier", read)
    model, like = classifier_file.rebuild(found["meta"])
    return model, distributed.broadcast(params, like), found["checksum"]
