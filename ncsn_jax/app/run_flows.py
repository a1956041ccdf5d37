"""Likelihoods and latents of images under a run's probability flow, on all devices, in batches.

The random numbers of image i are a function of (seed, i) alone. The integration of an image takes as many
network evaluations as its tolerance needs, and a batch takes as long as the slowest of its images.
"""

import functools
from typing import NamedTuple

import numpy as np

from ncsn_jax import likelihood, sampling
from ncsn_jax._random import Stream, example_keys, stream_key
from ncsn_jax.app import build, devices, run_samplers
from ncsn_jax.images import center, dequantize, uncenter, width


class Found(NamedTuple):
    """Of every image `[n, ...]`: what was asked for, and the network evaluations that it took `[n]`."""

    values: np.ndarray
    evaluations: np.ndarray


class Flow:
    """The probability flow that a configuration describes.

    Args:
      config: the configuration. Tolerances and end are those of `config.likelihood` for likelihoods and of
        `config.sampling` for latents.
    """

    def __init__(self, config):
        self._seed = np.uint32(config.seed)
        self._mapped = {
            f: devices.map_examples(functools.partial(f, config))
            for f in (_bits_per_dim, _encode, _decode)
        }

    def bits_per_dim(self, params, indices: list[int], images: np.ndarray, size: int) -> Found:
        """Returns the bits per dimension of images.

        Args:
          params: the network's, replicated.
          indices: the images' places in their dataset, `size` of them at most.
          images: uint8 `[n, H, W, C]`.
          size: of the compiled program, rounded up to the devices.
        """
        return self._run(_bits_per_dim, params, np.asarray(indices), images, size)

    def encode(self, params, images: np.ndarray, size: int) -> Found:
        """Returns the latents of images in [0, 1], `[n, H, W, C]`."""
        return self._run(_encode, params, np.arange(len(images)), images, size)

    def decode(self, params, latents: np.ndarray, size: int) -> Found:
        """Returns the images, in [0, 1] but for errors, of latents `[n, H, W, C]`."""
        return self._run(_decode, params, np.arange(len(latents)), latents, size)

    def _run(self, function, params, indices, array, size) -> Found:
        count = len(indices)
        indices, array = (run_samplers.shard(a, size) for a in (indices.astype(np.uint32), array))
        found = self._mapped[function](params, self._seed, indices, array)
        return Found(*(run_samplers.gather(np.asarray(a), count) for a in found))


def _bits_per_dim(config, params, seed, indices, images):
    options, process = config.likelihood, build.make_sde(config)
    keys = example_keys(stream_key(seed, Stream.LIKELIHOOD), indices, 2)
    x = center(dequantize(keys[0], images), config.data.centered)
    nats, info = likelihood.log_prob(
        keys[1],
        process,
        build.make_score_fn(config, params)[1],
        x,
        exact=options.exact,
        num_projections=options.num_projections,
        rtol=options.rtol,
        atol=options.atol,
        end=options.end,
        return_info=True,
    )
    bits = likelihood.bits_per_dim(nats, x.shape, width=width(config.data.centered))
    return bits, info.evaluations


def _encode(config, params, seed, indices, images):
    return _flow(config, params, center(images, config.data.centered), config.sampling.end, 1.0)


def _decode(config, params, seed, indices, latents):
    z = config.sampling.temperature * latents
    x, evaluations = _flow(config, params, z, 1.0, config.sampling.end)
    return uncenter(x, config.data.centered), evaluations


def _flow(config, params, x, start: float, end: float):
    """Follows the probability flow from one time to another."""
    options = config.sampling
    x, info = sampling.probability_flow(
        build.make_sde(config),
        build.make_score_fn(config, params)[1],
        x,
        rtol=options.rtol,
        atol=options.atol,
        start=start,
        end=end,
    )
    return x, info.evaluations
