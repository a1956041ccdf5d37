"""Conjugate gradients for a batch of linear systems, each with its own step sizes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ncsn_jax._random import expand


def solve(product: Callable[[jax.Array], jax.Array], b: jax.Array, iterations: int) -> jax.Array:
    """Returns u with M u = b for each example, after a number of iterations from u = 0.

    `jax.scipy.sparse.linalg.cg` takes one step size for a whole batch, which would make an example depend on
    the others.

    Args:
      product: M, symmetric and positive semi-definite: `[B, ...]` to `[B, ...]`. An example along whose
        direction M is not positive stays where it is.
      b: `[B, ...]`.
      iterations: >= 1; as many as M has different eigenvalues are exact. An example stops when its residual
        is a few roundings of b: after that, rounding would grow where M is singular.
    """

    def dot(u, v):
        return jnp.sum(u * v, axis=tuple(range(1, u.ndim)))

    enough = jnp.square(8 * jnp.finfo(b.dtype).eps) * dot(b, b)

    def iterate(_, state):
        u, residual, direction, square = state
        image = product(direction)
        curvature = dot(direction, image)
        goes_on = (curvature > 0) & (square > enough)
        step = jnp.where(goes_on, square / jnp.where(goes_on, curvature, 1), 0)
        u = u + expand(step, u) * direction
        residual = residual - expand(step, u) * image
        left = dot(residual, residual)
        again = jnp.where(goes_on, left / jnp.where(goes_on, square, 1), 0)
        return u, residual, residual + expand(again, u) * direction, left

    return lax.fori_loop(0, iterations, iterate, (jnp.zeros_like(b), b, b, dot(b, b)))[0]
