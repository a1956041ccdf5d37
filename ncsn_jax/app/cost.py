"""Estimates what training a network takes, from shapes alone."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ncsn_jax.app.progress import human_bytes


def count_multiply_adds(function, *args) -> int:
    """Counts the multiply-adds of all convolutions and matrix products in `function(*args)`.

    Only shapes matter, so that the arguments may be `jax.ShapeDtypeStruct`s. Products with the zeros
    of a convolution's padding count, as is the custom.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


class Cost(NamedTuple):
    """What training a network takes, from its shapes alone.

    Attributes:
      parameters: their number.
      multiply_adds: of one evaluation for one image, as `count_multiply_adds` counts them.
      step_operations: floating point operations of a training step for one image, about: two for each
        multiply-add of the evaluation, and twice as many again for the backward pass. With `remat` about
        a third more.
      state_bytes: parameters, their gradient, Adam's two moments and the moving average, exactly.
      activation_bytes: what the forward pass keeps for the backward pass of one image, about. A compiler
        may keep less, by computing elementwise functions again, and needs room to work besides; with
        `remat` that room includes the activations of one block.
    """

    parameters: int
    multiply_adds: int
    step_operations: int
    state_bytes: int
    activation_bytes: int


def estimate_cost(
    model: nn.Module, params: Any, image_shape: tuple[int, int, int], *, ema: bool
) -> Cost:
    """Estimates what training takes, without computing or compiling anything.

    Args:
      model: the network as it is trained, with its `dtype` and `remat`; called as `model.apply(params, x,
        label)`, and so without dropout.
      params: its parameters, or their shapes.
      image_shape: (H, W, C).
      ema: whether there is a moving average of the parameters.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)

    def forward(params, image, label):
        output, backward = jax.vjp(lambda params: model.apply(params, image, label), params)
        return output, jax.tree.leaves(backward)

    jaxpr = jax.make_jaxpr(forward)(params, image, label).jaxpr
    # The same array may be kept for several uses. Parameters and constants are there anyway.
    kept = {v for v in jaxpr.outvars[1:] if not isinstance(v, jex.Literal)}
    kept -= {*jaxpr.invars, *jaxpr.constvars}
    multiply_adds, leaves = _count(jaxpr), jax.tree.leaves(params)
    return Cost(
        parameters=sum(a.size for a in leaves),
        multiply_adds=multiply_adds,
        step_operations=6 * multiply_adds,
        state_bytes=(4 + ema) * sum(_bytes(a) for a in leaves),
        activation_bytes=sum(_bytes(v.aval) for v in kept),
    )


def describe_cost(cost: Cost, images: int) -> str:
    """Returns one line: the cost of training `images` at once on each device."""
    return (
        f"{cost.parameters} parameters, {cost.multiply_adds:.4g} multiply-adds per image and evaluation; "
        f"about {cost.step_operations:.2g} operations per image and training step, "
        f"{human_bytes(cost.state_bytes)} for the state of training and "
        f"{human_bytes(images * cost.activation_bytes)} for the activations of {images} image(s) per device"
    )


def _bytes(array: Any) -> int:
    return array.size * array.dtype.itemsize


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
