"""Embeddings of the noise level as sines and cosines, `[B]` to `[B, width]`, in at least float32.

`FourierEmbedding` takes a sigma and keeps random frequencies as a parameter. `positional_embedding` takes a
time and uses a fixed geometric sequence of frequencies.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_LONGEST_PERIOD = 10_000.0


class FourierEmbedding(nn.Module):
    """Random Fourier features of ln sigma (Tancik et al., 2020): sin and cos of 2 pi w_i ln sigma.

    The frequencies w are a parameter, so that every checkpoint contains them, but have no gradient.

    Args:
      features: the number of frequencies, half the width.
      scale: their standard deviation at initialisation.
      logarithm: whether the call takes sigma; otherwise it takes what stands for ln sigma.

    Args of the call:
      sigma: `[B]`, > 0.
    """

    features: int
    scale: float
    logarithm: bool = True

    @nn.compact
    def __call__(self, sigma: jax.Array) -> jax.Array:
        init = nn.initializers.normal(self.scale)
        frequencies = jax.lax.stop_gradient(
            self.param("frequencies", init, (self.features,), jnp.float32)
        )
        # The original multiplies in this order. Phases reach thousands, so another rounding would be visible.
        logarithm = jnp.log(sigma) if self.logarithm else sigma
        phases = logarithm[:, None] * frequencies[None, :] * 2.0 * math.pi
        return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=1)


def positional_embedding(time: jax.Array, width: int) -> jax.Array:
    """Returns sines and cosines with periods from 2 pi to 10000 times that (Vaswani et al., 2017).

    Args:
      time: `[B]`, any real numbers.
      width: the result's width, >= 4; an odd width ends in a column of zeros.
    """
    half = width // 2
    # The original rounds the exponents to float32 and their exponentials once. At a time of 999, another
    # rounding would be visible.
    step = np.float32(-math.log(_LONGEST_PERIOD) / (half - 1))
    exponents = np.arange(half, dtype=np.float32) * step
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    phases = time[:, None] * jnp.asarray(frequencies)[None, :]
    embedding = jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=1)
    return jnp.pad(embedding, ((0, 0), (0, width % 2)))
