"""Measures of samples: FID, KID, inception score, precision and recall, as functions of features.

And of restored images: PSNR, SSIM, and the coverage of posterior samples.
"""

from ncsn_jax.evaluation._inception import Inception, inception_features, inception_params
from ncsn_jax.evaluation._measures import (
    Statistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    standard_error,
    statistics,
)
from ncsn_jax.evaluation._restoration import coverage, psnr, ssim

__all__ = [
    "Inception",
    "Statistics",
    "coverage",
    "frechet_distance",
    "inception_features",
    "inception_params",
    "inception_score",
    "kernel_distance",
    "precision_recall",
    "psnr",
    "ssim",
    "standard_error",
    "statistics",
]


def __dir__() -> list[str]:
    return __all__
