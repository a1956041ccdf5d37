"""Opens a run, trained by `main.py` or converted, for use in your own code; see `ncsn_jax.load_run`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ncsn_jax import _checks as check
from ncsn_jax import sde as sdes
from ncsn_jax import training
from ncsn_jax.app import build, devices, run_samplers, schema, units, workdirs
from ncsn_jax.app.progress import progress
from ncsn_jax.app.run_config import get_config
from ncsn_jax.errors import UserError, show
from ncsn_jax.images import center, uncenter
from ncsn_jax.types import ScoreFn, TimeScoreFn

# Noisy images in [0, 1] may exceed 1, but not this.
_LARGEST = 50


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Run:
    """A trained network with its configuration, parameters, noise and scores.

    Scores and densities refer to the space the run was trained in: images in [0, 1], or in [-1, 1] if
    `config.data.centered`. `prepare` maps images to it, and `restore` maps them back.

    Attributes:
      config: the run's configuration.
      step: the checkpoint's step.
      model: the Flax network.
      params: its parameters, or their average if there is one.
      sigmas: the noise ladder `[L]`, decreasing.
      sde: the SDE; for a ladder, the variance-exploding SDE from its first to its last sigma.
      score_fn: `score_fn(x [B, H, W, C], sigma [B]) -> score`, like x. For a run with classes,
        `score_fn(x, sigma, classes=int[B])` is the score given these; without them it is that of all images.
      time_score_fn: `time_score_fn(x, t [B]) -> score`, t from 0 (data) to 1 (noise); likewise.

    A ladder's network knows only its L levels. Between two levels it gives the score of the nearest, by the
    ratio of the sigmas. So its score is a staircase in sigma or t: an ODE solver with small tolerances takes
    many steps at the edges. Likelihoods and latents are those of the staircase's flow, which is close to the
    flow of the scores only for ladders of many levels. Networks with continuous time
    (`config.training.continuous`) have smooth scores.
    """

    config: ConfigDict
    step: int
    model: Any
    params: Any
    sigmas: jax.Array
    sde: sdes.SDE
    score_fn: ScoreFn
    time_score_fn: TimeScoreFn
    _runners: dict[str, run_samplers.Chains] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        count = sum(a.size for a in jax.tree.leaves(self.params))
        shape = build.image_shape(self.config)
        return (
            f"Run({self.config.model.name}, {count:,} parameters, images {shape}, step {self.step})"
        )

    @devices.jax_defaults()
    def sample(self, key: jax.Array, n: int, **overrides: Any) -> np.ndarray:
        """Draws samples on all local devices, in batches of `config.sampling.batch_size`.

        Sample i is a function of (key, i) alone. With `jax.random.key(config.seed)` the samples are those of
        `main.py --mode=sample`, whose 8-bit values `to_uint8` gives.

        Args:
          key: one key.
          n: how many, >= 1.
          **overrides: fields of `config.sampling`, such as `steps_per_level=10`; for a run with classes,
            `label=3` for one class or `label=(3, 5)` for several in turn, and `guidance=2.0`.

        Returns:
          Images, float32 `[n, H, W, C]`, in [0, 1] except for the noise the sampler leaves, or in the units
          of floating-point data.

        Raises:
          UserError: if a field cannot have its value, or a chain diverges.

        Example:
          >>> run = ncsn_jax.load_run("runs/digits")  # doctest: +SKIP
          >>> images = run.sample(jax.random.key(0), 16)  # doctest: +SKIP
        """
        try:
            key = check.keys(key, 0)
        except (TypeError, ValueError) as error:
            raise UserError(f"key must be one threefry key: {error}") from None
        if key.ndim or str(jax.random.key_impl(key)) != "threefry2x32":
            raise UserError(f"key must be one threefry key, got {show(key)}")
        if "num_samples" in overrides:
            raise UserError("num_samples must be given as n, the second argument")
        if isinstance(label := overrides.get("label"), int | np.integer):
            overrides = overrides | {"label": (int(label),)}
        config = self.config.copy_and_resolve_references().unlock()
        try:
            config.sampling.update(overrides | {"num_samples": int(n)})
        except (TypeError, ValueError) as error:
            raise UserError(f"config.sampling: {error}") from None
        schema.check(config, num_devices=1)
        if not config.data.value_range:
            config.data.value_range = (0.0, 1.0)  # floats, not bytes
        chosen = repr(sorted(overrides.items()))
        if chosen not in self._runners:
            self._runners[chosen] = run_samplers.Chains(config)
        runner = self._runners[chosen]
        size = min(n, config.sampling.batch_size)
        params, made = devices.replicate(self.params), []
        with progress("sampling", -(-n // size) * runner.num_steps) as advanced:
            for first in range(0, n, size):
                indices = list(range(first, min(first + size, n)))
                found = runner.run(params, indices, size, key=key, advanced=advanced)
                made.append(found.images)
        return np.concatenate(made)

    def prepare(self, images: Any) -> jax.Array:
        """Returns images `[B, H, W, C]` as the score functions take them.

        Args:
          images: uint8, or floating point in [0, 1]; for a run on floating-point data, in its units.
        """
        images, options = np.asarray(images), self.config.data
        allowed = ["float"] if options.value_range else ["float", "uint8"]
        if not any(kind in str(images.dtype) for kind in allowed):
            raise UserError(f"images must be {' or '.join(allowed)}, got {images.dtype}")
        is_bytes = images.dtype == np.uint8
        if not options.value_range and not is_bytes and np.max(images, initial=0) > _LARGEST:
            raise UserError(f"images of {images.dtype} must be in [0, 1], got {images.max():g}")
        x = units.to_unit(images, () if is_bytes else options.value_range or (0.0, 1.0))
        return center(jnp.asarray(x), options.centered)

    def restore(self, x: jax.Array) -> jax.Array:
        """Returns images in [0, 1], or in the units of floating-point data; undoes `prepare`."""
        low, high = self.config.data.value_range or (0.0, 1.0)
        return low + (high - low) * uncenter(x, self.config.data.centered)

    def to_uint8(self, images: Any) -> np.ndarray:
        """Rounds and clips the images that `sample` and `restore` return to uint8."""
        return units.to_picture(images, self.config.data.value_range or (0.0, 1.0))


def _for_images(make: Callable, shape: tuple[int, int, int]) -> Callable:
    """Returns a score function, as `make(**given)` makes it, that takes only batches of the run's images."""
    score_fn = make()

    def score(x: jax.Array, sigma_or_time: jax.Array, **given: jax.Array) -> jax.Array:
        if np.shape(x)[1:] != shape:
            allowed = ", ".join(map(str, shape))
            raise ValueError(
                f"x must be images [B, {allowed}], like the run's, got {[*np.shape(x)]}"
            )
        return (make(**given) if given else score_fn)(x, sigma_or_time)

    return score


@devices.jax_defaults()
def load_run(workdir: str, step: int | None = None) -> Run:
    """Opens a run; see `ncsn_jax.load_run`."""
    config = get_config(workdir)
    schema.check(config, num_devices=1)
    step, state = workdirs.load(config, workdir, step)
    params = jax.device_put(training.sampling_params(state))

    def make(kind: int, **given: jax.Array) -> Callable:
        return build.make_score_fn(config, params, **given)[kind]

    score_fn, time_score_fn = (
        _for_images(functools.partial(make, kind), build.image_shape(config)) for kind in (0, 1)
    )
    return Run(
        config,
        step,
        build.make_model(config, dtype=config.sampling.dtype),
        params,
        build.make_sigmas(config),
        build.make_sde(config),
        score_fn,
        time_score_fn,
    )
