"""Evaluates a run while it trains, without any download: by a classifier of its images, or in pixels."""

import logging

import numpy as np

from ncsn_jax import evaluation
from ncsn_jax.app import (
    checkpoints,
    devices,
    distributed,
    features,
    measuring,
    run_samplers,
    samplers,
)
from ncsn_jax.app.data import Images, cache
from ncsn_jax.app.metrics import Writer
from ncsn_jax.app.progress import progress
from ncsn_jax.errors import UserError

# So many samples tell checkpoints from one another.
_MAX_SAMPLES = 1000

_log = logging.getLogger("ncsn_jax")


class Watch:
    """Measures the first samples of a run's weights every `config.evaluation.every` steps.

    Their noise is the same each time, so that differences come from the weights. All processes sample, and
    process 0 measures. Nothing here changes the training.

    Args:
      config: the configuration.
      dataset: the training images, with which samples are compared.
      store: keeps the distance of each checkpoint.
      writer: writes the figures.
      runner: makes the samples.
      has_array: whether the images are not those that `config.data` names.

    Raises:
      UserError: if the images cannot be compared.
    """

    def __init__(
        self,
        config,
        dataset: Images,
        store: checkpoints.Checkpoints,
        writer: Writer,
        runner: run_samplers.Chains,
        *,
        has_array: bool = False,
    ):
        self._config = config = config.copy_and_resolve_references()
        self._store, self._writer, self._runner = store, writer, runner
        config.evaluation.reference = ""  # it may be of FID's network
        if config.evaluation.features == "inception":
            config.evaluation.features = "pixels"
        self._count = min(config.evaluation.num_samples, _MAX_SAMPLES)

        def prepare() -> None:
            self._features = chosen = features.make(config, has_array)
            standard = measuring.Standard.make(config, chosen, dataset)
            self._moments = standard.moments
            self._name = f"frechet_{chosen.name}_{self._count}"
            made_by = settings | {"features": standard.digest}
            self._kind = f"{self._name}-{cache.digest(made_by)}"

        if config.evaluation.every:
            settings = samplers.settings(config)  # with a guide, all processes take part
            distributed.on_first("to prepare the evaluation", prepare)

    def is_due(self, step: int) -> bool:
        """Returns whether the samples of a step are measured."""
        every = self._config.evaluation.every
        return bool(step and every and step % every == 0)

    def is_missing(self, step: int) -> bool:
        """Returns whether a run saved a step but was killed before its samples were measured."""
        return self.is_due(step) and distributed.on_first(
            "to look for the evaluation", lambda: step not in self._store.distances(self._kind)
        )

    def __call__(self, step: int, params) -> None:
        """Measures samples, and records the figures in the metrics, the log and beside the checkpoint.

        Args:
          step: that of a complete checkpoint.
          params: its weights, on the host.
        """
        try:
            samples = self._sample(devices.replicate(params))
        except UserError as error:  # sampling settings must not end a training run
            _log.warning("no evaluation at step %d: %s", step, error)
            return
        if not distributed.is_first():
            return
        found, logits = features.extract(
            self._features, samples, self._config.data.value_range, "judging samples"
        )
        distance = evaluation.frechet_distance(self._moments, found)
        figures = {self._name: distance}
        if logits is not None:
            figures[f"recognised_{self._count}"] = measuring.recognised(logits)
            if (classes := self._runner.classes) is not None:
                figures |= measuring.of_labels(logits, np.resize(classes, len(logits)))
        self._writer.write_scalars(step, {f"evaluation/{n}": v for n, v in figures.items()})
        self._writer.flush(now=True)
        self._store.set_distance(step, self._kind, distance)
        line = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        if self._config.training.keep_best:
            distances = self._store.distances(self._kind)
            best = min(distances, key=distances.get)
            line += f"; best checkpoint: step {best}, {distances[best]:.4g}"
        _log.info("evaluation at step %d: %s", step, line)

    def _sample(self, params) -> np.ndarray:
        count, runner = self._count, self._runner
        size = min(self._config.sampling.batch_size, count)
        starts = range(0, count, size)
        with progress("sampling to evaluate", len(starts) * runner.num_steps) as advanced:
            batches = [
                runner.run(
                    params, list(range(first, min(first + size, count))), size, advanced=advanced
                ).images
                for first in starts
            ]
        return np.concatenate(batches)
