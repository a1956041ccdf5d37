"""The authors' PyTorch parameters as Flax parameters.

The correspondence is one function from the path of a Flax parameter to the name of its PyTorch
counterpart, so that a state dict is read by walking the tree that the model itself describes: what is
missing, superfluous or of the wrong shape is found by name.
"""

import re
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

# Blocks whose convolutions sit inside a pooling module in PyTorch, which adds ".conv" to their names.
_HALVING = {
    "NCSN": ("res2_0",),
    "NCSNv2": ("res2_0",),
    "NCSNv2Deeper": ("res2_0", "res3_0"),
    "NCSNv2Deepest": ("res2_0", "res3_0", "res31_0"),
}

_LEAVES = {"kernel": "weight", "embedding": "embed.weight"}

# Kept in the files of NCSNv2, but no parameter: the ladder belongs to the configuration.
_BUFFERS = ("sigmas",)


def from_torch(state_dict: Mapping[str, np.ndarray], model: nn.Module):
    """Converts a state dict to the parameters that `model.init` returns.

    Args:
      state_dict: name to array in PyTorch's layout (convolutions OIHW); a 'module.' prefix, which
        `DataParallel` adds, is ignored, and so is the buffer 'sigmas'.
      model: the network the parameters belong to.

    Returns:
      The parameters, as for `model.apply(params, x, level)`.

    Raises:
      ValueError: if an array is missing, has another shape, or belongs nowhere; the message names it
        and the shapes.
    """
    found = {name.removeprefix("module."): np.asarray(a) for name, a in state_dict.items()}
    for name in _BUFFERS:
        found.pop(name, None)
    halving = _HALVING[type(model).__name__]
    channels = found["begin_conv.weight"].shape[1] if "begin_conv.weight" in found else 3
    image = jnp.zeros((1, 16, 16, channels))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, jnp.zeros((1,), jnp.int32))

    params = {}
    for path, expected in traverse_util.flatten_dict(shapes).items():
        name = _torch_name(path[1:], halving)
        if name not in found:
            raise ValueError(f"{name} is missing; a {list(expected.shape)} array is expected")
        array = found.pop(name)
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        if array.shape != expected.shape:
            raise ValueError(
                f"{name} has shape {list(array.shape)}, expected {list(expected.shape)}"
                + (" (height, width, input, output)" if array.ndim == 4 else "")
            )
        params[path] = jnp.asarray(array, expected.dtype)
    if found:
        name, array = next(iter(sorted(found.items())))
        raise ValueError(
            f"{name} with shape {list(array.shape)} belongs to no parameter of "
            f"{type(model).__name__} ({len(found)} such)"
        )
    return traverse_util.unflatten_dict(params)


def _torch_name(path: tuple[str, ...], halving: tuple[str, ...]) -> str:
    """Returns the PyTorch name of the Flax parameter at `path` (without the collection)."""
    *modules, leaf = path
    if modules[0] in halving and modules[1] in ("conv2", "shortcut"):
        modules.append("conv")
    names = [re.sub(r"^(res\d+)_(\d)$", r"\1.\2", modules[0])]
    names += [_torch_module(module) for module in modules[1:]]
    return ".".join([*names, _LEAVES.get(leaf, leaf)])


def _torch_module(module: str) -> str:
    if match := re.fullmatch(r"adapt_(\d)", module):
        return f"adapt_convs.{match[1]}"
    if match := re.fullmatch(r"(conv|norm)_(\d)_(\d)", module):
        return f"{int(match[2]) + 1}_{int(match[3]) + 1}_{match[1]}"
    if match := re.fullmatch(r"(conv|norm)_(\d)", module):
        return f"{match[1]}s.{match[2]}"
    return {"output": "output_convs", "fusion": "msf", "pooling": "crp"}.get(module, module)
