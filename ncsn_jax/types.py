"""Protocols for score functions. Any callable with a matching signature is one."""

from typing import Protocol

import jax

__all__ = ["ScoreFn", "TimeScoreFn"]


class ScoreFn(Protocol):
    """`score_fn(x, sigma) -> score`: x `[B, ...]`, sigma `[B]` > 0, and the score shaped like x.

    The score is the gradient of the log density of the data perturbed by N(0, sigma^2 I), s_theta(x, sigma)
    in the paper. Its units are the inverse of the data's.
    """

    def __call__(self, x: jax.Array, sigma: jax.Array, /) -> jax.Array:
        """Returns the score."""


class TimeScoreFn(Protocol):
    """`score_fn(x, t) -> score`: x `[B, ...]`, t `[B]` in (0, 1], and the score of x_t shaped like x."""

    def __call__(self, x: jax.Array, t: jax.Array, /) -> jax.Array:
        """Returns the score."""


def __dir__() -> list[str]:
    return __all__
