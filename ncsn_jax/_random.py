"""Random keys and noise, with one convention for losses and samplers.

A `key` is one typed key, or an array `[B]` with one key per example. With one per example, the noise of
example i depends on its own key alone, not on its batch or the number of devices.
"""

import enum
import math

import jax
import jax.numpy as jnp


class Stream(enum.IntEnum):
    """The uses of a run's seed. Each has its own random stream."""

    PARAMETERS = 0
    TRAINING = 1
    SAMPLES = 2
    INPAINTING = 3
    COLORIZATION = 4
    CLASSES = 5
    LIKELIHOOD = 6
    CLASSIFIER_TRAINING = 7
    CLASSIFIER_PARAMETERS = 8
    CLASSIFIER_TEST = 9
    RESTORATION = 10
    MEASUREMENTS = 11


def stream_key(seed: jax.Array | int, stream: int) -> jax.Array:
    """Returns the key of one random stream of a run."""
    return jax.random.fold_in(jax.random.key(seed), stream)


def example_keys(key: jax.Array, indices: jax.Array, num: int | None = None) -> jax.Array:
    """Returns one key per example, which depends on `key` and the example's index alone.

    Args:
      key: one key.
      indices: integers `[B]`.
      num: the number of keys per example.

    Returns:
      Keys `[B]`, or `[num, B]` if `num` is given.
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
    return keys if num is None else split_each(keys, num)


def split_each(keys: jax.Array, num: int) -> jax.Array:
    """Splits each of the keys `[B]` and returns `[num, B]`."""
    return jnp.moveaxis(jax.vmap(lambda k: jax.random.split(k, num))(keys), 1, 0)


def fold_in(key: jax.Array, data) -> jax.Array:
    """Applies `jax.random.fold_in` to one key, or to each of several."""
    if key.ndim == 0:
        return jax.random.fold_in(key, data)
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(key, data)


def _draw(sampler, key: jax.Array, x: jax.Array) -> jax.Array:
    """Draws an array like `x`. A flat draw gives the same bits and compiles faster."""
    if key.ndim == 0:
        return sampler(key, (x.size,), x.dtype).reshape(x.shape)
    size = math.prod(x.shape[1:])
    return jax.vmap(lambda k: sampler(k, (size,), x.dtype))(key).reshape(x.shape)


def normal_like(key: jax.Array, x: jax.Array) -> jax.Array:
    """Draws standard normal noise like `x`; `key` is one key or `[B]`."""
    return _draw(jax.random.normal, key, x)


def uniform_like(key: jax.Array, x: jax.Array) -> jax.Array:
    """Draws noise like `x`, uniform in [0, 1); `key` is one key or `[B]`."""
    return _draw(jax.random.uniform, key, x)


def bits_like(key: jax.Array, x: jax.Array) -> jax.Array:
    """Draws uint16 shaped like `x`, uniform in 0 to 65535; `key` is one key or `[B]`."""
    return _draw(lambda k, shape, _: jax.random.bits(k, shape, jnp.uint16), key, x)


def rademacher_like(key: jax.Array, x: jax.Array) -> jax.Array:
    """Draws noise like `x`, -1 or 1 with equal probability; `key` is one key or `[B]`."""
    return _draw(jax.random.rademacher, key, x)


def expand(sigma: jax.Array, x: jax.Array) -> jax.Array:
    """Reshapes `sigma: [B]` so that it broadcasts against `x: [B, ...]`."""
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - 1))
