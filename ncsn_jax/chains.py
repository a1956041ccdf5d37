"""Annealed Langevin chains of a trained network on all devices, a part of the steps at a time.

Hides how samples are spread over devices, that example i's noise is a function of (seed, i) alone, and
that the compiled program runs the chains in parts, so that progress shows, a chain that diverges stops
early, and pictures of the way are taken without keeping all of it. One compiled program serves every
part and every batch of one size.
"""

import functools
import logging
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax import config as configuration
from ncsn_jax import hosts, images, models, parallel, sampling
from ncsn_jax.errors import UserError
from ncsn_jax.sampling.langevin import frame_stops

# What the chains are for, folded into the key of the seed.
FOR_SAMPLES, FOR_INPAINTING = 2, 3

# In how many parts the steps are run, where there are as many.
_PARTS = 25

# Final pixels so far from 1/2 are no images with a little noise.
_FAR = 1.5

_log = logging.getLogger(__name__)


class Chains:
    """The chains that a configuration describes.

    Args:
      config: the configuration.
      purpose: `FOR_SAMPLES` or `FOR_INPAINTING`; with the latter `run` needs observed images.
    """

    def __init__(self, config, purpose: int = FOR_SAMPLES):
        self._config = config
        self.num_steps = config.model.num_levels * config.sampling.steps_per_level
        self.num_steps += bool(config.sampling.denoise)
        keys = functools.partial(_keys, purpose)
        self._start = parallel.map_chain_start(functools.partial(_start, config, keys))
        advance = _sample if purpose == FOR_SAMPLES else _inpaint
        self._advance = parallel.map_chains(
            functools.partial(advance, config, keys), lambda: hosts.meet("to compile the sampler")
        )

    def run(
        self,
        params,
        indices: list[int],
        size: int,
        observed: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        *,
        num_frames: int = 0,
        advanced: Callable[[int], None] = lambda steps: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Makes the samples of the given indices.

        Args:
          params: the network's parameters, replicated.
          indices: of the samples, at most `size`.
          size: the number of chains in the compiled program, which is rounded up to the devices.
          observed, mask: for inpainting, `[len(indices), H, W, C]` each: images in [0, 1] and
            whether a pixel is observed.
          num_frames: how many pictures of the way to return, evenly spread over the steps, as many as
            there are steps at most.
          advanced: called with a number of steps whenever they have been run.

        Returns:
          The samples, uint8 `[n, H, W, C]`, and the frames, uint8 `[num_frames, n, H, W, C]`, of which
          the last is the samples.

        Raises:
          UserError: if a chain diverges.
        """
        num_frames = min(num_frames, self.num_steps)
        per_device = -(-size // jax.device_count())
        spread = functools.partial(_spread, per_device=per_device)
        index = spread(np.asarray(indices, np.uint32))
        known = () if observed is None else (spread(observed), spread(mask))
        seed = np.uint32(self._config.seed)
        x = self._start(seed, index)
        frames = []
        at = 0
        for stop, is_frame in _bounds(self.num_steps, num_frames):
            x, finite = self._advance(params, seed, index, x, np.int32(at), np.int32(stop), *known)
            with hosts.limit("to sample"):
                sound = np.all(finite)
            if not sound:
                raise UserError(
                    f"the samples are not finite after {stop} of {self.num_steps} steps: "
                    f"config.sampling.epsilon={self._config.sampling.epsilon} is too large"
                )
            if is_frame:
                frames.append(_gather(x, len(indices)))
            advanced(stop - at)
            at = stop
        far = float(np.mean(np.abs(np.asarray(x) - 0.5) > _FAR))
        if far > 0.5:
            _log.warning(
                "%.0f %% of the pixels lie far outside [0, 1]: config.sampling.epsilon=%g is too large, or "
                "the network is hardly trained",
                100 * far,
                self._config.sampling.epsilon,
            )
        return _gather(x, len(indices)), np.stack(frames) if frames else np.empty((0,))


def _bounds(num_steps: int, num_frames: int) -> Iterator[tuple[int, bool]]:
    """Yields where each part ends, and whether a frame is taken there."""
    frames = set(frame_stops(num_steps, num_frames).tolist()) if num_frames else set()
    parts = set(frame_stops(num_steps, min(_PARTS, num_steps)).tolist())
    for stop in sorted(frames | parts):
        yield stop, stop in frames


def _spread(array: np.ndarray, per_device: int) -> np.ndarray:
    """Repeats examples up to all devices and returns this process's, `[local devices, per_device, ...]`."""
    rows = np.resize(np.arange(len(array)), (jax.device_count(), per_device))
    local = jax.local_device_count()
    first = jax.process_index() * local
    return np.asarray(array)[rows[first : first + local]]


def _gather(x: jax.Array, count: int) -> np.ndarray:
    """Returns the first examples of all processes, in all of them, uint8 `[count, H, W, C]`."""
    mine = images.to_uint8(np.asarray(x))
    return hosts.gather(mine).reshape(-1, *x.shape[2:])[:count]


def _keys(purpose: int, seed, indices):
    """Returns the keys of every example's start and of its steps, `[B]` each."""
    key = jax.random.fold_in(jax.random.key(seed), purpose)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(indices)
    return keys[:, 0], keys[:, 1]


def _start(config, keys, seed, indices):
    """Returns where the chains of the given indices start."""
    return sampling.initial_samples(
        keys(seed, indices)[0],
        (indices.shape[0], *configuration.image_shape(config)),
        config.sampling.init,
        scale=config.model.sigma_begin,
    )


def _options(config, params):
    """Returns (score function, ladder, keyword arguments) of the sampler."""
    ladder = configuration.make_sigmas(config)
    options = config.sampling
    return (
        models.score_fn(configuration.make_model(config, dtype=options.dtype), params, ladder),
        ladder,
        {
            "epsilon": options.epsilon,
            "steps_per_level": options.steps_per_level,
            "denoise": options.denoise,
            "clip": tuple(options.clip) or None,
        },
    )


def _sample(config, keys, params, seed, indices, x, start, stop):
    score_fn, ladder, options = _options(config, params)
    key = keys(seed, indices)[1]
    x = sampling.annealed_langevin(key, score_fn, x, ladder, steps=(start, stop), **options)
    return x, jnp.isfinite(x).all()


def _inpaint(config, keys, params, seed, indices, x, start, stop, observed, mask):
    score_fn, ladder, options = _options(config, params)
    key = keys(seed, indices)[1]
    x = sampling.inpaint(
        key,
        score_fn,
        x,
        ladder,
        observed,
        mask,
        keep_observed=config.inpainting.keep_observed,
        scheme=config.inpainting.scheme,
        steps=(start, stop),
        **options,
    )
    return x, jnp.isfinite(x).all()
