"""What the tests of measures share: weights of FID's network that are drawn by name."""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax import evaluation


def _draw(name, shape):
    rng = np.random.default_rng(zlib.crc32(f"a/{name}".encode()))
    if name.endswith(("running_var", "bn.weight")):
        array = rng.uniform(0.5, 1.5, shape)
    elif name.endswith(("running_mean", "bias")):
        array = 0.1 * rng.standard_normal(shape)
    else:
        scale = np.sqrt(2 / math.prod(shape[1:])) if len(shape) == 4 else 0.02
        array = scale * rng.standard_normal(shape)
    return array.astype(np.float32)


def drawn_weights():
    """Returns the state dict with which the figures in `tests/data/inception.npz` were computed."""
    images = jnp.zeros((1, 8, 8, 3), jnp.uint8)
    shapes = jax.eval_shape(evaluation.Inception().init, jax.random.key(0), images)["params"]
    names = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for layer in shapes.keys() - {"fc", "fc_bias"}:
        height, width, inputs, outputs = shapes[layer]["kernel"].shape
        names[f"{layer}.conv.weight"] = (outputs, inputs, height, width)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            names[f"{layer}.bn.{kind}"] = (outputs,)
    return {name: _draw(name, shape) for name, shape in names.items()}
