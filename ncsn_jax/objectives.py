"""Training objectives: `ladder` for NCSN's levels, `diffusion` for an SDE's times, `edm` for denoisers.

An `Objective` combines a network, a distribution of noise and a loss. The training step need not know
whether noise is a sigma or a time, how the network's output becomes a score, or what the network draws.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax import losses, models
from ncsn_jax._random import expand, normal_like, uniform_like
from ncsn_jax.preconditioning import Noise, Preconditioning
from ncsn_jax.sde import SDE
from ncsn_jax.types import ScoreFn

__all__ = [
    "LOSSES",
    "LossFn",
    "Objective",
    "diffusion",
    "edm",
    "ladder",
]

LossFn = Callable[[jax.Array, Any, jax.Array, jax.Array], jax.Array]

# The loss of an SDE is reported in bins of time, that of a denoiser in bins of equally many sigmas.
_BINS = 10


def _score_matching(key: jax.Array, score_fn: ScoreFn, x: jax.Array, sigma: jax.Array) -> jax.Array:
    """Applies exact score matching to x + sigma z, for clean x."""
    return losses.score_matching(score_fn, x + expand(sigma, x) * normal_like(key, x), sigma)


LOSSES: dict[str, LossFn] = {
    "dsm": losses.denoising_score_matching,
    "ssm": losses.sliced_score_matching,
    "sm": _score_matching,
}


class Objective(NamedTuple):
    """A loss of a network's parameters, over examples with random noise.

    Attributes:
      sigmas: decreasing numpy array, one sigma for each bin of the reported losses.
      draw: `draw(keys) -> noise`, the sigma or time of each example, `[B]`.
      bin: `bin(noise) -> int[B]`, the bin of each example.
      score_fn: `score_fn(params, keys, **given) -> score function`. The network's own draws, such as dropout,
        use `keys` `[B]`; `given` is what else it is given of each example, `[B, ...]` each.
      loss: `loss(keys, score_fn, x, noise) -> [B]`. A score of zero gives D / 2 at any noise.
      weight: `weight(noise) -> [B]`, each example's weight in the mean, or None for 1.
    """

    sigmas: np.ndarray
    draw: Callable[[jax.Array], jax.Array]
    bin: Callable[[jax.Array], jax.Array]
    score_fn: Callable[..., Callable]
    loss: LossFn
    weight: Callable[[jax.Array], jax.Array] | None


def ladder(
    model: nn.Module,
    sigmas: jax.Array,
    loss: LossFn = losses.denoising_score_matching,
    *,
    anneal_power: float = 2.0,
) -> Objective:
    """Returns the objective of NCSN (equations 5 and 6), with levels drawn uniformly from a ladder.

    Args:
      model: a network conditioned on the level's index.
      sigmas: `[L]`, the ladder.
      loss: one of `LOSSES`, `loss(key, score_fn, x, sigma) -> [B]`, with weight sigma^2.
      anneal_power: p in the levels' weight lambda(sigma) = sigma^p (2 in NCSN, section 4.2; the name is
        NCSNv2's code's). The losses by level keep sigma^2.
    """
    return Objective(
        np.asarray(sigmas),
        lambda keys: losses.sample_levels(keys, sigmas, keys.shape[0]),
        lambda sigma: models.levels_of(sigma, sigmas),
        lambda params, keys, **given: models.score_fn(model, params, sigmas, **given),
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
    """Returns the objective of an SDE (Song et al., 2021, equation 7), in continuous or discrete time.

    Args:
      model: `models.NCSNpp`.
      sde: the SDE.
      num_levels: N levels of the SDE's discrete chain (SMLD for VE, DDPM for VP); None for continuous time.
      likelihood_weighting: uses weight g(t)^2 instead of std_t^2, in continuous time. The losses by bin
        keep std_t^2.
    """
    edges = 1.0 - np.arange(_BINS) / _BINS
    dropout = getattr(model, "dropout", 0.0) > 0
    return Objective(
        np.asarray(sde.sigma(jnp.asarray(edges, jnp.float32))),
        lambda keys: losses.sample_times(keys, keys.shape[0], num_levels=num_levels),
        lambda t: jnp.clip(jnp.floor((1.0 - t) * _BINS).astype(jnp.int32), 0, _BINS - 1),
        lambda params, keys, **given: models.time_score_fn(
            model,
            params,
            sde,
            num_levels=num_levels,
            dropout_keys=keys if dropout else None,
            **given,
        ),
        lambda key, score_fn, x, t: losses.denoising_diffusion(
            key, sde, score_fn, x, t, num_levels=num_levels
        ),
        (lambda t: (sde.diffusion(t) / sde.std(t)) ** 2) if likelihood_weighting else None,
    )


def edm(model: nn.Module, preconditioning: Preconditioning, noise: Noise) -> Objective:
    """Returns EDM's objective for a denoiser D (Karras et al., 2022, equation 2 and table 1).

        1/2 E lambda(sigma) || D(y + sigma z; sigma) - y ||^2,    z ~ N(0, I)

    Of the whole, sigma^-2 is the weight of `losses.denoising_score_matching`, since D - y = sigma^2 s +
    sigma z; the objective's `weight` is the rest, sigma^2 lambda(sigma).

    Differs from the paper: the factor 1/2, as in the library's other losses.

    Args:
      model: `models.NCSNpp`, as for `models.preconditioned_score_fn`.
      preconditioning: the coefficients of D, such as `preconditioning.edm(sigma_data)`.
      noise: the distribution of sigma, and lambda, such as `preconditioning.edm_noise(sigma_data)`.

    Example:
      >>> from ncsn_jax import models, objectives, preconditioning
      >>> model = models.NCSNpp(embedding_type="positional", scale_by_sigma=False, centered=True)
      >>> objective = objectives.edm(model, preconditioning.edm(), preconditioning.edm_noise())
      >>> objective.sigmas.shape
      (10,)
    """
    edges = np.asarray(noise.sigma(1 - jnp.arange(1, _BINS) / _BINS))
    dropout = getattr(model, "dropout", 0.0) > 0

    def draw(keys):
        # 23 random bits and a half: never 0 or 1, and exact in float32.
        return noise.sigma(uniform_like(keys, jnp.zeros(keys.shape, jnp.float32)) + 2.0**-24)

    return Objective(
        np.asarray(noise.sigma(1 - (jnp.arange(_BINS) + 0.5) / _BINS)),
        draw,
        lambda sigma: jnp.sum(sigma[:, None] < edges[None, :], axis=1),
        lambda params, keys, **given: models.preconditioned_score_fn(
            model, params, preconditioning, dropout_keys=keys if dropout else None, **given
        ),
        losses.denoising_score_matching,
        lambda sigma: sigma**2 * noise.weight(sigma),
    )


def __dir__() -> list[str]:
    return __all__
