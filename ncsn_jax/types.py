"""The one type that all parts agree on: the score function."""

from collections.abc import Callable

import jax

ScoreFn = Callable[[jax.Array, jax.Array], jax.Array]
"""`score_fn(x, sigma) -> score`: x `[B, ...]`, sigma `[B]` > 0, and the score shaped like x.

The score is the gradient of the log density of the data perturbed by N(0, sigma^2 I), in inverse
units of the data: s_theta(x, sigma) in the paper.
"""
