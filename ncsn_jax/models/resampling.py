"""Doubling and halving of feature maps, with and without a smoothing filter.

The FIR filter is separable and runs along one axis after the other, on shifted copies of the array. It
forms no product with the zeros between pixels, and none for pixels that are left out. All arrays are
`[B, H, W, C]`, H and W even where they are halved, and results have the type of x. The filter is given by
its four taps, normalised here to a sum of one, and is convolved (that is, flipped) as in StyleGAN2
(Karras et al., 2020); no filter, `None`, is nearest neighbours and the mean of 2x2 pixels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ncsn_jax.models.layers import Conv, mean_pool

Taps = tuple[float, float, float, float]


def upsample(x: jax.Array, taps: Taps | None) -> jax.Array:
    """Doubles H and W: zeros after every pixel, filtered, with the mean of the image kept."""
    if taps is None:
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    # Of each four products two are with zeros: which, depends on the parity of the result's position.
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
    """Halves H and W: filtered, and every second pixel kept."""
    if taps is None:
        return mean_pool(x)
    return _filtered(x, taps, padding=1, stride=2)


class SmoothedDownConv(nn.Module):
    """A 3x3 convolution that halves H and W, after a filter that keeps it from aliasing.

    Not the same as `downsample` and a convolution: the convolution sees the filtered image at full
    resolution, one pixel larger than x.

    Args:
      features: output channels.
      taps: of the filter.
    """

    features: int
    taps: Taps

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _filtered(x, self.taps, padding=2, stride=1)
        return Conv(self.features, xavier=True, stride=2, padding=(0, 0), name="conv")(x)


def _flipped(taps: Taps) -> list[float]:
    """Returns the filter as it meets the image, with a sum of one."""
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
