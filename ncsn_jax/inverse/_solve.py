"""Conjugate gradients for a batch of linear systems, each with its own step sizes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ncsn_jax._random import expand

# M may lie below its bound by this share.
_ROUNDING = 1e-3


def solve(
    product: Callable[[jax.Array], jax.Array],
    b: jax.Array,
    iterations: int,
    least: jax.Array | float = 0.0,
) -> jax.Array:
    """Returns u with M u = b for each example, after a number of iterations from u = 0.

    `jax.scipy.sparse.linalg.cg` takes one step size for a whole batch, which would make an example depend on
    the others.

    Args:
      product: M, symmetric and positive semi-definite: `[B, ...]` to `[B, ...]`.
      b: `[B, ...]`.
      iterations: >= 1; as many as M has different eigenvalues are exact. An example stops when its residual
        is a few roundings of b.
      least: a lower bound on the eigenvalues of M, broadcastable to b. An example does not move along a
        direction v with v^T M v below v^T least v: M is then not what it should be, and the step could be
        arbitrarily long.
    """

    def dot(u, v):
        return jnp.sum(u * v, axis=tuple(range(1, u.ndim)))

    # A smaller residual is rounding, which a singular M would amplify.
    enough = (16 * jnp.finfo(b.dtype).eps) ** 2 * dot(b, b)

    def iterate(_, state):
        u, residual, direction, square = state
        image = product(direction)
        curvature = dot(direction, image)
        bound = (1 - _ROUNDING) * dot(direction, least * direction)
        goes_on = (curvature > bound) & (square > enough)
        step = jnp.where(goes_on, square / jnp.where(goes_on, curvature, 1), 0)
        u = u + expand(step, u) * direction
        residual = residual - expand(step, u) * image
        left = dot(residual, residual)
        again = jnp.where(goes_on, left / jnp.where(goes_on, square, 1), 0)
        return u, residual, residual + expand(again, u) * direction, left

    return lax.fori_loop(0, iterations, iterate, (jnp.zeros_like(b), b, b, dot(b, b)))[0]
