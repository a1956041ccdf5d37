"""Doubles and halves feature maps, with or without a smoothing FIR filter.

The filter has four taps, normalised to sum to one, and is convolved (that is, flipped) as in StyleGAN2
(Karras et al., 2020). Without one (`None`), doubling uses nearest neighbours, and halving the mean of 2x2
pixels. The filter is separable and runs along one axis at a time, on shifted copies of the array. It skips
the zeros between pixels and the dropped pixels. All arrays are `[B, H, W, C]`, H and W even for halving, and
results have the type of x.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncsn_jax.models.layers import Conv, mean_pool

Taps = tuple[float, float, float, float]


def upsample(x: jax.Array, taps: Taps | None) -> jax.Array:
    """Doubles H and W: inserts a zero after every pixel and filters, keeping the image's mean."""
    if taps is None:
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    # Two of each four products are with zeros; the parity of the output's position decides which.
    first, second, third, fourth = (2.0 * tap for tap in _flipped(taps))
    for axis in (1, 2):
        padded, size = _padded(x, axis, 1), x.shape[axis]
        before, here, after = (
            jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3)
        )
        pairs = jnp.stack([first * before + third * here, second * here + fourth * after], axis + 1)
        shape = list(x.shape)
        shape[axis] *= 2
        x = pairs.reshape(shape)
    return x


def downsample(x: jax.Array, taps: Taps | None) -> jax.Array:
    """Halves H and W: filters and keeps every second pixel."""
    if taps is None:
        return mean_pool(x)
    return _filtered(x, taps, padding=1, stride=2)


class SmoothedDownConv(nn.Module):
    """A 3x3 convolution that halves H and W, after a filter against aliasing.

    It differs from `downsample` and a convolution: the convolution sees the filtered image at full
    resolution, one pixel larger than x.

    Args:
      features: output channels.
      taps: the filter's taps.
    """

    features: int
    taps: Taps

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _filtered(x, self.taps, padding=2, stride=1)
        return Conv(self.features, xavier=True, stride=2, padding=(0, 0), name="conv")(x)


def _flipped(taps: Taps) -> list[float]:
    """Returns the flipped taps, normalised to sum to one."""
    return [tap / sum(taps) for tap in reversed(taps)]


def _padded(x: jax.Array, axis: int, padding: int) -> jax.Array:
    return jnp.pad(x, [(padding, padding) if i == axis else (0, 0) for i in range(x.ndim)])


def _filtered(x: jax.Array, taps: Taps, padding: int, stride: int) -> jax.Array:
    """Filters both axes with `padding` zeros on both sides, and keeps every `stride`-th pixel."""
    for axis in (1, 2):
        padded = _padded(x, axis, padding)
        end = padded.shape[axis] - len(taps) + 1
        x = sum(
            tap * jax.lax.slice_in_dim(padded, i, end + i, stride, axis)
            for i, tap in enumerate(_flipped(taps))
        )
    return x
