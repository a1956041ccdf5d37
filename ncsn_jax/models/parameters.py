"""How a layer gets its parameters."""

from collections.abc import Callable

import flax.linen as nn
import jax


def parameter(layer: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> jax.Array:
    """Returns `layer.param(name, init, shape)`, sooner where the parameter exists.

    Flax traces the initializer then too, to compare shapes, a part of the time to trace a network.
    So it gets one that draws nothing.
    """
    if layer.has_variable("params", name):
        init = nn.initializers.zeros_init()
    return layer.param(name, init, shape)
