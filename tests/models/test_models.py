"""The adapter between networks, which know levels, and score functions, which know sigma."""

import jax.numpy as jnp
import numpy as np

from ncsn_jax import models, sigmas


def test_a_sigma_is_taken_for_the_nearest_level():
    ladder = sigmas.geometric(10.0, 0.01, 7)
    np.testing.assert_array_equal(models.levels_of(ladder, ladder), np.arange(7))
    between = jnp.asarray([100.0, float(ladder[2]) * 1.1, 1e-9])
    np.testing.assert_array_equal(models.levels_of(between, ladder), [0, 2, 6])
