r"""Averages of the parameters whose width is chosen after training (Karras et al., 2024, "Analyzing and
Improving the Training Dynamics of Diffusion Models", section 3 and appendix C).

A power-function average of the parameters theta(1), ..., theta(t) weights theta(tau) by about tau^gamma:

    theta_hat(t) = (1 - beta_gamma(t)) theta(t) + beta_gamma(t) theta_hat(t - 1),
    beta_gamma(t) = (1 - 1/t)^(gamma + 1)

Its width sigma_rel is the standard deviation of these weights over tau, relative to t. So a width stands for
the same share of a run of any length. Training keeps averages of two widths and snapshots of both; a weighted
sum of the snapshots then comes close to the average of another width.

Example:
  >>> gammas = [gamma_of_width(width) for width in (0.05, 0.1)]
  >>> steps = np.repeat(np.arange(100, 2001, 100), 2)  # a snapshot of both every 100 steps
  >>> shares = weights(steps, gammas * 20, 2000, gamma_of_width(0.07))
  >>> shares.shape, round(float(shares.sum()), 2)
  ((40,), 1.0)
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax import _checks as check

__all__ = [
    "MAX_WIDTH",
    "combine",
    "gamma_of_width",
    "mismatch",
    "update",
    "weights",
    "width_of_gamma",
]

# The width of the plain mean, gamma = 0.
MAX_WIDTH = 12**-0.5


def width_of_gamma(gamma: float) -> float:
    """Returns sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2), for gamma >= 0.

    The equation is in section 3.1. The paper's gammas 6.94 and 16.97 have the widths 0.10 and 0.05.
    """
    gamma = check.as_float("gamma", gamma, traced=False)
    if not 0 <= gamma < np.inf:
        raise ValueError(f"gamma must be a finite number >= 0, got {gamma}")
    return (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)


def gamma_of_width(width: float) -> float:
    """Returns the gamma >= 0 of a width sigma_rel in (0, 1/sqrt(12)], to float64 rounding.

    It is the largest root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2, algorithm 2.
    """
    width = check.positive("width", width, most=MAX_WIDTH)
    inverse = width**-2.0
    return max(float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()), 0.0)


def update(average: Any, params: Any, step: jax.Array | int, gamma: float) -> Any:
    """Returns the average theta_hat(t) of a tree of parameters; see the module.

    Args:
      average: theta_hat(t - 1), a tree of arrays; at the first step any finite values.
      params: theta(t), like it.
      step: t, an integer scalar >= 1.
      gamma: >= 0.
    """
    # 1 - beta; the plain difference would lose all digits in float32 for large t.
    new = -jnp.expm1((gamma + 1) * jnp.log1p(-1 / jnp.asarray(step, jnp.float32)))
    return jax.tree.map(lambda a, p: (1 - new) * a + new * p, average, params)


def weights(
    snapshot_steps: Sequence[int], snapshot_gammas: Sequence[float], step: int, gamma: float
) -> np.ndarray:
    """Returns the weights of snapshots whose sum comes closest to an average.

    The profile of an average at step T is p(tau) = (gamma + 1) tau^gamma / T^(gamma + 1) on [0, T]. The
    weights minimise the integral of the squared difference between the wanted profile and the weighted sum of
    the snapshots' (appendix C, algorithm 3).

    Differs from the paper: the weights add up to 1. So the error depends on the parameters' changes alone,
    not on their values, which are often much larger.

    Args:
      snapshot_steps: `[N]`, T of each snapshot, at least 1.
      snapshot_gammas: `[N]`, gamma of each snapshot, at least 0.
      step: T of the wanted average, at least the largest of `snapshot_steps`.
      gamma: its gamma, at least 0.

    Returns:
      float64 `[N]`, which add up to 1. `mismatch` tells how well the profiles fit.
    """
    of, wanted = _profiles(snapshot_steps, snapshot_gammas), _profiles([step], [gamma])
    gram, products = _dot(of[:, None], of[None]), _dot(of, wanted)
    # Snapshots that are close to one another make the system nearly singular.
    right = np.stack([products, np.ones_like(products)], axis=-1)
    free, shift = np.linalg.lstsq(gram, right, rcond=None)[0].T
    return free + shift * (1 - free.sum()) / shift.sum()


def mismatch(
    shares: np.ndarray,
    snapshot_steps: Sequence[int],
    snapshot_gammas: Sequence[float],
    step: int,
    gamma: float,
) -> float:
    """Returns how far the weighted sum of the profiles is from the wanted one, relative to it (L2 norm).

    Args:
      shares: as `weights` returned them for the other arguments.
      snapshot_steps, snapshot_gammas, step, gamma: as for `weights`.
    """
    of, wanted = _profiles(snapshot_steps, snapshot_gammas), _profiles([step], [gamma])
    square = shares @ _dot(of[:, None], of[None]) @ shares - 2 * shares @ _dot(of, wanted)
    return float(np.sqrt(max(square / _dot(wanted, wanted)[0] + 1, 0.0)))


def combine(snapshots: Iterable[Any], shares: Iterable[float]) -> Any:
    """Returns the weighted sum of trees of arrays: added up in float64, returned as float32.

    Args:
      snapshots: the trees, alike; a generator keeps only one in memory.
      shares: as many weights.
    """
    total = None
    for tree, share in zip(snapshots, shares, strict=True):
        part = jax.tree.map(lambda a, share=share: share * np.asarray(a, np.float64), tree)
        total = part if total is None else jax.tree.map(np.add, total, part)
    return jax.tree.map(np.float32, total)


def _profiles(steps: Sequence[int], gammas: Sequence[float]) -> np.ndarray:
    """Returns `[N, 2]`, float64: T and gamma of each profile."""
    found = np.stack([np.asarray(steps, np.float64), np.asarray(gammas, np.float64)], axis=-1)
    if found.ndim != 2 or not (np.isfinite(found).all() and (found >= (1, 0)).all()):
        raise ValueError(
            f"steps must be [N] and >= 1, gammas [N] and >= 0, all finite, got {steps} and {gammas}"
        )
    return found


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the integrals of the products of profiles `[..., 2]`.

    For T_a <= T_b it is (gamma_a + 1) (gamma_b + 1) (T_a / T_b)^gamma_b / ((gamma_a + gamma_b + 1) T_b).
    """
    (t_a, gamma_a), (t_b, gamma_b) = np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0)
    ratio = np.minimum(t_a, t_b) / np.maximum(t_a, t_b)
    power = ratio ** np.where(t_a < t_b, gamma_b, gamma_a)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * power / np.maximum(t_a, t_b)


def __dir__() -> list[str]:
    return __all__
