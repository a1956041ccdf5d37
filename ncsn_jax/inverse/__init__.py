"""Inverse problems: samples of the data given a measurement y = A x + n, by the score of the data alone.

`posterior_score` turns the score of the data and a measurement into the score of the posterior, which every
sampler takes. The other functions make the operator A.
"""

from ncsn_jax.inverse._operators import (
    LinearOperator,
    NonlinearOperator,
    adjoint,
    blur,
    compose,
    downsample,
    fourier_mask,
    grey,
    mask,
    matrix,
    measure,
    nonlinear,
    pseudo_inverse,
)
from ncsn_jax.inverse._posterior import METHODS, posterior_score

__all__ = [
    "METHODS",
    "LinearOperator",
    "NonlinearOperator",
    "adjoint",
    "blur",
    "compose",
    "downsample",
    "fourier_mask",
    "grey",
    "mask",
    "matrix",
    "measure",
    "nonlinear",
    "posterior_score",
    "pseudo_inverse",
]


def __dir__() -> list[str]:
    return __all__
