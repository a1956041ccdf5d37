"""The conjugate gradients of `ncsn_jax.inverse` where the matrix is not what it should be."""

import jax.numpy as jnp
import numpy as np

from ncsn_jax.inverse._solve import solve


def test_a_direction_below_the_bound_is_not_taken():
    """The bound is 0.1; along b the matrices have 0.01, 0.1 and 1."""
    diagonal = jnp.asarray([[0.01, 1.0], [0.1, 1.0], [1.0, 1.0]])
    b = jnp.asarray([[1.0, 0.0]] * 3)
    found = solve(lambda v: diagonal * v, b, 3, least=jnp.full((3, 1), 0.1))
    np.testing.assert_allclose(found, [[0, 0], [10, 0], [1, 0]], rtol=1e-5)
    np.testing.assert_allclose(solve(lambda v: diagonal * v, b, 3)[0], [100, 0], rtol=1e-5)
