"""Distributions with exact perturbed scores, densities and samples.

Their `score` method is a score function, so every sampler and loss accepts it in place of a network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ncsn_jax import _checks as check
from ncsn_jax._random import normal_like, split_each

__all__ = [
    "GaussianMixture",
    "gaussian_mixture",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """A mixture of K isotropic Gaussians in D dimensions; make it with `gaussian_mixture`.

    Convolution with N(0, sigma^2 I) keeps component k's mean mu_k and gives it variance
    v_k = s_k^2 + sigma^2, so every method is exact.
    """

    means: jax.Array
    stds: jax.Array
    weights: jax.Array

    def _components(self, x: jax.Array, sigma: jax.Array):
        """Returns mu_k - x `[B, K, D]`, v_k `[B, K]` and the log joint densities `[B, K]`."""
        dimension = self.means.shape[-1]
        sigma = jnp.broadcast_to(sigma, x.shape[:1])
        difference = self.means[None] - x[:, None]
        variance = jnp.square(self.stds)[None] + jnp.square(sigma)[:, None]
        square = jnp.sum(jnp.square(difference), axis=-1)
        log_normal = -0.5 * (square / variance + dimension * jnp.log(2 * jnp.pi * variance))
        return difference, variance, jnp.log(self.weights)[None] + log_normal

    def score(self, x: jax.Array, sigma: jax.Array) -> jax.Array:
        """Returns the score of the perturbed mixture, sum_k r_k(x) (mu_k - x) / v_k.

        Args:
          x: `[B, D]`.
          sigma: `[B]` or a scalar, >= 0.

        Returns:
          `[B, D]`.
        """
        difference, variance, log_joint = self._components(x, sigma)
        responsibility = jax.nn.softmax(log_joint, axis=-1)
        return jnp.sum((responsibility / variance)[..., None] * difference, axis=1)

    def log_prob(self, x: jax.Array, sigma: jax.Array) -> jax.Array:
        """Returns the log density of the perturbed mixture in nats, `[B]`, for x `[B, D]`, sigma `[B]`."""
        return jax.scipy.special.logsumexp(self._components(x, sigma)[2], axis=-1)

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        """Draws `n` exact samples of the unperturbed mixture, `[n, D]`; `key` is one key or `[n]`."""
        n = check.count("n", n, 0)
        key = check.keys(key, n)
        logits = jnp.log(self.weights)
        if key.ndim == 0:
            key_component, key_noise = jax.random.split(key)
            component = jax.random.categorical(key_component, logits, shape=(n,))
        else:
            key_component, key_noise = split_each(key, 2)
            component = jax.vmap(jax.random.categorical, (0, None))(key_component, logits)
        noise = normal_like(key_noise, jnp.zeros((n, self.means.shape[-1]), self.means.dtype))
        return self.means[component] + self.stds[component][:, None] * noise


def gaussian_mixture(
    means: ArrayLike | Sequence, stds: ArrayLike | Sequence, weights: ArrayLike | Sequence
) -> GaussianMixture:
    """Makes a mixture of K isotropic Gaussians.

    Args:
      means: `[K, D]`.
      stds: `[K]`, standard deviations, >= 0.
      weights: `[K]`, > 0; normalised to sum to 1.

    Returns:
      A pytree with methods `score(x, sigma)`, `log_prob(x, sigma)` and `sample(key, n)`.

    Raises:
      ValueError: if the shapes disagree, or a value is not finite or out of range. Traced values are not
        checked.

    Example:
      >>> import jax
      >>> from ncsn_jax.scores import gaussian_mixture
      >>> mixture = gaussian_mixture([[-5.0, -5.0], [5.0, 5.0]], [1.0, 1.0], [0.2, 0.8])
      >>> mixture.sample(jax.random.key(0), 3).shape
      (3, 2)
    """
    means, stds, weights = (jnp.asarray(a, jnp.float32) for a in (means, stds, weights))
    components = means.shape[:1]
    if means.ndim != 2 or not means.size or stds.shape != components or weights.shape != components:
        raise ValueError(
            "means must have shape [K, D], stds and weights [K], "
            f"got {means.shape}, {stds.shape} and {weights.shape}"
        )
    if not any(map(check.is_traced, (means, stds, weights))):
        values = [np.asarray(a) for a in (means, stds, weights)]
        finite = all(np.isfinite(a).all() for a in values)
        if not (finite and (values[1] >= 0).all() and (values[2] > 0).all()):
            raise ValueError(
                "means, stds and weights must be finite, with stds >= 0 and weights > 0"
            )
    return GaussianMixture(means, stds, weights / jnp.sum(weights))


def __dir__() -> list[str]:
    return __all__
