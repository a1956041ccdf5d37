"""Runs a sampler on all devices, a part of its steps at a time.

The noise of sample i is a function of (seed, i) alone. Between two parts the run shows progress, detects a
chain that diverges, and records frames. One compiled program serves all parts of all batches of one size.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax._random import Stream, example_keys
from ncsn_jax.app import devices, distributed, samplers, units
from ncsn_jax.errors import UserError
from ncsn_jax.images import uncenter
from ncsn_jax.sampling._loop import frame_stops

# The steps run in this many parts, if there are as many.
_PARTS = 25

# A slightly noisy image has no pixel further from 1/2 than this.
FAR = 1.5

_log = logging.getLogger(__name__)


class Samples(NamedTuple):
    """The samples of n chains.

    Attributes:
      images: `[n, H, W, C]`, uint8 or float32, in the units of the data.
      frames: `[num_frames, n, H, W, C]` likewise; the last frame is the images.
      evaluations: each sample's network evaluations (NFE), int `[n]`.
    """

    images: np.ndarray
    frames: np.ndarray
    evaluations: np.ndarray


def chain_functions(sampler: samplers.Sampler, task: Stream) -> tuple[Callable, Callable]:
    """Returns `start(key_data, indices) -> state` and `advance` for `devices.map_chains`."""

    def keys(key_data, indices):
        """Returns every sample's key for its start and its key for its steps, `[B]` each."""
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data), task)
        return example_keys(key, indices, 2)

    def start(key_data, indices):
        return sampler.start(keys(key_data, indices)[0])

    def advance(params, key_data, indices, state, start, stop, *known):
        key, steps = keys(key_data, indices)[1], (start, stop)
        if (classes := sampler.classes) is not None:
            known = (*known, jnp.asarray(classes)[indices % np.uint32(len(classes))])
        state, evaluations = sampler.advance(key, params, state, steps, *known)
        return state, jnp.isfinite(_x(state)).all(), evaluations

    return start, advance


def _x(state: jax.Array | tuple) -> jax.Array:
    """Returns x of a sampler's state."""
    return state[0] if isinstance(state, tuple) else state


class Chains:
    """The chains of the sampler that a configuration describes.

    Args:
      config: the configuration.
      task: one of `samplers.NAMES`.
      classifier: the classifier, for `Stream.CLASSES`.

    Attributes:
      num_steps: the steps of a chain.
      evaluations: a sample's network evaluations (NFE), or None if samples differ in it.
      classes: the classes that samples have in turn, or None; see `samplers.Sampler`.
      value_range: the units of the images; see `ncsn_jax.app.units`. Those of restoration are not rounded,
        because their residuals may be less than a grey level.
    """

    def __init__(self, config, task: Stream = Stream.SAMPLES, classifier=None):
        self._config = config
        self._sampler = sampler = samplers.make(config, task, classifier)
        self.num_steps, self.evaluations = sampler.num_steps, sampler.evaluations
        self.classes = sampler.classes
        self.value_range = config.data.value_range
        if task == Stream.RESTORATION:
            self.value_range = units.unrounded(self.value_range)
        self._guide = None if sampler.guide is None else devices.replicate(sampler.guide)

        start, advance = chain_functions(sampler, task)
        self._start = devices.map_chain_start(start)
        self._advance = devices.map_chains(
            advance, lambda: distributed.meet("to compile the sampler")
        )

    def run(
        self,
        params,
        indices: list[int],
        size: int,
        *known: np.ndarray,
        key: jax.Array | None = None,
        num_frames: int = 0,
        advanced: Callable[[int], None] = lambda steps: None,
    ) -> Samples:
        """Makes the samples of the given indices.

        Args:
          params: the sampler's, replicated.
          indices: the samples' indices, at most `size`.
          size: the number of chains in the compiled program, rounded up to the devices.
          *known: what is known of each sample, `[len(indices), ...]` each; see `samplers.Sampler`.
          key: the key of all samples; by default that of `config.seed`.
          num_frames: how many frames to return, evenly spread over the steps, at most one per step.
          advanced: called with the number of steps just run.

        Raises:
          UserError: if a chain diverges.
        """
        params = params if self._guide is None else (params, self._guide)
        count = len(indices)
        places = shard(np.asarray(indices, np.uint32), size)
        known = tuple(shard(array, size) for array in known)
        key = jax.random.key(self._config.seed) if key is None else key
        key_data = np.asarray(jax.random.key_data(key))
        state, frames, at = self._start(key_data, places), [], 0
        parts, shown = (
            set(frame_stops(self.num_steps, min(many, self.num_steps)).tolist())
            for many in (_PARTS, num_frames)
        )
        for stop in sorted(parts | shown):
            state, finite, evaluations = self._advance(
                params, key_data, places, state, np.int32(at), np.int32(stop), *known
            )
            x = _x(state)
            # A sampler of one step does all its work in one part.
            with distributed.limit("to sample", factor=_PARTS if self.num_steps == 1 else 1):
                all_finite = np.all(finite)
            if not all_finite:
                good = gather(np.isfinite(np.asarray(x)).all(axis=(2, 3, 4)), count)
                raise UserError(
                    f"sample {indices[np.argmin(good)]} is not finite after {stop} of {self.num_steps} "
                    f"steps: {self._sampler.cause}"
                )
            if stop in shown:
                frames.append(self._images(x, count))
            advanced(stop - at)
            at = stop
        final = uncenter(np.asarray(x), self._config.data.centered)
        far = float(np.mean(np.abs(final - 0.5) > FAR))
        if far > 0.5:
            _log.warning(
                "%.0f %% of the pixels lie far outside [0, 1]: %s, or the network is barely trained",
                100 * far,
                self._sampler.cause,
            )
        if self.evaluations is None:
            evaluations = gather(np.asarray(evaluations), count)
        else:
            evaluations = np.full(count, self.evaluations)
        frames = np.stack(frames) if frames else np.empty((0,))
        return Samples(self._images(x, count), frames, evaluations)

    def _images(self, x: jax.Array, count: int) -> np.ndarray:
        """Returns the first examples of all processes as images `[count, H, W, C]`."""
        x = uncenter(np.asarray(x), self._config.data.centered)
        return gather(units.from_unit(x, self.value_range), count)


def shard(array: np.ndarray, size: int) -> np.ndarray:
    """Repeats examples `[n, ...]` to at least `size`, until they fill all devices evenly.

    Returns:
      This process's shard, `[local devices, per device, ...]`.
    """
    per_device = -(-size // jax.device_count())
    rows = np.resize(np.arange(len(array)), (jax.device_count(), per_device))
    local = jax.local_device_count()
    first = jax.process_index() * local
    return np.asarray(array)[rows[first : first + local]]


def gather(mine: np.ndarray, count: int) -> np.ndarray:
    """Gathers the first `count` examples of all processes in all of them; undoes `shard`."""
    return distributed.gather(mine).reshape(-1, *mine.shape[2:])[:count]
