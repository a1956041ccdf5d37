"""Converts byte images to the float ranges that SDEs and networks use.

Bytes 0 to 255 become floats in [0, 1]. A run may centre them: its SDE, sigmas and samplers then work in
[-1, 1]. Dequantization adds noise smaller than a grey level, which keeps densities of bytes finite.
"""

import jax
import jax.numpy as jnp

from ncsn_jax import _checks as check
from ncsn_jax._random import bits_like, expand, split_each, uniform_like

__all__ = [
    "center",
    "dequantize",
    "prepare",
    "to_float",
    "uncenter",
    "width",
]


def center(x: jax.Array, centered: bool = True) -> jax.Array:
    """Maps [0, 1] to [-1, 1], or returns x unchanged if `centered` is False."""
    return 2.0 * x - 1.0 if centered else x


def uncenter(x: jax.Array, centered: bool = True) -> jax.Array:
    """Inverts `center`."""
    return (x + 1.0) / 2.0 if centered else x


def width(centered: bool) -> float:
    """Returns the length of the images' range: 2 for [-1, 1], 1 for [0, 1]."""
    return 2.0 if centered else 1.0


def to_float(images: jax.Array, *, centered: bool = False) -> jax.Array:
    """Maps bytes v to float32 v / 255, and floats v to v, in [0, 1], or in [-1, 1] if `centered`."""
    x = images.astype(jnp.float32)
    return center(x if jnp.issubdtype(images.dtype, jnp.floating) else x / 255.0, centered)


def dequantize(key: jax.Array, images: jax.Array) -> jax.Array:
    """Adds uniform noise to byte images for likelihoods: (image + u) / 256, u in [0, 1).

    u has 16 bits, so with the byte's 8 the sum fits float32's 24. Nothing is rounded, and floor(256 x)
    recovers the image.

    Args:
      key: one key, or one per example `[B]`.
      images: `[B, ...]`, uint8.

    Returns:
      `[B, ...]`, float32 in [0, 1).

    Raises:
      ValueError: if `images` are not uint8 `[B, ...]`.
    """
    key = check.keys(key, check.batch("images", images))
    images = jnp.asarray(images)
    if images.dtype != jnp.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    noise = bits_like(key, images).astype(jnp.float32) / 2**16
    return (images.astype(jnp.float32) + noise) / 256


def prepare(
    keys: jax.Array,
    images: jax.Array,
    *,
    random_flip: bool,
    dequantize: bool,
    centered: bool = False,
) -> jax.Array:
    """Prepares byte images for a training step.

    Args:
      keys: one key per example, `[B]`.
      images: `[B, H, W, C]`, uint8, or floating point in [0, 1] without `dequantize`.
      random_flip: mirrors each image left to right with probability 1/2.
      dequantize: spreads each byte v uniformly over [v/256, (v+1)/256), as the authors do:
        (v / 255) * 255/256 + u/256, with u of 23 bits. Otherwise v / 255.
      centered: whether to return images in [-1, 1].

    Returns:
      float32 `[B, H, W, C]` in [0, 1], or [-1, 1].
    """
    keys = check.keys(keys, check.batch("images", images))
    if dequantize and images.dtype != jnp.uint8:
        raise ValueError(f"dequantize=True needs uint8 images, got {images.dtype}")
    flip_keys, noise_keys = split_each(keys, 2)
    if random_flip:
        flip = jax.vmap(jax.random.bernoulli)(flip_keys)
        images = jnp.where(expand(flip, images), images[:, :, ::-1, :], images)
    if not dequantize:
        return to_float(images, centered=centered)
    x = images.astype(jnp.float32)
    return center((x + uniform_like(noise_keys, x)) / 256.0, centered)


def __dir__() -> list[str]:
    return __all__
