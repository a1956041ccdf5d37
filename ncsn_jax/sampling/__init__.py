"""Samplers that need only a score function. Importing them needs only jax.

`probability_flow` imports diffrax when it is called.
"""

from ncsn_jax.sampling._classifier_free import classifier_free
from ncsn_jax.sampling._controllable import guided, known_grey, known_pixels
from ncsn_jax.sampling._dpm_solver import DPMSolverInfo, dpm_solver
from ncsn_jax.sampling._heun import euler, heun
from ncsn_jax.sampling._inpainting import inpaint
from ncsn_jax.sampling._langevin import (
    LangevinInfo,
    annealed_langevin,
    annealed_steps,
    initial_samples,
    langevin,
    langevin_update,
)
from ncsn_jax.sampling._predictor_corrector import (
    CORRECTORS,
    PREDICTORS,
    SamplerInfo,
    check_choice,
    predictor_corrector,
)
from ncsn_jax.sampling._probability_flow import probability_flow

__all__ = [
    "CORRECTORS",
    "PREDICTORS",
    "DPMSolverInfo",
    "LangevinInfo",
    "SamplerInfo",
    "annealed_langevin",
    "annealed_steps",
    "check_choice",
    "classifier_free",
    "dpm_solver",
    "euler",
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


def __dir__() -> list[str]:
    return __all__
