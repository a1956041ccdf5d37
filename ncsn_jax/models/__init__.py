"""Score networks, and the adapter that turns one into a score function of sigma.

The networks are Flax linen modules that are conditioned on the *index* of the noise level:
`model.init(key, x, level)` returns the parameters, `model.apply(params, x, level)` the score. The
rest of the library speaks of sigma alone; `score_fn` is the one place where the two meet. `NCSNpp` is
conditioned on sigma or a time instead, and is no network for `score_fn`; neither is `NoisyClassifier`,
whose output are logits.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncsn_jax.models.classifier import NoisyClassifier
from ncsn_jax.models.ncsn import NCSN
from ncsn_jax.models.ncsnpp import NCSNpp
from ncsn_jax.models.ncsnv2 import NCSNv2, NCSNv2Deeper, NCSNv2Deepest, RefineNet
from ncsn_jax.models.simplified import SimplifiedNCSN
from ncsn_jax.types import ScoreFn

__all__ = [
    "NCSN",
    "NCSNpp",
    "NCSNv2",
    "NCSNv2Deeper",
    "NCSNv2Deepest",
    "NoisyClassifier",
    "RefineNet",
    "SimplifiedNCSN",
    "levels_of",
    "score_fn",
]


def levels_of(sigma: jax.Array, sigmas: jax.Array) -> jax.Array:
    """Returns the index of the level nearest to each sigma, on a logarithmic scale.

    Args:
      sigma: `[B]`, > 0.
      sigmas: `[L]`, the ladder.

    Returns:
      `int[B]` in [0, L).
    """
    distance = jnp.abs(jnp.log(sigma)[:, None] - jnp.log(sigmas)[None, :])
    return jnp.argmin(distance, axis=1)


def score_fn(model: nn.Module, params, sigmas: jax.Array) -> ScoreFn:
    """Returns `score_fn(x, sigma)` for a network that is conditioned on the level's index.

    Args:
      model: a network of this package, or any module with `apply(params, x, level)`.
      params: its parameters.
      sigmas: `[L]`, the ladder that it was trained on.

    Returns:
      A score function; a sigma between two levels is taken for the nearer one.
    """

    def score(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return model.apply(params, x, levels_of(sigma, sigmas))

    return score
