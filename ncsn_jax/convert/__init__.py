"""Converts the authors' PyTorch parameters to Flax parameters, and back.

`names` maps the path of a Flax parameter to the name of its PyTorch counterpart. `from_torch` walks the
model's own parameter tree, so it reports missing, unexpected and wrongly shaped arrays by name. Nothing here
needs torch. `python -m ncsn_jax.convert` uses it to turn an authors' checkpoint into a work directory.
"""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ncsn_jax import models
from ncsn_jax.convert.names import NETWORKS, torch_axes, torch_name
from ncsn_jax.errors import show
from ncsn_jax.sigmas import geometric

__all__ = [
    "check_ladder",
    "from_torch",
    "parameter_shapes",
    "to_torch",
]

# NCSNv2 and NCSN++ store the ladder as a buffer. Here it is not a parameter.
_LADDER = "sigmas"

_WITH_LADDER = (models.RefineNet, models.NCSNpp)

# The original NCSN++ has a ladder in its buffer even where it uses none: largest, smallest, levels.
_UNUSED_LADDER = (50.0, 0.01, 1000)

# More than any image has.
_MAX_CHANNELS = 1000


def from_torch(state_dict: Mapping[str, np.ndarray], model: nn.Module, channels: int | None = None):
    """Converts a state dict to the parameters that `model.init` returns.

    Args:
      state_dict: name to array or tensor in PyTorch's layout (convolutions OIHW). `DataParallel`'s prefix
        'module.' is ignored. The buffer 'sigmas' of NCSNv2 and NCSN++ must match the model's ladder if both
        are present.
      model: the network the parameters belong to.
      channels: the images' channels; by default taken from the state dict.

    Returns:
      The parameters, as for `model.apply(params, x, level)`.

    Raises:
      ValueError: if an array is missing, unexpected, wrongly shaped or inexact in float32, if the ladder
        differs, or if the network is not in `ncsn_jax.models`. The message names the array and the shapes, in
        PyTorch's layout.
    """
    _check_network(model)
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"state_dict must map names to arrays, got {type(state_dict).__name__} "
            "(the authors' files are lists, and their first element is such a dict)"
        )
    if unnamed := [name for name in state_dict if not isinstance(name, str)]:
        raise ValueError(f"names must be strings, got {show(unnamed[0])}")
    found = {name.removeprefix("module."): _as_array(a) for name, a in state_dict.items()}
    if len(found) < len(state_dict):
        raise ValueError("some names appear twice, with and without 'module.'")
    if isinstance(model, _WITH_LADDER) and _LADDER in found:
        ladder = found.pop(_LADDER)
        if model.sigmas is not None:
            check_ladder(ladder, np.asarray(model.sigmas))
    if channels is None:
        first = found.get(torch_name(("begin_conv", "kernel"), model), np.empty(0))
        channels = first.shape[1] if first.ndim == 4 and first.shape[1] else 3
    if not (isinstance(channels, int) and 1 <= channels <= _MAX_CHANNELS):
        raise ValueError(f"channels must be from 1 to {_MAX_CHANNELS}, got {show(channels)}")

    params = {}
    for path, expected in parameter_shapes(model, channels).items():
        name = torch_name(path[1:], model)
        axes = torch_axes(name, len(expected.shape))
        shape = tuple(expected.shape[axis] for axis in axes)
        if name not in found:
            raise ValueError(
                f"{name} is missing; {type(model).__name__} expects shape {list(shape)}"
            )
        array = found.pop(name)
        if array.shape != shape:
            raise ValueError(f"{name} has shape {list(array.shape)}, expected {list(shape)}")
        _check_values(name, array)
        array = array.transpose(np.argsort(axes))
        params[path] = jnp.asarray(array, expected.dtype)
    if found:
        name, array = next(iter(sorted(found.items())))
        raise ValueError(
            f"{name} with shape {list(array.shape)} is not a parameter of "
            f"{type(model).__name__} ({len(found)} such arrays)"
        )
    return traverse_util.unflatten_dict(params)


def to_torch(params, model: nn.Module, sigmas=None) -> dict[str, np.ndarray]:
    """Converts parameters to the state dict that the original network loads; inverts `from_torch`.

    Args:
      params: the parameters of `model`, or a tree like them, such as their EMA.
      model: the network they belong to.
      sigmas: `[L]`, the ladder for an NCSN++ that has none. The original always loads one of
        `num_scales` levels, even if it does not use it. The default is that of the runs on CIFAR-10, 1000
        levels from 50 to 0.01.

    Returns:
      Name to array in PyTorch's layout, without 'module.', bit for bit the parameters. It has everything for
      a strict load, which for NCSNv2 and NCSN++ includes the ladder, as 'sigmas'.

    Raises:
      ValueError: if the parameters are not the model's (the message names the first that differs), or
        `sigmas` is not an array of that shape.
    """
    _check_network(model)
    found = traverse_util.flatten_dict(params)
    first = np.shape(found.get(("params", "begin_conv", "kernel"), ()))
    shapes = parameter_shapes(model, first[2] if len(first) == 4 and first[2] else 3)
    state = {}
    for path in sorted(found.keys() | shapes.keys()):
        there, expected = (
            list(np.shape(tree[path])) if path in tree else "absent" for tree in (found, shapes)
        )
        if there != expected:
            raise ValueError(
                f"{'/'.join(path)} is {there}, but {type(model).__name__} expects {expected}"
            )
        array, name = np.array(found[path]), torch_name(path[1:], model)
        state[name] = np.ascontiguousarray(array.transpose(torch_axes(name, array.ndim)))
    if isinstance(model, _WITH_LADDER):
        ladder = sigmas if model.sigmas is None else model.sigmas
        if ladder is None:
            ladder = geometric(*_UNUSED_LADDER)
        if np.ndim(ladder) != 1:
            raise ValueError(f"sigmas must have shape [L], got {list(np.shape(ladder))}")
        state[_LADDER] = np.array(ladder, np.float32)
    return state


def parameter_shapes(
    model: nn.Module, channels: int
) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Maps the path of every parameter to its shape and type, without computing any."""
    ladder = getattr(model, "sigmas", None)
    if ladder is not None:
        model = model.clone(sigmas=(1.0,) * len(ladder))
    return _parameter_shapes(model, channels)


# Every part of a file asks for the shapes, and tracing a network takes seconds.
@functools.lru_cache(maxsize=8)
def _parameter_shapes(model: nn.Module, channels: int):
    side = max(16, 2**model.HALVINGS)
    image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.int32)
    return traverse_util.flatten_dict(jax.eval_shape(model.init, jax.random.key(0), image, level))


def _as_array(value) -> np.ndarray:
    return np.asarray(value.detach() if hasattr(value, "detach") else value)


def _check_network(model: nn.Module) -> None:
    if not isinstance(model, NETWORKS):
        raise ValueError(f"model must be a network of ncsn_jax.models, got {type(model).__name__}")
    for name in ("num_classes", "augment_features"):
        if value := getattr(model, name, 0):
            raise ValueError(f"model must have {name}=0, like the original networks, got {value}")


def _check_values(name: str, array: np.ndarray) -> None:
    """Rejects values that float32 cannot represent."""
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} has type {array.dtype}, expected float32")
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float32)
    if not np.array_equal(rounded, array) or not np.isfinite(rounded).all():
        raise ValueError(
            f"{name} of type {array.dtype} has values that are not finite or not exact in float32"
        )


def check_ladder(found: np.ndarray, expected: np.ndarray) -> None:
    """Raises ValueError unless a file's ladder `[L]` equals the expected one up to rounding."""
    if found.shape != expected.shape:
        raise ValueError(f"sigmas has shape {list(found.shape)}, expected {list(expected.shape)}")
    # The authors exponentiate float32 logarithms, whose rounding is about 6e-8 |ln sigma| < 1e-6.
    differing = np.abs(found / expected - 1) > 2e-6
    if differing.any():
        level = int(differing.argmax())
        raise ValueError(
            f"sigmas[{level}] is {found[level]:.7g}, expected {expected[level]:.7g} (both of shape "
            f"{list(found.shape)})"
        )


def __dir__() -> list[str]:
    return __all__
