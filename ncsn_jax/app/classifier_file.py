"""Reads and writes the file of a noisy-image classifier: a `.npz` of its parameters by name, and `meta`.

`meta` is JSON: what `describe` returns, and anything else written with it.
"""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from ncsn_jax.app import build
from ncsn_jax.app.pictures import read_npz, write_npz
from ncsn_jax.errors import UserError, differences, show
from ncsn_jax.models import NoisyClassifier


def describe(config: ConfigDict, model: NoisyClassifier) -> dict:
    """Returns a classifier's and its run's description for the file, as JSON-serialisable values."""
    process = build.make_sde(config)
    return {
        "num_classes": model.num_classes,
        "features": model.features,
        "ch_mult": list(model.ch_mult),
        "sde": {"name": type(process).__name__, **dataclasses.asdict(process)},
        "dataset": config.data.dataset,
        "image_shape": list(build.image_shape(config)),
        "centered": config.data.centered,
    }


def rebuild(meta: dict) -> tuple[NoisyClassifier, Any]:
    """Returns the network that `meta` describes, and the shapes of its parameters."""
    model = NoisyClassifier(meta["num_classes"], meta["features"], tuple(meta["ch_mult"]))
    images = jax.ShapeDtypeStruct((1, *meta["image_shape"]), jnp.float32)
    sigma = jax.ShapeDtypeStruct((1,), jnp.float32)
    return model, jax.eval_shape(model.init, jax.random.key(0), images, sigma)


def save(path: str, params: Any, meta: dict) -> None:
    """Writes a classifier completely or not at all; `meta` may hold more than `describe` returns."""
    arrays = traverse_util.flatten_dict(params, sep="/")
    write_npz(path, meta=np.asarray(json.dumps(meta)), **arrays)


def load(path: str, expected: dict) -> tuple[Any, dict]:
    """Returns the parameters and `meta` of a file.

    Args:
      path: the file, which may be in object storage.
      expected: what `describe` returns. `meta` must agree with it, except for classes and features.

    Raises:
      UserError: if the file does not exist, is damaged, holds something else, or does not agree.
    """
    differing = ""
    try:
        (text,) = read_npz(path, "meta")
        meta = json.loads(text.item())
        fixed = expected.keys() - {"num_classes", "features"}
        there, here = ({f: fields[f] for f in fixed} for fields in (meta, expected))
        differing = differences(there, here)
        if not differing:
            flat = traverse_util.flatten_dict(rebuild(meta)[1], sep="/")
            arrays = dict(zip(flat, read_npz(path, *flat), strict=True))
            for name, like in flat.items():
                _check_parameter(name, arrays[name], like)
    # Damaged files can raise any exception.
    except Exception as error:
        reason = f"{type(error).__name__}: {show(str(error))}"
        raise UserError(
            f"{path} cannot be read as a classifier ({reason}); train it again"
        ) from None
    if differing:
        raise UserError(f"{path} holds a classifier for a different run: {differing}")
    return traverse_util.unflatten_dict(arrays, sep="/"), meta


def _check_parameter(name: str, array: np.ndarray, like: jax.ShapeDtypeStruct) -> None:
    if (array.shape, array.dtype) != (like.shape, like.dtype):
        raise ValueError(
            f"{name} is {array.dtype} of shape {array.shape}, expected {like.dtype} of shape {like.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has non-finite values")
