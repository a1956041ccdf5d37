"""Samplers that need nothing but a score function; importing them needs nothing but jax."""

from ncsn_jax.sampling.langevin import (
    LangevinInfo,
    annealed_langevin,
    annealed_steps,
    initial_samples,
    inpaint,
    langevin,
    langevin_update,
)

__all__ = [
    "LangevinInfo",
    "annealed_langevin",
    "annealed_steps",
    "initial_samples",
    "inpaint",
    "langevin",
    "langevin_update",
]
