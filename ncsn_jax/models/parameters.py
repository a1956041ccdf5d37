"""How a layer gets its parameters."""

from collections.abc import Callable

import flax.linen as nn
import jax
from flax.errors import ScopeParamShapeError


def parameter(layer: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> jax.Array:
    """Returns `layer.param(name, init, shape)`, sooner where the parameter exists.

    Flax would trace the draw of every parameter then, an eighth of the time to trace a network, to learn the
    shape that it is told here.

    Raises:
      flax.errors.ScopeParamShapeError: if the parameter that exists has another shape.
    """
    if not layer.has_variable("params", name):
        return layer.param(name, init, shape)
    value = layer.get_variable("params", name)
    if jax.numpy.shape(value) != tuple(shape):
        raise ScopeParamShapeError(name, "/".join(layer.path), shape, jax.numpy.shape(value))
    return value
