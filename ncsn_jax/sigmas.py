"""Noise ladders: the decreasing sequences of sigmas on which a score network is trained and sampled.

A ladder is a float32 array `[L]` with the largest sigma first. It is made once, from plain numbers,
on the host.
"""

import math
import operator

import jax
import jax.numpy as jnp
import numpy as np


def geometric(sigma_begin: float, sigma_end: float, num_levels: int) -> jax.Array:
    """Returns the geometric ladder from `sigma_begin` down to `sigma_end` (NCSN, section 4.1).

    The ratio of neighbours is constant, sigma_1 / sigma_2 = ... = sigma_{L-1} / sigma_L > 1. It is
    computed in float64 and rounded once; both ends are exact.

    Args:
      sigma_begin: the largest sigma, > sigma_end, in units of the data (pixels in [0, 1]).
      sigma_end: the smallest sigma, > 0.
      num_levels: the number of levels L, an integer >= 2.

    Returns:
      float32 `[L]`, strictly decreasing.

    Raises:
      ValueError: if the arguments are out of range, or so close that neighbouring levels would be
        the same float32.

    Example:
      >>> from ncsn_jax import sigmas
      >>> sigmas.geometric(1.0, 0.01, 3).tolist()
      [1.0, 0.10000000149011612, 0.009999999776482582]
    """
    try:
        count = operator.index(num_levels)
    except TypeError:
        raise ValueError(f"num_levels must be an integer >= 2, got {num_levels!r}") from None
    if count < 2:
        raise ValueError(f"num_levels must be an integer >= 2, got {num_levels}")
    if not (math.isfinite(sigma_begin) and sigma_begin > sigma_end > 0):
        raise ValueError(
            "sigma_begin > sigma_end > 0 must hold, "
            f"got sigma_begin={sigma_begin} and sigma_end={sigma_end}"
        )
    ladder = np.geomspace(sigma_begin, sigma_end, count).astype(np.float32)
    if not (np.all(np.diff(ladder) < 0) and ladder[-1] > 0):
        raise ValueError(
            f"{count} levels between {sigma_begin} and {sigma_end} are not distinct in float32"
        )
    return jnp.asarray(ladder)
