"""Computes likelihoods and latents of images by a run's probability flow, on all devices, in batches.

The random numbers of image i are a function of (seed, i) alone. Integrating an image takes as many network
evaluations (NFE) as its tolerance needs, and a batch takes as long as its slowest image.
"""

import functools
from collections.abc import Callable

import numpy as np

from ncsn_jax import likelihood, sampling
from ncsn_jax._random import Stream, example_keys, stream_key
from ncsn_jax.app import build, devices, run_samplers
from ncsn_jax.images import center, dequantize, uncenter, width


def on_devices(config, function: Callable) -> Callable:
    """Returns `function`, one of those below, for a batch on all devices.

    It is `run(params, array, size, indices) -> (values [n, ...], evaluations [n])`, where

    - `params` are the network's, replicated;
    - `array` is `[n, ...]`, with n <= `size`;
    - `size` is the compiled program's batch size, rounded up to the devices;
    - `indices` are the images' indices in their dataset. Only `bits_per_dim` depends on them;
    - `evaluations` is each image's number of network evaluations.
    """
    mapped = devices.map_examples(functools.partial(function, config))

    def run(params, array: np.ndarray, size: int, indices=None) -> list[np.ndarray]:
        indices = np.arange(len(array)) if indices is None else np.asarray(indices)
        arrays = (run_samplers.shard(a, size) for a in (indices.astype(np.uint32), array))
        found = mapped(params, np.uint32(config.seed), *arrays)
        return [run_samplers.gather(np.asarray(a), len(array)) for a in found]

    return run


def bits_per_dim(config, params, seed, indices, images):
    """Returns bits per dimension of images `[B, H, W, C]`, as `config.likelihood` says.

    For bytes, uint8, they are those of the dequantized image. For floating-point data v, given as
    x = (v - low) / (high - low) by `units.to_unit`, they are -log2 p(v) / D, in the data's own units, with
    the density p(v) = p(x) / (high - low)^D.
    """
    options, process = config.likelihood, build.make_sde(config)
    keys = example_keys(stream_key(seed, Stream.LIKELIHOOD), indices, 2)
    levels, interval = 256, width(config.data.centered)
    if config.data.value_range:
        low, high = config.data.value_range
        levels, interval = 1, interval / (high - low)
    else:
        images = dequantize(keys[0], images)
    x = center(images, config.data.centered)
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
    bits = likelihood.bits_per_dim(nats, x.shape, levels=levels, width=interval)
    return bits, info.evaluations


def encode(config, params, seed, indices, images):
    """Returns latents of images in [0, 1], with the tolerances and the end of `config.sampling`."""
    return _flow(config, params, center(images, config.data.centered), config.sampling.end, 1.0)


def decode(config, params, seed, indices, latents):
    """Returns images of latents, in [0, 1] up to errors, with `config.sampling`'s tolerances and end."""
    z = config.sampling.temperature * latents
    x, evaluations = _flow(config, params, z, 1.0, config.sampling.end)
    return uncenter(x, config.data.centered), evaluations


def _flow(config, params, x, start: float, end: float):
    """Integrates the probability flow from one time to another."""
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
