"""A small network for vectors, trained by any of the library's losses, for figures 1 and 2."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax


def init(key: jax.Array, sizes: Sequence[int]) -> list:
    """Returns the weights of a network with the given widths, including input and output."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(k, (a, b)) / a**0.5, jnp.zeros(b))
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def apply(params: list, x: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns the score `[B, D]` of x `[B, D]`; ignores sigma."""
    del sigma
    for weight, bias in params[:-1]:
        x = jax.nn.softplus(x @ weight + bias[None])
    weight, bias = params[-1]
    return x @ weight + bias[None]


def train(
    key: jax.Array,
    params: list,
    loss: Callable,
    sample: Callable[[jax.Array], jax.Array],
    num_steps: int,
    learning_rate: float = 1e-3,
) -> tuple[list, jax.Array]:
    """Trains with Adam and returns the weights and every step's loss.

    Args:
      key: for the batches and the loss.
      params: as made by `init`.
      loss: `loss(key, score_fn, x) -> [B]`.
      sample: makes a batch `[B, D]` from a key.
      num_steps: optimizer steps, all in one compiled loop.
      learning_rate: Adam's.
    """
    optimizer = optax.adam(learning_rate)

    def step(carry, key):
        params, state = carry
        key_data, key_loss = jax.random.split(key)

        def objective(params):
            return loss(key_loss, functools.partial(apply, params), sample(key_data)).mean()

        value, gradient = jax.value_and_grad(objective)(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def run(params, keys):
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)

    (params, _), losses = run(params, jax.random.split(key, num_steps))
    return params, losses
