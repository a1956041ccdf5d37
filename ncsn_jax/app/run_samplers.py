"""The chains of a trained network's samples on all devices, a part of the steps at a time.

Hides how samples are spread over devices, that example i's noise is a function of (seed, i) alone, and
that the compiled program runs the chains in parts, so that progress shows, a chain that diverges stops
early, and pictures of the way are taken without keeping all of it. One compiled program serves every
part and every batch of one size.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax._random import Stream, example_keys, stream_key
from ncsn_jax.app import devices, distributed, pictures, samplers
from ncsn_jax.errors import UserError
from ncsn_jax.images import uncenter
from ncsn_jax.sampling._langevin import frame_stops

# In how many parts the steps are run, where there are as many.
_PARTS = 25

# Final pixels so far from 1/2 are no images with a little noise.
_FAR = 1.5

_log = logging.getLogger(__name__)


class Samples(NamedTuple):
    """What a run of the chains returns.

    Attributes:
      images: uint8 `[n, H, W, C]`.
      frames: uint8 `[num_frames, n, H, W, C]`, of which the last are the images.
      evaluations: network evaluations of every sample, int `[n]`.
    """

    images: np.ndarray
    frames: np.ndarray
    evaluations: np.ndarray


class Chains:
    """The chains that a configuration describes.

    Args:
      config: the configuration.
      task: one of `samplers.NAMES`, which says what `run` has to be given.
      of_classes: the classifier, for `Stream.CLASSES`.
    """

    def __init__(self, config, task: Stream = Stream.SAMPLES, of_classes=None):
        self._config, self._sampler = config, samplers.make(config, task, of_classes)
        self.num_steps, self.evaluations = self._sampler.num_steps, self._sampler.evaluations
        keys = functools.partial(_keys, task)
        self._start = devices.map_chain_start(functools.partial(_start, self._sampler, keys))
        self._advance = devices.map_chains(
            functools.partial(_advance, self._sampler, keys),
            lambda: distributed.meet("to compile the sampler"),
        )

    def run(
        self,
        params,
        indices: list[int],
        size: int,
        *known: np.ndarray,
        num_frames: int = 0,
        advanced: Callable[[int], None] = lambda steps: None,
    ) -> Samples:
        """Makes the samples of the given indices.

        Args:
          params: of the sampler, replicated.
          indices: of the samples, at most `size`.
          size: the number of chains in the compiled program, which is rounded up to the devices.
          *known: what is known of each sample, `[len(indices), ...]` each; see `samplers.Sampler`.
          num_frames: how many pictures of the way to return, evenly spread over the steps, as many as
            there are steps at most.
          advanced: called with a number of steps whenever they have been run.

        Raises:
          UserError: if a chain diverges.
        """
        num_frames = min(num_frames, self.num_steps)
        per_device = -(-size // jax.device_count())
        spread_ = functools.partial(spread, per_device=per_device)
        index = spread_(np.asarray(indices, np.uint32))
        known = tuple(map(spread_, known))
        seed = np.uint32(self._config.seed)
        x = self._start(seed, index)
        frames = []
        at = 0
        for stop, is_frame in _bounds(self.num_steps, num_frames):
            x, finite, spent = self._advance(
                params, seed, index, x, np.int32(at), np.int32(stop), *known
            )
            # What is run in one piece may take as long as what is run in many.
            with distributed.limit("to sample", factor=_PARTS if self.num_steps == 1 else 1):
                sound = np.all(finite)
            if not sound:
                raise UserError(
                    f"the samples are not finite after {stop} of {self.num_steps} steps: "
                    f"{self._sampler.cause}"
                )
            if is_frame:
                frames.append(self._gather(x, len(indices)))
            advanced(stop - at)
            at = stop
        final = uncenter(np.asarray(x), self._config.data.centered)
        far = float(np.mean(np.abs(final - 0.5) > _FAR))
        if far > 0.5:
            _log.warning(
                "%.0f %% of the pixels lie far outside [0, 1]: %s, or the network is hardly trained",
                100 * far,
                self._sampler.cause,
            )
        if self.evaluations is None:
            evaluations = gather(np.asarray(spent), len(indices))
        else:
            evaluations = np.full(len(indices), self.evaluations)
        frames = np.stack(frames) if frames else np.empty((0,))
        return Samples(self._gather(x, len(indices)), frames, evaluations)

    def _gather(self, x: jax.Array, count: int) -> np.ndarray:
        """Returns the first examples of all processes as images, uint8 `[count, H, W, C]`."""
        return gather(pictures.to_uint8(uncenter(np.asarray(x), self._config.data.centered)), count)


def _bounds(num_steps: int, num_frames: int) -> Iterator[tuple[int, bool]]:
    """Yields where each part ends, and whether a frame is taken there."""
    frames = set(frame_stops(num_steps, num_frames).tolist()) if num_frames else set()
    parts = set(frame_stops(num_steps, min(_PARTS, num_steps)).tolist())
    for stop in sorted(frames | parts):
        yield stop, stop in frames


def spread(array: np.ndarray, per_device: int) -> np.ndarray:
    """Repeats examples up to all devices and returns this process's, `[local devices, per_device, ...]`."""
    rows = np.resize(np.arange(len(array)), (jax.device_count(), per_device))
    local = jax.local_device_count()
    first = jax.process_index() * local
    return np.asarray(array)[rows[first : first + local]]


def gather(mine: np.ndarray, count: int) -> np.ndarray:
    """Returns the first examples of all processes, in all of them: `[count, ...]`.

    Args:
      mine: `[local devices, per device, ...]`.
      count: how many.
    """
    return distributed.gather(mine).reshape(-1, *mine.shape[2:])[:count]


def _keys(task: int, seed, indices):
    """Returns the keys of every example's start and of its steps, `[B]` each."""
    return example_keys(stream_key(seed, task), indices, 2)


def _start(sampler, keys, seed, indices):
    """Returns where the chains of the given indices start."""
    return sampler.start(keys(seed, indices)[0], indices.shape[0])


def _advance(sampler, keys, params, seed, indices, x, start, stop, *known):
    """Runs a part of the chains, and says whether all are finite and what each has spent."""
    x, spent = sampler.advance(keys(seed, indices)[1], params, x, start, stop, *known)
    return x, jnp.isfinite(x).all(), spent
