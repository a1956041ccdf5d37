"""Names of the parameters in the authors' PyTorch code.

A path is a Flax parameter's, without the collection: the names of its modules and of the array.
"""

import re
from collections.abc import Sequence

import flax.linen as nn

from ncsn_jax import models

NETWORKS = (models.NCSN, models.RefineNet, models.SimplifiedNCSN, models.NCSNpp)

# The first pattern that matches a whole module name gives its PyTorch name, where units count from one.
_UNIT = (r"(conv|norm)_(\d)_(\d)", lambda m: f"{int(m[2]) + 1}_{int(m[3]) + 1}_{m[1]}")
_REFINENET = (
    (r"(res\d+)_(\d)", r"\1.\2"),
    (r"adapt_(\d)", r"adapt_convs.\1"),
    _UNIT,
    (r"(conv|norm)_(\d)", r"\1s.\2"),
    ("output", "output_convs"),
    ("fusion", "msf"),
    ("pooling", "crp"),
)
_SIMPLIFIED = (
    (r"normalize(\d)", r"norm\1"),
    (r"conv(\d)", r"conv\1.conv"),
    (r"adapt_(\d)", r"rcu_in.\1"),
    (r"(conv|norm|unit)_(\d)", r"\1s.\2"),
    ("output", "rcu_out"),
    ("fusion", "msf"),
    ("pooling", "crp"),
    ("normalizer", "end_norm"),
)

# The parts of NCSN++'s layers.
_PARTS = {
    "normalize": "GroupNorm_0",
    "normalize1": "GroupNorm_0",
    "conv1": "Conv_0",
    "embed": "Dense_0",
    "normalize2": "GroupNorm_1",
    "conv2": "Conv_1",
    "query": "NIN_0",
    "key": "NIN_1",
    "value": "NIN_2",
    "output": "NIN_3",
    "conv": "Conv2d_0",
}
_LEAVES = {"kernel": "weight", "embedding": "embed.weight"}
_LEAVES_OF_NCSNPP = {"frequencies": "W", "kernel": "weight", "gamma": "weight", "beta": "bias"}
_LEAVES_OF_NIN = {"kernel": "W", "bias": "b"}


def torch_name(path: Sequence[str], model: nn.Module) -> str:
    """Returns the PyTorch name of the model's parameter at `path`."""
    if isinstance(model, models.NCSNpp):
        number = layer_names(model).index(path[0])
        return f"all_modules.{number}.{ncsnpp_name(path, model.resblock_type)}"
    if isinstance(model, models.SimplifiedNCSN):
        return ".".join([*(_translate(m, _SIMPLIFIED) for m in path[:-1]), _leaf(path)])
    halving = [f"{name}_0" for name, _, options in model.STAGES if options == {"down": True}]
    return refinenet_name(path, pooled=path[0] in halving and path[1] in ("conv2", "shortcut"))


def refinenet_name(path: Sequence[str], *, pooled: bool = False) -> str:
    """Returns the name in NCSN, NCSNv2 or one of their blocks.

    In PyTorch a pooling module contains a `pooled` convolution, which adds ".conv" to its name.
    """
    modules = [_translate(module, _REFINENET) for module in path[:-1]]
    return ".".join([*modules, *(["conv"] if pooled else []), _leaf(path)])


def ncsnpp_name(path: Sequence[str], resblock_type: str) -> str:
    """Returns the name in NCSN++'s layer `path[0]`, without the layer's number."""
    layer, *parts, leaf = path
    name = ""
    if parts == ["shortcut"]:
        name = "Conv_2." if resblock_type == "biggan" else "NIN_0."
    elif parts:
        name = f"{_PARTS[parts[0]]}."
    elif layer.endswith(("_pyramid", "_halving", "_doubling")):
        name = "Conv_0."
    leaves = _LEAVES_OF_NIN if name.startswith("NIN") else _LEAVES_OF_NCSNPP
    return name + leaves.get(leaf, leaf)


def layer_names(model: models.NCSNpp) -> list[str]:
    """Returns the names of NCSN++'s layers in order of use, which is PyTorch's numbering."""
    levels, blocks, last = range(len(model.ch_mult)), model.num_res_blocks, len(model.ch_mult) - 1
    names = ["fourier"] if model.embedding_type == "fourier" else []
    names += ["dense_0", "dense_1", "begin_conv"]
    for level in levels:
        for i in range(blocks):
            names.append(f"down{level}_{i}")
            if model.attends(level):
                names.append(f"down{level}_{i}_attention")
        if level != last:
            names.append(f"down{level}_halving")
            if model.progressive_input != "none":
                names.append(f"down{level}_pyramid")
    names += ["middle_0", "middle_attention", "middle_1"]
    for level in reversed(levels):
        names += [f"up{level}_{i}" for i in range(blocks + 1)]
        if model.attends(level):
            names.append(f"up{level}_attention")
        if model.progressive == "output_skip":
            names += [f"up{level}_normalizer", f"up{level}_image"]
        if level != 0:
            names.append(f"up{level}_doubling")
    if model.progressive == "none":
        names += ["normalizer", "end_conv"]
    return names


def torch_axes(name: str, ndim: int) -> tuple[int, ...]:
    """Returns the permutation of axes from Flax to PyTorch."""
    if ndim == 4:
        return (3, 2, 0, 1)
    if ndim == 2 and name.endswith("weight") and not name.endswith("embed.weight"):
        return (1, 0)
    return tuple(range(ndim))


def _leaf(path: Sequence[str]) -> str:
    return _LEAVES.get(path[-1], path[-1])


def _translate(module: str, table: tuple) -> str:
    for pattern, name in table:
        if re.fullmatch(pattern, module):
            return re.sub(pattern, name, module)
    return module
