"""Samplers that need nothing but a score function; importing them needs nothing but jax."""

from ncsn_jax.sampling.langevin import (
    LangevinInfo,
    annealed_langevin,
    initial_samples,
    langevin,
)

__all__ = ["LangevinInfo", "annealed_langevin", "initial_samples", "langevin"]
