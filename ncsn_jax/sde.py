"""Stochastic differential equations that turn data into noise, and score functions of their time.

See Song et al., 2021, "Score-based generative modeling through stochastic differential equations". An SDE
dx = f(x, t) dt + g(t) dw runs from t = 0 (data) to t = 1 (noise) and maps x_0 to
x_t ~ N(alpha_t x_0, std_t^2 I). `VE`, `VP` and `SubVP` are frozen dataclasses of pure methods. A score
function here is `score_fn(x, t)`. `from_sigma_score` makes one from `score_fn(x, sigma)` for any SDE, as
x_t / alpha_t is x_0 with noise of standard deviation std_t / alpha_t. `to_sigma_score` does the reverse.
"""

from __future__ import annotations

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax import _checks as check
from ncsn_jax._random import expand, normal_like
from ncsn_jax.errors import show
from ncsn_jax.types import ScoreFn, TimeScoreFn

__all__ = [
    "SDE",
    "VE",
    "VP",
    "SubVP",
    "from_sigma_score",
    "to_sigma_score",
]


@dataclasses.dataclass(frozen=True)
class SDE(abc.ABC):
    """The base class of SDEs.

    Every method takes x `[B, ...]` and t `[B]` in [0, 1]. Parameters may be traced, so `jax.vmap` of a
    function that builds an SDE can try several at once.
    """

    @abc.abstractmethod
    def alpha(self, t: jax.Array) -> jax.Array:
        """Returns alpha_t `[B]`, the factor of x_0 in the mean of x_t."""

    @abc.abstractmethod
    def std(self, t: jax.Array) -> jax.Array:
        """Returns std_t `[B]`, the standard deviation of x_t given x_0."""

    @abc.abstractmethod
    def drift_coefficient(self, t: jax.Array) -> jax.Array:
        """Returns f(x, t) / x `[B]`; the drift is linear in x."""

    @abc.abstractmethod
    def diffusion(self, t: jax.Array) -> jax.Array:
        """Returns g(t) `[B]`."""

    def prior_std(self) -> float:
        """Returns the standard deviation of the prior, N(0, prior_std^2 I)."""
        return 1.0

    def drift(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """Returns f(x, t), shaped like x."""
        return expand(self.drift_coefficient(t), x) * x

    def marginal(self, x0: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the mean, shaped like x0, and standard deviation `[B]` of x_t given x_0."""
        return expand(self.alpha(t), x0) * x0, self.std(t)

    def sigma(self, t: jax.Array) -> jax.Array:
        """Returns std_t / alpha_t `[B]`, the noise of x_t / alpha_t in units of the data."""
        return self.std(t) / self.alpha(t)

    @abc.abstractmethod
    def time(self, sigma: jax.Array) -> jax.Array:
        """Returns the time `[B]` at which `sigma(t)` is sigma; inverts `sigma`."""

    def prior_sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draws x_1 of `shape` (B, ...) from the prior; `key` is one key, or one per example `[B]`."""
        shape = check.batch_shape(shape)
        return self.prior_std() * normal_like(check.keys(key, shape[0]), jnp.zeros(shape))

    def prior_log_prob(self, x: jax.Array) -> jax.Array:
        """Returns the log density of the prior in nats, `[B]`."""
        variance = self.prior_std() ** 2
        square = jnp.sum(jnp.square(x.reshape(x.shape[0], -1)), axis=1)
        size = math.prod(x.shape[1:])
        return -0.5 * (square / variance + size * _log(2 * math.pi * variance))

    def discretize(self, x: jax.Array, t: jax.Array, num_steps: int) -> tuple[jax.Array, jax.Array]:
        """Returns f, like x, and G `[B]` of one forward step x + f + G z of a chain of `num_steps`.

        The default is the Euler-Maruyama step of size 1 / num_steps. `VE` and `VP` use their discrete
        chains, SMLD and DDPM (appendix E).
        """
        return self.drift(x, t) / num_steps, self.diffusion(t) / math.sqrt(num_steps)

    def chain(self, num_levels: int) -> tuple[jax.Array, jax.Array]:
        """Returns the alphas and stds of the discrete chain that converges to the SDE (appendix E).

        Level i of N is at t = i / (N - 1), so noise increases. Networks trained on the chain saw these
        values, from which `alpha` and `std` differ by O(1 / N).

        Args:
          num_levels: N >= 1; for VP above beta_max, so that every beta_i = beta(t) / N is below 1.

        Returns:
          alphas and stds, float32 `[N]` each.

        Raises:
          ValueError: if `num_levels` is out of range, or the SDE has no discrete chain (sub-VP).
        """
        raise ValueError(
            f"num_levels: {type(self).__name__} has no discrete chain, got {show(num_levels)}"
        )


@dataclasses.dataclass(frozen=True)
class VE(SDE):
    """Variance exploding (equations 9 and 30): x_t = x_0 + sigma(t) z.

        sigma(t) = sigma_min (sigma_max / sigma_min)^t,    g(t) = sigma(t) sqrt(2 log(sigma_max / sigma_min))

    Args:
      sigma_min: above 0, the noise at t = 0. As in the paper and the authors' code, std_t^2 includes the
        sigma_min^2 that the integral of g^2 from 0 lacks.
      sigma_max: above sigma_min.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self):
        _keep(self, **check.ends(sigma_max=self.sigma_max, sigma_min=self.sigma_min))

    def alpha(self, t):
        return jnp.ones_like(t)

    def std(self, t):
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def drift_coefficient(self, t):
        return jnp.zeros_like(t)

    def diffusion(self, t):
        return self.std(t) * (2 * _log(self.sigma_max / self.sigma_min)) ** 0.5

    def prior_std(self):
        return self.sigma_max

    def time(self, sigma):
        return jnp.log(sigma / self.sigma_min) / _log(self.sigma_max / self.sigma_min)

    def discretize(self, x, t, num_steps):
        """Returns SMLD's step from sigma_{i-1} to sigma_i of a geometric ladder; the first is from 0.

        As in the authors' code, the level is the one at or below t (N - 1).
        """
        ratio = self.sigma_max / self.sigma_min
        level = jnp.floor(t * (num_steps - 1))
        sigma, before = (
            self.sigma_min * ratio ** (i / max(num_steps - 1, 1)) for i in (level, level - 1)
        )
        before = jnp.where(level == 0, 0.0, before)
        return jnp.zeros_like(x), jnp.sqrt(sigma**2 - before**2)

    def chain(self, num_levels):
        num_levels = check.count("num_levels", num_levels, 1, check.MAX_LEVELS)
        ratio = self.sigma_max / self.sigma_min
        stds = self.sigma_min * ratio ** np.linspace(0, 1, num_levels)
        return jnp.ones(num_levels, jnp.float32), jnp.asarray(stds, jnp.float32)


@dataclasses.dataclass(frozen=True)
class VP(SDE):
    """Variance preserving (equations 11 and 32): dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw.

        beta(t) = beta_min + t (beta_max - beta_min),    alpha_t = exp(-B(t) / 2),    B(t) = int_0^t beta

    Args:
      beta_min: above 0.
      beta_max: at least beta_min.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        _keep(self, **check.ends(beta_max=self.beta_max, beta_min=self.beta_min, equal=True))

    def beta(self, t: jax.Array) -> jax.Array:
        """Returns the rate of the noise at t, `[B]`."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: jax.Array) -> jax.Array:
        """Returns B(t) `[B]`, the integral of beta from 0 to t."""
        return t * self.beta_min + 0.5 * t**2 * (self.beta_max - self.beta_min)

    def alpha(self, t):
        return jnp.exp(-0.5 * self.integral(t))

    def std(self, t):
        # expm1 avoids cancellation at small t.
        return jnp.sqrt(-jnp.expm1(-self.integral(t)))

    def drift_coefficient(self, t):
        return -0.5 * self.beta(t)

    def diffusion(self, t):
        return jnp.sqrt(self.beta(t))

    def time(self, sigma):
        return self._time_of_integral(jnp.log1p(sigma**2))

    def _time_of_integral(self, integral: jax.Array) -> jax.Array:
        """Solves B(t) = integral for t >= 0, in a form without cancellation."""
        difference = self.beta_max - self.beta_min
        return (
            2 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * difference * integral))
        )

    def discretize(self, x, t, num_steps):
        """Returns DDPM's step x sqrt(1 - beta_i) + sqrt(beta_i) z, beta_i in [beta_min / N, beta_max / N]."""
        level = jnp.floor(t * (num_steps - 1))
        beta = self.beta(level / max(num_steps - 1, 1)) / num_steps
        return (expand(jnp.sqrt(1.0 - beta), x) - 1.0) * x, jnp.sqrt(beta)

    def chain(self, num_levels):
        traced = check.is_traced(self.beta_max)
        least = 1 if traced else math.floor(self.beta_max) + 1
        num_levels = check.count("num_levels", num_levels, least, check.MAX_LEVELS)
        betas = self.beta(np.linspace(0, 1, num_levels)) / num_levels
        xp = jnp if check.is_traced(betas) else np
        logarithm = xp.cumsum(xp.log1p(-betas))  # of the product of 1 - beta_i
        alphas, stds = xp.exp(logarithm / 2), xp.sqrt(-xp.expm1(logarithm))
        return jnp.asarray(alphas, jnp.float32), jnp.asarray(stds, jnp.float32)


@dataclasses.dataclass(frozen=True)
class SubVP(VP):
    """Sub-variance preserving (equations 28 and 29): VP's drift, with less noise.

        g(t)^2 = beta(t) (1 - exp(-2 B(t))),    std_t = 1 - exp(-B(t))

    No discrete chain converges to it: `discretize` is the Euler-Maruyama step, and `chain` raises ValueError.
    """

    def std(self, t):
        return -jnp.expm1(-self.integral(t))

    def diffusion(self, t):
        return jnp.sqrt(self.beta(t) * -jnp.expm1(-2 * self.integral(t)))

    def time(self, sigma):
        # sigma = (1 - e^-B) / e^(-B / 2) = 2 sinh(B / 2)
        return self._time_of_integral(2 * jnp.arcsinh(sigma / 2))

    def discretize(self, x, t, num_steps):
        return SDE.discretize(self, x, t, num_steps)

    def chain(self, num_levels):
        return SDE.chain(self, num_levels)


def _keep(sde: SDE, **parameters: float) -> None:
    """Sets the checked parameters of a frozen SDE."""
    for name, value in parameters.items():
        object.__setattr__(sde, name, value)


def _log(x: float) -> float:
    return jnp.log(x) if check.is_traced(x) else math.log(x)


def from_sigma_score(sde: SDE, score_fn: ScoreFn) -> TimeScoreFn:
    """Returns `score_fn(x, t)` of an SDE from a score function of sigma.

    With sigma = std_t / alpha_t, x_t = alpha_t (x_0 + sigma z). Its density is p_sigma(x_t / alpha_t) up to a
    factor, so its score is s(x_t / alpha_t, sigma) / alpha_t.

    Args:
      sde: the SDE.
      score_fn: `score_fn(x, sigma)`, the score of x_0 + sigma z.
    """

    def score(x: jax.Array, t: jax.Array) -> jax.Array:
        alpha = expand(sde.alpha(t), x)
        return score_fn(x / alpha, sde.sigma(t)) / alpha

    return score


def to_sigma_score(sde: SDE, score_fn: TimeScoreFn) -> ScoreFn:
    """Returns `score_fn(x, sigma)` from a score function of an SDE's time; inverts `from_sigma_score`.

    Args:
      sde: the SDE.
      score_fn: `score_fn(x, t)`, the score of x_t, for t in (0, 1], that is, for sigmas up to `sde.sigma(1)`.
    """

    def score(x: jax.Array, sigma: jax.Array) -> jax.Array:
        t = sde.time(sigma)
        alpha = expand(sde.alpha(t), x)
        return score_fn(alpha * x, t) * alpha

    return score


def __dir__() -> list[str]:
    return __all__
