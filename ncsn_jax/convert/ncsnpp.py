"""The PyTorch names of NCSN++'s parameters.

There the layers are numbered in the order of their use, whatever they are. Hides that order, and what the
parts of a layer are called.
"""

from ncsn_jax.models import NCSNpp

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


def layer_names(model: NCSNpp) -> list[str]:
    """Returns the names of the network's layers, in the order of their use."""
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


def torch_name(path: tuple[str, ...], model: NCSNpp) -> str:
    """Returns the PyTorch name of the parameter at `path` (without the collection)."""
    layer, *parts, leaf = path
    names = [f"all_modules.{layer_names(model).index(layer)}"]
    biggan = model.resblock_type == "biggan"
    if parts == ["shortcut"]:
        names.append("Conv_2" if biggan else "NIN_0")
    elif parts:
        names.append(_PARTS[parts[0]])
    elif layer.endswith(("_pyramid", "_halving", "_doubling")):
        names.append("Conv_0")
    if names[-1].startswith("NIN"):
        leaf = {"kernel": "W", "bias": "b"}[leaf]
    else:
        leaf = {"frequencies": "W", "kernel": "weight", "gamma": "weight", "beta": "bias"}.get(
            leaf, leaf
        )
    return ".".join([*names, leaf])
