"""Keys and noise: one convention for the losses and the samplers.

Wherever this library takes a `key`, it may be one typed key, or an array of them `[B]`, one for each
example. With one per example, the noise of example i is a function of its own key alone: it does not
depend on the batch that the example is in, nor on the number of devices.
"""

import enum
import math

import jax
import jax.numpy as jnp


class Stream(enum.IntEnum):
    """What the random numbers of a run are for. Each use of the run's seed has a number of its own."""

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


def stream_key(seed: jax.Array | int, stream: int) -> jax.Array:
    """Returns the key of one stream of a run's random numbers."""
    return jax.random.fold_in(jax.random.key(seed), stream)


def example_keys(key: jax.Array, indices: jax.Array, num: int | None = None) -> jax.Array:
    """Returns one key for each example, a function of `key` and its index alone.

    Args:
      key: one key.
      indices: integers `[B]`.
      num: how many keys each example gets.

    Returns:
      Keys `[B]`, or `[num, B]`, one array `[B]` for each use.
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
    return keys if num is None else split_each(keys, num)


def split_each(keys: jax.Array, num: int) -> jax.Array:
    """Splits each of the keys `[B]`: `[num, B]`."""
    return jnp.moveaxis(jax.vmap(lambda k: jax.random.split(k, num))(keys), 1, 0)


def fold_in(key: jax.Array, data) -> jax.Array:
    """`jax.random.fold_in` for one key or for each of several."""
    if key.ndim == 0:
        return jax.random.fold_in(key, data)
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(key, data)


def _draw(sampler, key: jax.Array, x: jax.Array) -> jax.Array:
    """Draws an array like `x`. The draw is flat, which gives the same bits and compiles faster."""
    if key.ndim == 0:
        return sampler(key, (x.size,), x.dtype).reshape(x.shape)
    size = math.prod(x.shape[1:])
    return jax.vmap(lambda k: sampler(k, (size,), x.dtype))(key).reshape(x.shape)


def normal_like(key: jax.Array, x: jax.Array) -> jax.Array:
    """Standard normal noise like `x`; `key` is one key or `[B]`."""
    return _draw(jax.random.normal, key, x)


def uniform_like(key: jax.Array, x: jax.Array) -> jax.Array:
    """Noise like `x`, uniform in [0, 1); `key` is one key or `[B]`."""
    return _draw(jax.random.uniform, key, x)


def bits_like(key: jax.Array, x: jax.Array) -> jax.Array:
    """Numbers like `x`, uint16, uniform in 0 to 65535; `key` is one key or `[B]`."""
    return _draw(lambda k, shape, _: jax.random.bits(k, shape, jnp.uint16), key, x)


def rademacher_like(key: jax.Array, x: jax.Array) -> jax.Array:
    """Noise like `x`, -1 or 1 with equal probability; `key` is one key or `[B]`."""
    return _draw(jax.random.rademacher, key, x)


def expand(sigma: jax.Array, x: jax.Array) -> jax.Array:
    """Reshapes `sigma: [B]` so that it broadcasts against `x: [B, ...]`."""
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - 1))
