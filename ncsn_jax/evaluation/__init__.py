"""Measures of samples: FID, KID, inception score, precision and recall, as functions of features."""

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

__all__ = [
    "Inception",
    "Statistics",
    "frechet_distance",
    "inception_features",
    "inception_params",
    "inception_score",
    "kernel_distance",
    "precision_recall",
    "standard_error",
    "statistics",
]


def __dir__() -> list[str]:
    return __all__
