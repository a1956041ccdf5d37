"""The Inception network of FID (the graph of 2015-12-05), and its features of 8-bit images.

The architecture is Inception v3 (Szegedy et al., 2016) with the changes of that graph: 1008 classes, average
pooling that leaves out the padding, and maximum pooling in the last block. Layers have the names of the
PyTorch network in pytorch-fid and torch-fidelity, whose published weights `inception_params` converts.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jax.typing import ArrayLike

# The side of the images that the network sees.
_SIDE = 299

# Added to the variance in batch normalization.
_EPSILON = 1e-3


class Inception(nn.Module):
    """FID's Inception network, with batch normalization folded into the convolutions.

    The call takes 8-bit images, uint8 `[N, H, W, 3]`, resizes them to 299x299 as TensorFlow 1 did, and
    returns a dictionary of float32 arrays: '64', '192', '768' and '2048', the spatial means `[N, D]` of four
    stages; 'logits_unbiased', the logits `[N, 1008]` without the bias; and 'logits'. FID and KID use '2048';
    the inception score uses 'logits_unbiased'.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
            raise ValueError(
                f"images must be uint8 [N, H, W, 3], got {images.dtype} {list(images.shape)}"
            )

        found = {}
        x = (_resize(images.astype(jnp.float32)) - 128.0) / 128.0
        x = _conv("Conv2d_1a_3x3", x, 32, (3, 3), 2)
        x = _conv("Conv2d_2a_3x3", x, 32, (3, 3), padding="VALID")
        x = _max_pool(_conv("Conv2d_2b_3x3", x, 64, (3, 3)))
        found["64"] = x.mean((1, 2))
        x = _conv("Conv2d_3b_1x1", x, 80)
        x = _max_pool(_conv("Conv2d_4a_3x3", x, 192, (3, 3), padding="VALID"))
        found["192"] = x.mean((1, 2))
        for block, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = _block_5(block, x, pooled)
        x = _block_6a(x)
        for block, n in (
            ("Mixed_6b", 128),
            ("Mixed_6c", 160),
            ("Mixed_6d", 160),
            ("Mixed_6e", 192),
        ):
            x = _block_6(block, x, n)
        found["768"] = x.mean((1, 2))
        x = _block_7a(x)
        x = _block_7("Mixed_7b", x, _average_pool(x))
        x = _block_7("Mixed_7c", x, nn.max_pool(x, (3, 3), (1, 1), "SAME"))
        found["2048"] = x.mean((1, 2))

        classes = nn.Dense(1008, use_bias=False, precision=Precision.HIGHEST, name="fc")
        bias = self.param("fc_bias", nn.initializers.zeros, (1008,))
        found["logits_unbiased"] = classes(found["2048"])
        found["logits"] = found["logits_unbiased"] + bias[None]
        return found


def inception_params(state_dict: Mapping[str, ArrayLike]) -> dict:
    """Converts the published PyTorch weights to the parameters of `Inception`.

    A convolution without bias and a batch normalization become one convolution with a bias.

    Args:
      state_dict: name to array, with the names of torch-fidelity and pytorch-fid.

    Returns:
      The parameters, as for `Inception().apply(params, images)`.

    Raises:
      ValueError: if an array is missing or has the wrong shape; the message names it.
    """
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8)
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]

    def read(name, shape):
        if name not in state_dict:
            raise ValueError(f"{name} is missing")
        array = np.asarray(state_dict[name], np.float64)
        if array.shape != shape:
            raise ValueError(f"{name} has shape {list(array.shape)}, expected {list(shape)}")
        return array

    params = {
        "fc_bias": read("fc.bias", (1008,)),
        "fc": {"kernel": read("fc.weight", (1008, 2048)).T},
    }
    for layer in shapes.keys() - params.keys():
        height, width, inputs, outputs = shapes[layer]["kernel"].shape
        kernel = read(f"{layer}.conv.weight", (outputs, inputs, height, width))
        mean, variance, weight, bias = (
            read(f"{layer}.bn.{name}", (outputs,))
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        scale = weight / np.sqrt(variance + _EPSILON)
        params[layer] = {
            "kernel": kernel.transpose(2, 3, 1, 0) * scale,
            "bias": bias - mean * scale,
        }
    return {"params": jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)}


def inception_features(params, images: jax.Array) -> dict[str, jax.Array]:
    """Returns the features of 8-bit images; see `Inception`.

    Args:
      params: as `inception_params` returns them.
      images: uint8 `[N, H, W, 3]`, of any size.

    Raises:
      ValueError: if the images have another type or shape.
    """
    return Inception().apply(params, images)


def _conv(name, x, features, kernel=(1, 1), strides=1, padding="SAME"):
    """A convolution of `Inception` and ReLU; with strides it has no padding."""
    padding = "VALID" if strides > 1 else padding
    layer = nn.Conv(features, kernel, strides, padding, precision=Precision.HIGHEST, name=name)
    return nn.relu(layer(x))


def _chain(block, x, *layers):
    for name, features, kernel in layers:
        x = _conv(f"{block}.{name}", x, features, kernel)
    return x


def _join(*branches):
    return jnp.concatenate(branches, axis=-1)


def _block_5(block, x, pooled):
    return _join(
        _conv(f"{block}.branch1x1", x, 64),
        _chain(block, x, ("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))),
        _chain(
            block,
            x,
            ("branch3x3dbl_1", 64, (1, 1)),
            ("branch3x3dbl_2", 96, (3, 3)),
            ("branch3x3dbl_3", 96, (3, 3)),
        ),
        _conv(f"{block}.branch_pool", _average_pool(x), pooled),
    )


def _block_6a(x, block="Mixed_6a"):
    y = _chain(block, x, ("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3)))
    return _join(
        _conv(f"{block}.branch3x3", x, 384, (3, 3), 2),
        _conv(f"{block}.branch3x3dbl_3", y, 96, (3, 3), 2),
        _max_pool(x),
    )


def _block_6(block, x, n):
    return _join(
        _conv(f"{block}.branch1x1", x, 192),
        _chain(
            block,
            x,
            ("branch7x7_1", n, (1, 1)),
            ("branch7x7_2", n, (1, 7)),
            ("branch7x7_3", 192, (7, 1)),
        ),
        _chain(
            block,
            x,
            ("branch7x7dbl_1", n, (1, 1)),
            ("branch7x7dbl_2", n, (7, 1)),
            ("branch7x7dbl_3", n, (1, 7)),
            ("branch7x7dbl_4", n, (7, 1)),
            ("branch7x7dbl_5", 192, (1, 7)),
        ),
        _conv(f"{block}.branch_pool", _average_pool(x), 192),
    )


def _block_7a(x, block="Mixed_7a"):
    y = _chain(
        block,
        x,
        ("branch7x7x3_1", 192, (1, 1)),
        ("branch7x7x3_2", 192, (1, 7)),
        ("branch7x7x3_3", 192, (7, 1)),
    )
    return _join(
        _conv(f"{block}.branch3x3_2", _conv(f"{block}.branch3x3_1", x, 192), 320, (3, 3), 2),
        _conv(f"{block}.branch7x7x3_4", y, 192, (3, 3), 2),
        _max_pool(x),
    )


def _block_7(block, x, pooled):
    y = _conv(f"{block}.branch3x3_1", x, 384)
    z = _chain(block, x, ("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3)))
    return _join(
        _conv(f"{block}.branch1x1", x, 320),
        _conv(f"{block}.branch3x3_2a", y, 384, (1, 3)),
        _conv(f"{block}.branch3x3_2b", y, 384, (3, 1)),
        _conv(f"{block}.branch3x3dbl_3a", z, 384, (1, 3)),
        _conv(f"{block}.branch3x3dbl_3b", z, 384, (3, 1)),
        _conv(f"{block}.branch_pool", pooled, 192),
    )


def _max_pool(x):
    return nn.max_pool(x, (3, 3), (2, 2))


def _average_pool(x):
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _resize(images: jax.Array) -> jax.Array:
    """Resizes to 299x299 as TensorFlow 1 did: pixel i of n lies at i H / n, without half pixels."""
    for axis in (1, 2):
        size = images.shape[axis]
        place = np.arange(_SIDE) * (size / _SIDE)
        below = np.floor(place).astype(int)
        above = np.minimum(below + 1, size - 1)
        shape = [1] * images.ndim
        shape[axis] = _SIDE
        part = jnp.asarray((place - below).reshape(shape), jnp.float32)
        low, high = (jnp.take(images, i, axis=axis) for i in (below, above))
        images = low + (high - low) * part
    return images
