"""Embeddings of the noise level as vectors of sines and cosines.

Both map `[B]` to `[B, width]` in float32 at least; they differ in what the number is, a sigma or a time,
and in the frequencies: drawn at random and kept among the parameters, or a fixed geometric sequence.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_LONGEST_PERIOD = 10_000.0


class FourierEmbedding(nn.Module):
    """Random Fourier features of ln sigma (Tancik et al., 2020): sin and cos of 2 pi w_i ln sigma.

    The frequencies w are a parameter, so that they are in every checkpoint, but have no gradient.

    Args:
      features: the number of frequencies, half the width.
      scale: their standard deviation at the start.

    Args of the call:
      sigma: `[B]`, > 0.
    """

    features: int
    scale: float

    @nn.compact
    def __call__(self, sigma: jax.Array) -> jax.Array:
        init = nn.initializers.normal(self.scale)
        frequencies = jax.lax.stop_gradient(
            self.param("frequencies", init, (self.features,), jnp.float32)
        )
        # In this order: the phases are some thousands, whose rounding is what is left of exactness.
        phases = jnp.log(sigma)[:, None] * frequencies[None, :] * 2.0 * math.pi
        return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=1)


def positional_embedding(time: jax.Array, width: int) -> jax.Array:
    """Sines and cosines of the time with periods from 2 pi to 10000 times that (Vaswani et al., 2017).

    Args:
      time: `[B]`; of any sign, and not necessarily whole.
      width: of the result, >= 4; an odd one has a last column of zeros.
    """
    half = width // 2
    # Exponents rounded to float32 and their exponentials rounded once are the original's frequencies: at
    # a time of 999 another rounding would be seen.
    step = np.float32(-math.log(_LONGEST_PERIOD) / (half - 1))
    exponents = np.arange(half, dtype=np.float32) * step
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    phases = time[:, None] * jnp.asarray(frequencies)[None, :]
    embedding = jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=1)
    return jnp.pad(embedding, ((0, 0), (0, width % 2)))
