"""Measures of samples from the features of two sets: Frechet and kernel distance, precision and recall.

All compute in float64 on the host, because sums over tens of thousands of features lose digits in float32.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from ncsn_jax.errors import show

# How many distances are in memory at once.
_DISTANCES = 2**24


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Mean `[D]` and covariance `[D, D]` of features, which the Frechet distance compares."""

    mean: np.ndarray
    covariance: np.ndarray

    @functools.cached_property
    def root(self) -> np.ndarray:
        """The symmetric square root of the covariance, computed once."""
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def statistics(features: ArrayLike) -> Statistics:
    """Returns the statistics of features `[N, D]`, N >= 2; the covariance is unbiased."""
    features = _features("features", features)
    return Statistics(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(
    features_1: ArrayLike | Statistics, features_2: ArrayLike | Statistics
) -> float:
    """Returns the Frechet distance of two normal distributions with the features' moments.

        ||m_1 - m_2||^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))

    With the 2048 features of `Inception` this is FID (Heusel et al., 2017). It falls with the number of
    samples: published figures are of 50,000.

    Args:
      features_1, features_2: `[N, D]`, or their `Statistics`.

    Raises:
      ValueError: if a set has fewer than two features or is not finite, or if their dimensions differ.
    """
    one = features_1 if isinstance(features_1, Statistics) else statistics(features_1)
    if isinstance(features_2, Statistics):
        two, rows = features_2, None
    else:
        rows = _features("features_2", features_2)
        two = statistics(rows)
    if one.mean.shape != two.mean.shape:
        raise ValueError(
            f"features must have the same dimension, got {one.mean.size} and {two.mean.size}"
        )
    # tr (C_1 C_2)^(1/2) by symmetric matrices alone, whose eigenvalues are real.
    if rows is not None and len(rows) < two.mean.size:
        # C_2 has a low rank: C_1^(1/2) C_2 C_1^(1/2) has the eigenvalues of this smaller matrix, and zeros.
        rows = (rows - two.mean) / (len(rows) - 1) ** 0.5
        product = np.linalg.eigvalsh(rows @ one.covariance @ rows.T)
    else:
        product = np.linalg.eigvalsh(one.root @ two.covariance @ one.root)
    difference = one.mean - two.mean
    distance = (
        difference @ difference
        + np.trace(one.covariance)
        + np.trace(two.covariance)
        - 2 * np.sqrt(product.clip(0)).sum()
    )
    return max(float(distance), 0.0)


def kernel_distance(features_1: ArrayLike, features_2: ArrayLike) -> float:
    """Returns the squared maximum mean discrepancy under the kernel (x . y / D + 1)^3, unbiased.

    With the 2048 features of `Inception` this is KID (Binkowski et al., 2018). It does not depend on the
    number of samples, and may be negative.

    Args:
      features_1, features_2: `[N, D]` and `[M, D]`, of all of which it is the distance.

    Raises:
      ValueError: as for `frechet_distance`.
    """
    one, two = _pair(features_1, features_2)
    return mean_kernel(one) + mean_kernel(two) - 2 * mean_kernel(one, two)


def mean_kernel(one: np.ndarray, two: np.ndarray | None = None) -> float:
    """Returns the mean of `kernel_distance`'s kernel over pairs of two sets, or distinct pairs of one."""
    others, dimension = one if two is None else two, one.shape[1]
    total = sum(
        ((block @ others.T / dimension + 1) ** 3).sum() for block in _blocks(one, len(others))
    )
    if two is not None:
        return float(total / (len(one) * len(two)))
    total -= ((np.square(one).sum(1) / dimension + 1) ** 3).sum()
    return float(total / (len(one) * (len(one) - 1)))


def inception_score(logits: ArrayLike, splits: int = 10) -> tuple[float, float]:
    """Returns mean and standard deviation over the splits of exp E KL(p(y | x) || p(y)).

    (Salimans et al., 2016.) Published figures are of 50,000 samples in 10 splits.

    Args:
      logits: `[N, K]`: for the published score the 'logits_unbiased' of `Inception`.
      splits: from 1 to N, parts in order.

    Raises:
      ValueError: if there are fewer logits than splits, or they are not finite.
    """
    logits = _features("logits", logits, least=1)
    if not 1 <= splits <= len(logits):
        raise ValueError(
            f"splits must be from 1 to the number of logits, {len(logits)}, got {show(splits)}"
        )
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    scores = []
    bounds = np.arange(splits + 1) * len(logits) // splits
    for start, stop in itertools.pairwise(bounds):
        part = log_p[start:stop]
        largest = part.max(0)
        log_mean = largest + np.log(np.exp(part - largest).mean(0))
        divergence = (np.exp(part) * (part - log_mean)).sum(1)
        scores.append(np.exp(divergence.mean()))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(
    generated: ArrayLike, real: ArrayLike, neighbours: int = 3
) -> tuple[float, float]:
    """Returns the improved precision and recall of Kynkaanniemi et al. (2019).

    Precision is the share of generated features that lie within the distance of some real feature to its
    `neighbours`-th nearest other real one; recall exchanges the roles.

    Args:
      generated, real: `[N, D]` and `[M, D]`, each with more than `neighbours` features.
      neighbours: >= 1.

    Raises:
      ValueError: as for `frechet_distance`, or if a set has too few features.
    """
    generated, real = _pair(generated, real)
    least = min(len(generated), len(real)) - 1
    if not 1 <= neighbours <= least:
        raise ValueError(f"neighbours must be from 1 to {least}, got {show(neighbours)}")
    return _covered(generated, real, neighbours), _covered(real, generated, neighbours)


def standard_error(
    measure: Callable[[np.ndarray], float], features: ArrayLike, parts: int = 10
) -> float:
    """Returns the standard error of a measure by the jackknife: it leaves out one part at a time.

        se^2 = (P - 1) / P sum_p (m_p - mean m)^2

    Args:
      measure: maps features `[n, D]` to a number, such as their Frechet distance to others.
      features: `[N, D]`, in any order: the parts are drawn.
      parts: P, from 2 to N.

    Example:
      >>> import numpy as np
      >>> x = np.arange(20.0)[:, None]
      >>> error = standard_error(np.mean, x, parts=20)  # std / sqrt(N)
      >>> round(float(error - x.std(ddof=1) / np.sqrt(20)), 12)
      0.0
    """
    features = _features("features", features)
    if not 2 <= parts <= len(features):
        raise ValueError(f"parts must be from 2 to {len(features)}, got {show(parts)}")
    features = np.random.default_rng(0).permutation(features)
    found = [
        measure(np.delete(features, part, axis=0))
        for part in np.array_split(np.arange(len(features)), parts)
    ]
    return float(np.sqrt((parts - 1) * np.var(found)))


def _covered(queries: np.ndarray, support: np.ndarray, neighbours: int) -> float:
    """Returns the share of queries in the union of the balls around the support."""
    radii = np.concatenate(
        [
            np.partition(_squared_distances(block, support), neighbours, axis=1)[:, neighbours]
            for block in _blocks(support, len(support))
        ]
    )
    inside = [
        (_squared_distances(block, support) <= radii).any(1)
        for block in _blocks(queries, len(support))
    ]
    return float(np.concatenate(inside).mean())


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None]
    return np.maximum(squares - 2 * (a @ b.T), 0)


def _blocks(features: np.ndarray, columns: int):
    """Yields rows such that their distances to so many columns fit in memory."""
    rows = max(1, _DISTANCES // columns)
    for first in range(0, len(features), rows):
        yield features[first : first + rows]


def _pair(features_1: ArrayLike, features_2: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    one, two = _features("features_1", features_1), _features("features_2", features_2)
    if one.shape[1] != two.shape[1]:
        raise ValueError(
            f"features must have the same dimension, got {one.shape[1]} and {two.shape[1]}"
        )
    return one, two


def _features(name: str, value: ArrayLike, least: int = 2) -> np.ndarray:
    array = np.asarray(value, np.float64)
    if array.ndim != 2 or len(array) < least or not array.shape[1]:
        raise ValueError(f"{name} must be [N, D] with N >= {least}, got shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
    return array
