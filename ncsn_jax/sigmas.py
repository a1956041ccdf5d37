"""Noise ladders: the decreasing sequences of sigmas on which a score network is trained and sampled.

A ladder is a float32 array `[L]`, largest sigma first, built once on the host from plain numbers. Song &
Ermon, "Improved Techniques for Training Score-Based Generative Models" (NCSNv2, 2020), say how to choose
them. One function each implements techniques 1, 2 and 4, and `suggest` applies them to a dataset.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax import _checks as check
from ncsn_jax.errors import show
from ncsn_jax.sde import SDE

__all__ = [
    "Suggestion",
    "cosine",
    "exponential",
    "from_sde",
    "geometric",
    "karras",
    "largest_distance",
    "level_ratio",
    "step_size",
    "suggest",
]

# Distances are computed between blocks of this many points.
_BLOCK = 1024


def geometric(sigma_begin: float, sigma_end: float, num_levels: int) -> jax.Array:
    """Returns the geometric ladder from `sigma_begin` down to `sigma_end` (NCSN, section 4.1).

    The ratio of neighbours is constant, sigma_1 / sigma_2 = ... = sigma_{L-1} / sigma_L > 1. The ladder is
    computed in float64 and rounded once; both ends are exact.

    Args:
      sigma_begin: the largest sigma, > sigma_end, in units of the data (pixels in [0, 1]).
      sigma_end: the smallest sigma, > 0.
      num_levels: the number of levels L, an integer >= 2.

    Returns:
      float32 `[L]`, strictly decreasing.

    Raises:
      ValueError: if the arguments are out of range, or neighbouring levels round to the same float32.

    Example:
      >>> from ncsn_jax import sigmas
      >>> sigmas.geometric(1.0, 0.01, 3).tolist()
      [1.0, 0.10000000149011612, 0.009999999776482582]
    """
    num_levels = check.count("num_levels", num_levels, 2, check.MAX_LEVELS)
    begin, end = check.ends(sigma_begin=sigma_begin, sigma_end=sigma_end, traced=False).values()
    return _ladder(np.geomspace(begin, end, num_levels))


def karras(sigma_begin: float, sigma_end: float, num_levels: int, rho: float = 7.0) -> jax.Array:
    """Returns the ladder of Karras et al. (2022), equation 5, for `heun` and `dpm_solver`.

        sigma_i = (sigma_begin^(1/rho) + i / (L - 1) (sigma_end^(1/rho) - sigma_begin^(1/rho)))^rho

    for i = 0, ..., L - 1: uniform for rho = 1, and geometric in the limit of large rho. It is computed in
    float64 and rounded once; both ends are exact. Unlike equation 5, it leaves out the last sigma, 0, which
    the sampler adds.

    Args:
      sigma_begin, sigma_end, num_levels: as for `geometric`; the paper's ladder goes from 80 to 0.002, for
        data in [-1, 1].
      rho: in [1, 100].

    Returns:
      float32 `[L]`, strictly decreasing. Raises as `geometric` does.

    Example:
      >>> from ncsn_jax import sigmas
      >>> sigmas.karras(4.0, 1.0, 3, rho=2.0).tolist()
      [4.0, 2.25, 1.0]
    """
    num_levels = check.count("num_levels", num_levels, 2, check.MAX_LEVELS)
    begin, end = check.ends(sigma_begin=sigma_begin, sigma_end=sigma_end, traced=False).values()
    rho = check.as_float("rho", rho, traced=False)
    if not 1 <= rho <= 100:
        raise ValueError(f"rho must be in [1, 100], got {show(rho)}")
    ladder = np.linspace(begin ** (1 / rho), end ** (1 / rho), num_levels) ** rho
    ladder[[0, -1]] = begin, end
    return _ladder(ladder)


def exponential(sigma_begin: float, sigma_end: float, num_levels: int) -> jax.Array:
    """Returns a ladder of equal steps in ln sigma: `geometric`, under the name that solvers give it."""
    return geometric(sigma_begin, sigma_end, num_levels)


def cosine(sigma_begin: float, sigma_end: float, num_levels: int) -> jax.Array:
    """Returns the ladder of the cosine schedule (Nichol & Dhariwal, 2021, without its offset).

        alpha_t = cos(pi t / 2),    std_t = sin(pi t / 2),    sigma = std_t / alpha_t = tan(pi t / 2),

    at equal steps of t: its log SNR is -2 ln tan(pi t / 2). Most levels are near sigma = 1, so it suits data
    of variance about 1.

    Args:
      sigma_begin, sigma_end, num_levels: as for `geometric`.

    Returns:
      float32 `[L]`, strictly decreasing. Raises as `geometric` does.

    Example:
      >>> from ncsn_jax import sigmas
      >>> sigmas.cosine(2.0, 0.5, 3).tolist()
      [2.0, 1.0, 0.5]
    """
    num_levels = check.count("num_levels", num_levels, 2, check.MAX_LEVELS)
    begin, end = check.ends(sigma_begin=sigma_begin, sigma_end=sigma_end, traced=False).values()
    ladder = np.tan(np.linspace(math.atan(begin), math.atan(end), num_levels))
    ladder[[0, -1]] = begin, end
    return _ladder(ladder)


def from_sde(sde: SDE, num_levels: int, *, end: float = 1e-3) -> jax.Array:
    """Returns the sigmas of an SDE, std_t / alpha_t, at equal steps of t from 1 to `end`.

    Args:
      sde: the SDE; that of `VE` is geometric.
      num_levels: the number of levels L, an integer >= 2.
      end: the last time, in (0, 1).

    Returns:
      float32 `[L]`, strictly decreasing.

    Raises:
      ValueError: if an argument is out of range, or neighbouring levels round to the same float32.

    Example:
      >>> from ncsn_jax import sde, sigmas
      >>> sigmas.from_sde(sde.VE(0.01, 100.0), 3, end=0.5).round().astype(int).tolist()
      [100, 10, 1]
    """
    check.sde(sde)
    num_levels = check.count("num_levels", num_levels, 2, check.MAX_LEVELS)
    end = check.fraction("end", end)
    return _ladder(np.asarray(sde.sigma(jnp.linspace(1.0, end, num_levels))))


def _ladder(values: np.ndarray) -> jax.Array:
    ladder = values.astype(np.float32)
    if not (np.all(np.diff(ladder) < 0) and ladder[-1] > 0):
        raise ValueError(
            f"{len(values)} levels between {float(values[0])} and {float(values[-1])} "
            "are not distinct in float32"
        )
    return jnp.asarray(ladder)


class Suggestion(NamedTuple):
    """What `suggest` proposes.

    Attributes:
      sigmas: float32 `[L]`, the ladder.
      epsilon: the step size of Algorithm 1 at the last level, for the given steps per level.
      largest_distance: the largest distance between two data points, in units of the data.
      ratio: the ratio of neighbouring sigmas, > 1, after rounding to whole levels.
      variance_ratio: the variance of the samples after a level over that of its noise; ideally 1.
    """

    sigmas: jax.Array
    epsilon: float
    largest_distance: float
    ratio: float
    variance_ratio: float


def suggest(
    data: np.ndarray,
    *,
    sigma_end: float = 0.01,
    steps_per_level: int = 5,
    overlap: float = 0.5,
) -> Suggestion:
    """Proposes a ladder and a step size for a dataset, by NCSNv2's techniques 1, 2 and 4.

    sigma_1 is the largest distance between two points (`largest_distance`). The ratio of neighbours is
    `level_ratio` for the data's dimension, adjusted to a whole number of levels. epsilon follows from that
    ratio and the steps per level (`step_size`). For CIFAR-10 this gives sigma_1 = 53, L = 221 and epsilon =
    1.30e-5. The paper trained with 50, 232 and 1.24e-5: its ladders have an overlap of 0.57.

    Args:
      data: `[N, ...]`, N >= 2; an image has D = H W C dimensions, D >= 5. Below 5, technique 2 gives no
        ratio: use `step_size` and a `geometric` ladder from `largest_distance` down, with a ratio of about 2.
      sigma_end: the smallest sigma, > 0, in units of the data: 0.01 for pixels in [0, 1].
      steps_per_level: T, the affordable number of steps per level; 3 to 5 in the paper.
      overlap: of neighbouring levels, see `level_ratio`.

    Returns:
      The ladder, epsilon, and the figures they come from.

    Raises:
      ValueError: if an argument is out of range, or the largest distance is not above `sigma_end`.
    """
    data = np.asarray(data)
    if not np.issubdtype(data.dtype, np.floating):
        raise ValueError(
            f"data must be floating point, in the units of sigma_end, got {data.dtype}: "
            "divide 8-bit images by 255"
        )
    distance, sigma_end = (
        largest_distance(data),
        check.as_float("sigma_end", sigma_end, traced=False),
    )
    if not distance > sigma_end > 0:
        raise ValueError(
            f"sigma_end must be above 0 and below the largest distance in the data, {distance:g}, "
            f"got {show(sigma_end)}"
        )
    wanted = level_ratio(math.prod(data.shape[1:]), overlap)
    count = max(2, 1 + round((math.log(distance) - math.log(sigma_end)) / math.log(wanted)))
    ratio = (distance / sigma_end) ** (1 / (count - 1))
    epsilon, variance_ratio = step_size(sigma_end, ratio, steps_per_level)
    sigmas = geometric(distance, sigma_end, count)
    return Suggestion(sigmas, epsilon, distance, ratio, variance_ratio)


def largest_distance(data: np.ndarray) -> float:
    """Returns the largest Euclidean distance between two points (NCSNv2, technique 1).

    At the first level the sampler must be able to move between any two modes. Perturb the empirical
    distribution of the data by N(0, sigma_1^2 I). Near x_i, the score then weights x_j by at most about
    exp(-||x_i - x_j||^2 / (8 sigma_1^2)) (proposition 1). If sigma_1 is the largest distance, this weight
    is not small for any pair.

    The search is exact: it visits points by decreasing distance r from the mean. Two points are at most
    r_i + r_j apart, so it can skip most pairs once it knows a large distance.

    Args:
      data: `[N, ...]`, N >= 2, finite.

    Returns:
      The distance, with a relative error of about 1e-6.

    Raises:
      ValueError: if there are fewer than two points, or they are not finite real numbers.
    """
    data = np.asarray(data)
    if data.ndim < 2 or data.size == 0 or np.iscomplexobj(data):
        raise ValueError(
            f"data must be real, [N, ...] and not empty, got {data.dtype} of shape {data.shape}"
        )
    if len(data) < 2:
        raise ValueError(f"data must contain at least 2 points, got {len(data)}")
    # After centring and scaling, float32 is precise enough wherever the data lies.
    points = data.reshape(len(data), -1)
    with np.errstate(invalid="ignore", over="ignore"):  # refused below
        centre = points.mean(axis=0, dtype=np.float64)
        largest = max(float(np.abs(end - centre).max()) for end in (points.min(0), points.max(0)))
    if not math.isfinite(largest):
        raise ValueError("data must be finite")
    if largest == 0:
        return 0.0
    points = np.concatenate(
        [
            ((points[i : i + _BLOCK] - centre) / largest).astype(np.float32)
            for i in range(0, len(points), _BLOCK)
        ]
    )
    squared = np.einsum("nd,nd->n", points, points)
    order = np.argsort(-squared, kind="stable")
    squared = squared[order]
    radius = np.sqrt(squared)

    best, pair = 0.0, (0, 0)
    for first in range(0, len(points), _BLOCK):
        rows = slice(first, first + _BLOCK)
        block = points[order[rows]]
        for second in range(first, len(points), _BLOCK):
            if radius[first] + radius[second] < best:
                break  # no pair from here on is farther apart
            columns = slice(second, second + _BLOCK)
            apart = squared[rows, None] + squared[None, columns]
            apart -= 2 * (block @ points[order[columns]].T)
            i, j = np.unravel_index(np.argmax(apart), apart.shape)
            if apart[i, j] > best**2:
                best, pair = math.sqrt(apart[i, j]), (order[first + i], order[second + j])
    difference = points[pair[0]].astype(np.float64) - points[pair[1]]
    return largest * float(np.linalg.norm(difference))


def level_ratio(dimension: int, overlap: float = 0.5) -> float:
    """Returns the ratio gamma of neighbouring sigmas for D-dimensional data (NCSNv2, technique 2).

    In D dimensions the norm r of noise from N(0, sigma^2 I) is close to N(sqrt(D) sigma, sigma^2 / 2)
    (proposition 2): a thin shell. Samples at sigma_{i-1} start the chain at sigma_i, so the shells must
    overlap. The mass of the shell of sigma_i within three standard deviations of that of
    sigma_{i-1} = gamma sigma_i,

        Phi(sqrt(2 D) (gamma - 1) + 3 gamma) - Phi(sqrt(2 D) (gamma - 1) - 3 gamma) = overlap,

    should be about 1/2 for all i. So the ladder is geometric, and gamma - 1 shrinks like 1 / sqrt(D).

    Args:
      dimension: D >= 5; below, the shells are too thick and overlap more at any ratio.
      overlap: in (0, 0.99), 0.5 in the paper.

    Returns:
      gamma > 1.

    Raises:
      ValueError: if an argument is out of range.
    """
    if not 5 <= dimension < math.inf:
        raise ValueError(
            f"dimension must be finite and at least 5, got {show(dimension)}: below 5, noise of any two "
            "levels overlaps; use geometric with a ratio of about 2, and step_size for epsilon"
        )
    overlap = check.as_float("overlap", overlap, traced=False)
    if not 0 < overlap < 0.99:
        raise ValueError(f"overlap must be in (0, 0.99), got {show(overlap)}")

    def excess(gamma: float) -> float:
        middle = math.sqrt(2 * dimension) * (gamma - 1)
        return _normal_cdf(middle + 3 * gamma) - _normal_cdf(middle - 3 * gamma) - overlap

    # The overlap falls from 0.997 at gamma = 1 towards 0.
    low, high = 1.0, 2.0
    while excess(high) > 0:
        low, high = high, 2 * high
    return _bisect(excess, low, high)


def step_size(sigma_end: float, ratio: float, steps_per_level: int) -> tuple[float, float]:
    """Returns the best epsilon for a ladder and a number of steps per level (NCSNv2, technique 4).

    Suppose all data lie at one point. The score at level i is then -x / sigma_i^2 and a chain is a linear
    map. The chain starts from the previous level's noise, with variance gamma^2 sigma_i^2, and takes T steps
    of size alpha_i = epsilon sigma_i^2 / sigma_L^2. With e = epsilon / (2 sigma_L^2), its variance in units
    of sigma_i^2 becomes (proposition 3)

        (1 - e)^(2 T) (gamma^2 - v) + v,    v = 1 / (1 - e / 2),

    which should be 1. It is larger for every e: small steps forget the previous level too slowly, large
    steps discretize badly. This returns the epsilon with the smallest variance. The paper's epsilon follows
    its code, x + alpha s + sqrt(2 alpha) z, and is half of ours.

    Args:
      sigma_end: the smallest sigma, sigma_L > 0.
      ratio: gamma > 1, the ratio of neighbouring sigmas.
      steps_per_level: T >= 1.

    Returns:
      (epsilon, the variance above).

    Raises:
      ValueError: if an argument is out of range.
    """
    sigma_end, ratio = (
        check.as_float("sigma_end", sigma_end, traced=False),
        check.as_float("ratio", ratio, traced=False),
    )
    if not (
        0 < sigma_end <= check.MAX_FLOAT
        and 1 < ratio <= check.MAX_FLOAT
        and 1 <= steps_per_level <= check.MAX_COUNT
    ):
        raise ValueError(
            "sigma_end must be > 0, ratio > 1 and steps_per_level >= 1, all finite, "
            f"got {show(sigma_end)}, {show(ratio)} and {show(steps_per_level)}"
        )
    gamma2, steps = ratio**2, 2 * steps_per_level

    def variance(e: float) -> float:
        v = 1 / (1 - e / 2)
        return (1 - e) ** steps * (gamma2 - v) + v

    def slope(e: float) -> float:
        v, dv = 1 / (1 - e / 2), 0.5 / (1 - e / 2) ** 2
        decay = (1 - e) ** (steps - 1)
        return dv * (1 - (1 - e) * decay) - steps * decay * (gamma2 - v)

    # The variance first falls from gamma^2 and then rises to 2 at e = 1, so the slope changes sign once.
    e = _bisect(slope, 0.0, 1.0)
    return 2 * e * sigma_end**2, variance(e)


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _bisect(function, low: float, high: float) -> float:
    """Returns where a function changes sign between two points of opposite sign."""
    rising = function(high) > 0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if (function(middle) > 0) == rising:
            high = middle
        else:
            low = middle
    return 0.5 * (low + high)


def __dir__() -> list[str]:
    return __all__
