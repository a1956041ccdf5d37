"""Runs one sampler with scores from Flax linen, Flax nnx, Equinox, and a closed form.

    python -m examples.other_libraries

A score function is `score_fn(x, sigma)`, with x `[B, ...]` and sigma `[B]`. Every network here is a linear
layer with weights set to the score of N(0, 1) data, so all four give the same samples.
"""

import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from ncsn_jax import scores, sigmas
from ncsn_jax.sampling import annealed_langevin

WEIGHT = -jnp.eye(2)


def scaled(layer):
    """Returns the score of perturbed N(0, I) data, -x / (1 + sigma^2), from a layer that computes -x."""
    return lambda x, sigma: layer(x) / (1 + jnp.square(sigma))[:, None]


def score_functions() -> dict:
    """Returns the score functions by name; without Equinox installed, three of them."""
    linen = nn.Dense(2, use_bias=False)
    params = {"params": {"kernel": WEIGHT}}

    layer = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
    layer.kernel[...] = WEIGHT

    found = {
        "closed form": scores.gaussian_mixture([[0.0, 0.0]], [1.0], [1.0]).score,
        "flax linen": scaled(lambda x: linen.apply(params, x)),
        "flax nnx": scaled(layer),
    }
    if importlib.util.find_spec("equinox"):
        import equinox as eqx

        module = eqx.nn.Linear(2, 2, use_bias=False, key=jax.random.key(0))
        module = eqx.tree_at(lambda m: m.weight, module, WEIGHT)
        found["equinox"] = scaled(jax.vmap(module))
    return found


def sample(score_fn) -> jax.Array:
    """Samples with a score function."""
    ladder = sigmas.geometric(5.0, 0.1, 8)
    start = jax.random.normal(jax.random.key(0), (2000, 2))
    run = jax.jit(
        lambda key, x: annealed_langevin(key, score_fn, x, ladder, epsilon=4e-3, steps_per_level=50)
    )
    return run(jax.random.key(1), start)


def main() -> None:
    """Samples with each and prints the standard deviation, which is about 1."""
    for name, score_fn in score_functions().items():
        print(f"{name:12s} standard deviation {float(sample(score_fn).std()):.4f}")


if __name__ == "__main__":
    main()
