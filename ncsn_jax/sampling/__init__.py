"""Samplers that need nothing but a score function; importing them needs nothing but jax.

`probability_flow` imports diffrax when it is called.
"""

from ncsn_jax.sampling.controllable import guided, known_grey, known_pixels
from ncsn_jax.sampling.karras import heun
from ncsn_jax.sampling.langevin import (
    LangevinInfo,
    annealed_langevin,
    annealed_steps,
    initial_samples,
    inpaint,
    langevin,
    langevin_update,
)
from ncsn_jax.sampling.ode import probability_flow
from ncsn_jax.sampling.reverse_sde import (
    CORRECTORS,
    SamplerInfo,
    check_choice,
    predictor_corrector,
)

__all__ = [
    "CORRECTORS",
    "LangevinInfo",
    "SamplerInfo",
    "annealed_langevin",
    "annealed_steps",
    "check_choice",
    "guided",
    "heun",
    "initial_samples",
    "inpaint",
    "known_grey",
    "known_pixels",
    "langevin",
    "langevin_update",
    "predictor_corrector",
    "probability_flow",
]
