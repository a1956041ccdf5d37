"""What training minimises, whatever the network is conditioned on.

An `Objective` joins a network, the noise that examples get and a loss: `ladder` for the levels of NCSN,
`diffusion` for the times of an SDE. The training step needs to know neither whether noise is a sigma or a
time, nor how a score is made of the network's output, nor what the network itself draws.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax import losses, models
from ncsn_jax._random import expand, normal_like
from ncsn_jax.sde import SDE
from ncsn_jax.types import ScoreFn

__all__ = [
    "LOSSES",
    "LossFn",
    "Objective",
    "diffusion",
    "ladder",
]

LossFn = Callable[[jax.Array, Any, jax.Array, jax.Array], jax.Array]

# In how many bins of time the loss of an SDE is reported.
_BINS = 10


def _score_matching(key: jax.Array, score_fn: ScoreFn, x: jax.Array, sigma: jax.Array) -> jax.Array:
    """Exact score matching of the perturbed data x + sigma z, for clean x."""
    return losses.score_matching(score_fn, x + expand(sigma, x) * normal_like(key, x), sigma)


LOSSES: dict[str, LossFn] = {
    "dsm": losses.denoising_score_matching,
    "ssm": losses.sliced_score_matching,
    "sm": _score_matching,
}


class Objective(NamedTuple):
    """A loss of a network's parameters, for examples with noise drawn at random.

    Attributes:
      sigmas: decreasing numpy array, a sigma for each bin by which losses are reported.
      draw: `draw(keys) -> noise`, the sigma or the time of each example, `[B]`.
      bin: `bin(noise) -> int[B]`, the bin of each example.
      score_fn: `score_fn(params, keys) -> score function`, which draws what the network itself draws, such
        as dropout, from `keys` `[B]`.
      loss: `loss(keys, score_fn, x, noise) -> [B]`, for a score of zero D / 2 at any noise.
      weight: `weight(noise) -> [B]`, with which examples enter the mean, or None for 1.
    """

    sigmas: np.ndarray
    draw: Callable[[jax.Array], jax.Array]
    bin: Callable[[jax.Array], jax.Array]
    score_fn: Callable[[Any, jax.Array], Callable]
    loss: LossFn
    weight: Callable[[jax.Array], jax.Array] | None


def ladder(
    model: nn.Module,
    sigmas: jax.Array,
    loss: LossFn = losses.denoising_score_matching,
    *,
    anneal_power: float = 2.0,
) -> Objective:
    """The objective of NCSN (equations 5 and 6): the levels of a ladder, uniformly.

    Args:
      model: a network conditioned on the level's index.
      sigmas: `[L]`, the ladder.
      loss: one of `LOSSES`, `loss(key, score_fn, x, sigma) -> [B]`, with the weight sigma^2.
      anneal_power: p of the weight lambda(sigma) = sigma^p with which levels enter the mean (NCSN,
        section 4.2, takes 2; NCSNv2's code calls it so). The losses by level keep sigma^2.
    """
    return Objective(
        np.asarray(sigmas),
        lambda keys: losses.sample_levels(keys, sigmas, keys.shape[0]),
        lambda sigma: models.levels_of(sigma, sigmas),
        lambda params, keys: models.score_fn(model, params, sigmas),
        loss,
        None if anneal_power == 2 else lambda sigma: sigma ** (anneal_power - 2),
    )


def diffusion(
    model: nn.Module,
    sde: SDE,
    *,
    num_levels: int | None = None,
    likelihood_weighting: bool = False,
) -> Objective:
    """The objective of an SDE (Song et al., 2021, equation 7), in continuous or discrete time.

    Args:
      model: `models.NCSNpp`.
      sde: the SDE.
      num_levels: N, for the levels of the chain that the SDE is the limit of (SMLD for VE, DDPM for VP);
        None for continuous time.
      likelihood_weighting: the weight g(t)^2 in place of std_t^2, in continuous time. The losses by bin
        keep std_t^2.
    """
    edges = 1.0 - np.arange(_BINS) / _BINS
    dropout = getattr(model, "dropout", 0.0) > 0
    return Objective(
        np.asarray(sde.sigma(jnp.asarray(edges, jnp.float32))),
        lambda keys: losses.sample_times(keys, keys.shape[0], num_levels=num_levels),
        lambda t: jnp.clip(jnp.floor((1.0 - t) * _BINS).astype(jnp.int32), 0, _BINS - 1),
        lambda params, keys: models.time_score_fn(
            model, params, sde, num_levels=num_levels, dropout_keys=keys if dropout else None
        ),
        lambda key, score_fn, x, t: losses.denoising_diffusion(
            key, sde, score_fn, x, t, num_levels=num_levels
        ),
        (lambda t: (sde.diffusion(t) / sde.std(t)) ** 2) if likelihood_weighting else None,
    )


def __dir__() -> list[str]:
    return __all__
