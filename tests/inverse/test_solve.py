"""The conjugate gradients of `ncsn_jax.inverse` where the matrix is not what it should be."""

import jax.numpy as jnp
import numpy as np

from ncsn_jax import inverse
from ncsn_jax.inverse._solve import solve


def test_a_direction_below_the_bound_is_not_taken():
    """The bound is 0.1; along b the matrices have 0.01, 0.1 and 1."""
    diagonal = jnp.asarray([[0.01, 1.0], [0.1, 1.0], [1.0, 1.0]])
    b = jnp.asarray([[1.0, 0.0]] * 3)
    found = solve(lambda v: diagonal * v, b, 3, least=jnp.full((3, 1), 0.1))
    np.testing.assert_allclose(found, [[0, 0], [10, 0], [1, 0]], rtol=1e-5)
    np.testing.assert_allclose(solve(lambda v: diagonal * v, b, 3)[0], [100, 0], rtol=1e-5)


def test_the_pseudo_inverse_of_fourier_coefficients_does_not_amplify_rounding():
    """A^T A is singular; 100 iterations go on long after the exact solution, zero-filled."""
    rng = np.random.default_rng(0)
    x, observed = rng.uniform(size=(4, 8, 8, 1)), np.zeros((1, 8, 8, 1), bool)
    observed[:, [0, 0, 1, 3], [0, 1, 2, 7]] = True
    operator = inverse.fourier_mask(observed)
    y = operator.apply(jnp.asarray(x, jnp.float32))
    kept = observed | np.roll(observed[:, ::-1, ::-1], 1, axis=(1, 2))
    expected = np.fft.ifft2(np.fft.fft2(x, axes=(1, 2)) * kept, axes=(1, 2)).real
    found = inverse.pseudo_inverse(operator, y, x.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)
