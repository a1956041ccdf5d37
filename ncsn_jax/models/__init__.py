"""Score networks, and adapters that turn them into score functions.

The networks are Flax linen modules conditioned on the *index* of the noise level:
`model.init(key, x, level)` returns the parameters, `model.apply(params, x, level)` the score. The rest of
the library uses sigma, which only `score_fn` converts to a level. `NCSNpp` is conditioned on a label that
`time_score_fn` computes from an SDE's time, and `preconditioned_score_fn` from sigma. `NoisyClassifier`,
which returns logits, is conditioned on sigma.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncsn_jax import _checks as check
from ncsn_jax import preconditioning as precondition
from ncsn_jax._random import expand
from ncsn_jax.models.classifier import NoisyClassifier
from ncsn_jax.models.ncsn import NCSN
from ncsn_jax.models.ncsnpp import ARCHITECTURES, NCSNpp, normalized_channels
from ncsn_jax.models.ncsnv2 import NCSNv2, NCSNv2Deeper, NCSNv2Deepest, RefineNet
from ncsn_jax.models.simplified import SimplifiedNCSN
from ncsn_jax.sde import SDE, VE, TimeScoreFn
from ncsn_jax.types import ScoreFn

# Scales times for the networks of variance-preserving SDEs to the indices of DDPM's 1,000 steps.
_LABELS = 999.0
# Exceeds float32's rounding of a level's label, up to 10,000 levels.
_ROUNDING = 1e-3

__all__ = [
    "ARCHITECTURES",
    "NCSN",
    "NCSNpp",
    "NCSNv2",
    "NCSNv2Deeper",
    "NCSNv2Deepest",
    "NoisyClassifier",
    "RefineNet",
    "SimplifiedNCSN",
    "levels_of",
    "normalized_channels",
    "preconditioned_score_fn",
    "score_fn",
    "time_score_fn",
]


def levels_of(sigma: jax.Array, sigmas: jax.Array) -> jax.Array:
    """Returns the index of the level nearest to each sigma on a logarithmic scale.

    Args:
      sigma: `[B]`, > 0.
      sigmas: `[L]`, the ladder.

    Returns:
      `int[B]` in [0, L).
    """
    distance = jnp.abs(jnp.log(sigma)[:, None] - jnp.log(sigmas)[None, :])
    return jnp.argmin(distance, axis=1)


def score_fn(model: nn.Module, params, sigmas: jax.Array, **given: jax.Array) -> ScoreFn:
    """Returns `score_fn(x, sigma)` for a network conditioned on the level's index.

    Args:
      model: a network of this package, or any module with `apply(params, x, level)`.
      params: its parameters.
      sigmas: `[L]`, the ladder that it was trained on.
      **given: what else the network is given of each example, `[B, ...]` each.

    Returns:
      A score function, which uses the level nearest to sigma.
    """

    def score(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return model.apply(params, x, levels_of(check.sigma(x, sigma), sigmas), **given)

    return score


def time_score_fn(
    model: nn.Module,
    params,
    sde: SDE,
    *,
    num_levels: int | None = None,
    dropout_keys: jax.Array | None = None,
    **given: jax.Array,
) -> TimeScoreFn:
    """Returns `score_fn(x, t)` for a network with the labels of Song et al. (2021), such as `NCSNpp`.

    | | label | score |
    |---|---|---|
    | VE, continuous | sigma(t) | F |
    | VE, N levels | (1 - t) (N - 1), rounded; level 0 has the largest sigma | F |
    | VP and sub-VP, continuous | 999 t | -F / std_t |
    | VP, N levels | t (N - 1) | -F / std of the chain at the level at or below it |

    Args:
      model: a module with `apply(params, x, label)`, which for VE divides its output by sigma itself.
      params: its parameters.
      sde: the SDE that it was trained for.
      num_levels: N, if it was trained on the chain's levels only.
      dropout_keys: one key per example `[B]`, so that example i does not depend on its batch; without them
        dropout is off.
      **given: what else the network is given of each example, `[B, ...]` each.

    Raises:
      ValueError: if `num_levels` is given and the SDE has no discrete chain.
    """
    chain_stds = None if num_levels is None else sde.chain(num_levels)[1]
    output = _network(model, params, dropout_keys, given)

    def score(x: jax.Array, t: jax.Array) -> jax.Array:
        if isinstance(sde, VE):
            if num_levels is None:
                return output(x, sde.std(t))
            # A solver that adds noise may go above the largest sigma.
            return output(x, jnp.round((1.0 - jnp.clip(t, 0.0, 1.0)) * (num_levels - 1)))
        if num_levels is None:
            label, std = _LABELS * t, sde.std(t)
        else:
            label = jnp.clip(t, 0.0, 1.0) * (num_levels - 1)
            # At a level's exact time, rounding must not select the level below.
            std = chain_stds[jnp.floor(label + _ROUNDING).astype(jnp.int32)]
        return -output(x, label) / expand(std, x)

    return score


def preconditioned_score_fn(
    model: nn.Module,
    params,
    preconditioning: precondition.Preconditioning,
    *,
    dropout_keys: jax.Array | None = None,
    **given: jax.Array,
) -> ScoreFn:
    """Returns `score_fn(x, sigma)` for a network trained as a denoiser (Karras et al., 2022, equation 7).

    Args:
      model: a module with `apply(params, x, c_noise)`, which returns F: `NCSNpp` with `centered` and
        without `scale_by_sigma`.
      params: its parameters.
      preconditioning: such as `preconditioning.edm(sigma_data)`.
      dropout_keys, **given: as for `time_score_fn`.

    Returns:
      The score (D - x) / sigma^2 of equation 3.
    """
    return precondition.score_fn(preconditioning, _network(model, params, dropout_keys, given))


def _network(model: nn.Module, params, dropout_keys: jax.Array | None, given: dict) -> Callable:
    """Returns `network(x, label)`, with dropout if there is a key for each example."""

    def output(x, label):
        if dropout_keys is None:
            return model.apply(params, x, label, **given)

        def one(key, *example):
            x, label, given = jax.tree.map(lambda a: a[None], example)
            rngs = {"dropout": key}
            return model.apply(params, x, label, deterministic=False, rngs=rngs, **given)[0]

        return jax.vmap(one)(dropout_keys, x, label, given)

    return output


def __dir__() -> list[str]:
    return __all__
