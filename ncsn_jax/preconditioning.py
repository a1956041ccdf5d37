"""Preconditioning, noise and loss weights of EDM's table 1, for networks that denoise.

See Karras et al., 2022, "Elucidating the design space of diffusion-based generative models". A network F is
trained through the denoiser D, whose four coefficients are functions of sigma (equation 7):

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma))

The score of the data with noise of standard deviation sigma follows from it (equation 3):

    s(x, sigma) = (D(x; sigma) - x) / sigma^2

A `Preconditioning` holds the coefficients: `edm`, `vp` or `ve`, the columns of the table. A `Noise` holds the
rows of training: how sigmas are drawn, and the weight lambda(sigma) of the loss ||D - y||^2. Any
preconditioning goes with any noise. The images are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ncsn_jax import _checks as check
from ncsn_jax import sde as sdes
from ncsn_jax._random import expand
from ncsn_jax.types import ScoreFn

# Indices of the times of DDPM's M = 1,000 steps go from 0 to this.
_LAST_STEP = 999.0

__all__ = [
    "Noise",
    "Preconditioning",
    "denoiser",
    "edm",
    "edm_noise",
    "score_fn",
    "ve",
    "ve_noise",
    "vp",
    "vp_noise",
]

Coefficient = Callable[[jax.Array], jax.Array]


class Preconditioning(NamedTuple):
    """The coefficients of a denoiser; each maps sigma `[B]`, > 0, to `[B]`.

    Attributes:
      c_skip: the factor of x in the denoised image.
      c_out: the factor of the network's output.
      c_in: the factor of the network's input.
      c_noise: what the network is conditioned on.
    """

    c_skip: Coefficient
    c_out: Coefficient
    c_in: Coefficient
    c_noise: Coefficient


class Noise(NamedTuple):
    """A distribution of sigma in training, and the loss weight.

    Attributes:
      sigma: the quantile function: maps u in (0, 1) to the sigma below which a share u of them lies.
      weight: lambda(sigma), `[B]` to `[B]`.
    """

    sigma: Coefficient
    weight: Coefficient


def edm(sigma_data: float = 0.5) -> Preconditioning:
    """Returns EDM's preconditioning, for which input and target of F have unit variance (appendix B.6).

        c_skip = sigma_data^2 / (sigma^2 + sigma_data^2)      c_in = 1 / sqrt(sigma^2 + sigma_data^2)
        c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)      c_noise = ln(sigma) / 4

    Args:
      sigma_data: the standard deviation of the data's elements, > 0; 0.5 for the paper's images.

    Example:
      >>> import jax.numpy as jnp
      >>> from ncsn_jax import preconditioning
      >>> c = preconditioning.edm(sigma_data=0.5)
      >>> float(c.c_skip(jnp.float32(0.5)))
      0.5
    """
    sigma_data = check.positive("sigma_data", sigma_data)

    def total(sigma):
        return sigma**2 + sigma_data**2

    return Preconditioning(
        c_skip=lambda sigma: sigma_data**2 / total(sigma),
        c_out=lambda sigma: sigma * sigma_data * jax.lax.rsqrt(total(sigma)),
        c_in=lambda sigma: jax.lax.rsqrt(total(sigma)),
        c_noise=lambda sigma: jnp.log(sigma) / 4,
    )


def vp(sde: sdes.VP | None = None) -> Preconditioning:
    """Returns the preconditioning of DDPM++ under the variance-preserving SDE.

        c_skip = 1      c_out = -sigma      c_in = 1 / sqrt(sigma^2 + 1)      c_noise = 999 t(sigma)

    Args:
      sde: the SDE whose time t(sigma) is; its default has the published betas. With `sde.SubVP` the
        coefficients are no longer those of the paper.
    """
    sde = sdes.VP() if sde is None else sde
    return Preconditioning(
        c_skip=jnp.ones_like,
        c_out=jnp.negative,
        c_in=lambda sigma: jax.lax.rsqrt(sigma**2 + 1),
        c_noise=lambda sigma: _LAST_STEP * sde.time(sigma),
    )


def ve() -> Preconditioning:
    """Returns the preconditioning of NCSN++ under the variance-exploding SDE.

    c_skip = 1      c_out = sigma      c_in = 1      c_noise = ln(sigma / 2)
    """
    return Preconditioning(
        c_skip=jnp.ones_like,
        c_out=lambda sigma: sigma,
        c_in=jnp.ones_like,
        c_noise=lambda sigma: jnp.log(sigma / 2),
    )


def edm_noise(sigma_data: float = 0.5, p_mean: float = -1.2, p_std: float = 1.2) -> Noise:
    """Returns EDM's log-normal sigmas and their weight, 1 / c_out^2 of `edm` (section 5).

        ln sigma ~ N(P_mean, P_std^2)      lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2

    Args:
      sigma_data: as for `edm`.
      p_mean, p_std: mean and standard deviation of ln sigma; P_std > 0.
    """
    sigma_data, p_std = check.positive("sigma_data", sigma_data), check.positive("p_std", p_std)
    p_mean = check.as_float("p_mean", p_mean)
    return Noise(
        sigma=lambda u: jnp.exp(p_mean + p_std * jax.scipy.special.ndtri(u)),
        weight=lambda sigma: (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2,
    )


def vp_noise(sde: sdes.VP | None = None, end: float = 1e-5) -> Noise:
    """Returns the sigmas of the variance-preserving SDE at times uniform in (end, 1); lambda = 1 / sigma^2.

    Args:
      sde: as for `vp`.
      end: the smallest time, in (0, 1).
    """
    sde, end = sdes.VP() if sde is None else sde, check.fraction("end", end)
    return Noise(lambda u: sde.sigma(end + (1 - end) * u), lambda sigma: 1 / sigma**2)


def ve_noise(sigma_min: float = 0.02, sigma_max: float = 100.0) -> Noise:
    """Returns sigmas uniform on a logarithmic scale from `sigma_min` to `sigma_max`; lambda = 1 / sigma^2."""
    bounds = check.ends(sigma_max=sigma_max, sigma_min=sigma_min)
    high, low = bounds["sigma_max"], bounds["sigma_min"]
    return Noise(lambda u: low * (high / low) ** u, lambda sigma: 1 / sigma**2)


def denoiser(preconditioning: Preconditioning, network: Callable) -> Callable:
    """Returns the denoiser D of equation 7, `denoise(x, sigma) -> x`.

    Args:
      preconditioning: `edm`, `vp` or `ve`.
      network: `network(x [B, ...], c_noise [B]) -> F`, shaped like x.
    """

    def denoise(x: jax.Array, sigma: jax.Array) -> jax.Array:
        sigma = check.sigma(x, sigma)
        wide = sigma.astype(jnp.promote_types(sigma.dtype, jnp.float32))
        c_skip, c_out, c_in, c_noise = (c(wide) for c in preconditioning)
        output = network((expand(c_in, x) * x).astype(x.dtype), c_noise)
        return expand(c_skip, x) * x + expand(c_out, x) * output

    return denoise


def score_fn(preconditioning: Preconditioning, network: Callable) -> ScoreFn:
    """Returns `score_fn(x, sigma)`, (D - x) / sigma^2 (equation 3); the arguments are those of `denoiser`."""
    denoise = denoiser(preconditioning, network)

    def score(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return (denoise(x, sigma) - x) / expand(sigma, x) ** 2

    return score


def __dir__() -> list[str]:
    return __all__
