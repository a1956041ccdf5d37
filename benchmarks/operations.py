"""Counts the operations of a training step from the shapes of its network."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex


def count_multiply_adds(function, *args) -> int:
    """Counts the multiply-adds of all convolutions and matrix products in `function(*args)`.

    Only shapes matter, so the arguments may be `jax.ShapeDtypeStruct`s. Products with the zeros of a
    convolution's padding count, as is customary; XLA's own count omits them.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def step_operations(model: nn.Module, params: Any, image_shape: tuple[int, int, int]) -> int:
    """Returns the approximate floating-point operations of a training step for one image.

    Each multiply-add of an evaluation counts two, and the backward pass counts twice as many again.

    Args:
      model: called as `model.apply(params, x, label)`, so without dropout.
      params: its parameters, or their shapes.
      image_shape: (H, W, C).
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    return 6 * count_multiply_adds(model.apply, params, image, label)


def _count(jaxpr: jex.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        size = int(np.prod(equation.outvars[0].aval.shape)) if equation.outvars else 0
        if name == "conv_general_dilated":
            numbers = equation.params["dimension_numbers"]
            kernel = equation.invars[1].aval.shape
            total += size * int(np.prod(kernel)) // kernel[numbers.rhs_spec[0]]
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += size * int(np.prod([shape[i] for i in contracted]))
        else:
            repeats = equation.params.get("length", 1) if name == "scan" else 1
            inner = [
                _count(j)
                for j in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr)
                if _is_jaxpr(j)
            ]
            total += repeats * sum(inner)
    return total


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (jex.Jaxpr, jex.ClosedJaxpr))
