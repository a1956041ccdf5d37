"""Non-leaky augmentation: random geometry of training images, which the network is told about.

See Karras et al., 2022, "Elucidating the design space of diffusion-based generative models", appendix F.2. An
image is flipped, scaled, rotated, stretched and moved, and a label of nine numbers says how. The network is
given the label in training. In sampling it is given zeros, the label of an unchanged image, so that
samples look like the data and not like their augmentations.
"""

import math

import jax
import jax.numpy as jnp

from ncsn_jax import _checks as check

__all__ = ["LABEL_SIZE", "augment"]

LABEL_SIZE = 9

# Table 6: log2 of a factor of 1 standard deviation, and a shift of 1 in widths of the image.
_SCALE, _ANISOTROPY, _TRANSLATION = 0.2, 0.2, 0.125


def augment(
    key: jax.Array, images: jax.Array, *, probability: float = 0.12
) -> tuple[jax.Array, jax.Array]:
    """Applies the random transformations of table 6 to images, in one resampling.

    | label | transformation | drawn from |
    |---|---|---|
    | a0 | flip left to right if 1 | 0 or 1 |
    | a1 | flip upside down if 1 | 0 or 1 |
    | a2 | scale by 2^(0.2 a2) | N(0, 1) |
    | cos(a3) - 1, sin(a3) | rotate by a3 | U(-pi, pi) |
    | a5 cos(a4), a5 sin(a4) | stretch by 2^(0.2 a5) along a4, shrink across it | N(0, 1), U(-pi, pi) |
    | a6, a7 | move by a6 / 8 widths to the right and a7 / 8 heights down | N(0, 1) |

    Angles are counterclockwise from the right; a4 is 0 for every second image. As published, (a5, a4) and
    (-a5, a4 + pi) have the same label. Each row but the first applies
    with `probability` and has zeros in the label otherwise. The first always applies, to half of the images,
    as in the authors' code.

    Pixels between others are interpolated by Catmull-Rom's cubic, and those outside are reflections. So an
    image with label 0 is unchanged to the bit, and flips and shifts by whole pixels only move pixels.

    Differs from the authors' code: it interpolates linearly between two wavelet filters at twice the
    resolution.

    Args:
      key: one key, or one per example `[B]`; an example's draws depend on its own key alone.
      images: `[B, H, W, C]`, floating point, in any range.
      probability: A_prob, in [0, 1].

    Returns:
      The images, shaped like the given ones, and their labels, float32 `[B, 9]`.

    Raises:
      ValueError: if an argument has the wrong shape or is out of range.

    Example:
      >>> import jax
      >>> from ncsn_jax import augmentation
      >>> images, labels = augmentation.augment(jax.random.key(0), jax.numpy.zeros((2, 8, 8, 3)))
      >>> labels.shape
      (2, 9)
    """
    keys = check.keys(key, check.batch("images", images))
    if images.ndim != 4:
        raise ValueError(f"images must be [B, H, W, C], got shape {images.shape}")
    check.floating("images", images)
    probability = check.as_float("probability", probability)
    if not (check.is_traced(probability) or 0 <= probability <= 1):
        raise ValueError(f"probability must be from 0 to 1, got {probability}")
    if keys.ndim == 0:
        keys = jax.random.split(keys, images.shape[0])

    def one(key, image):
        label, to_source, shift = _draw(key, probability, image.shape[1], image.shape[0])
        return _resample(image, to_source, shift), label

    return jax.vmap(one)(keys, images)


def _draw(key: jax.Array, probability: float, width: int, height: int) -> tuple:
    """Returns a label `[9]`, the matrix `[2, 2]` from a point of the result to its source, and the shift.

    Points are (x, y) from the centre, in pixels; the source of a point p is matrix (p - shift).
    """
    for_uniform, for_normal = jax.random.split(key)
    uniform = jax.random.uniform(for_uniform, (10,))
    chosen = uniform[:5] < probability
    a0, flip_y, oblique = (uniform[5:8] < 0.5).astype(jnp.float32)
    a3, a4 = 2 * math.pi * (uniform[8:] - 0.5)
    a2, a5, a6, a7 = jax.random.normal(for_normal, (4,))
    a1, a2, a3, a5 = chosen[0] * flip_y, chosen[1] * a2, chosen[2] * a3, chosen[3] * a5
    a4, a6, a7 = oblique * a4, chosen[4] * a6, chosen[4] * a7

    stretch, turn = jnp.exp2(_ANISOTROPY * a5), _rotation(-a4)
    matrix = jnp.diag(jnp.stack([1 - 2 * a0, 1 - 2 * a1])) * jnp.exp2(-_SCALE * a2)
    matrix = _times(matrix, _rotation(a3))
    back = _times(_times(turn, jnp.diag(jnp.stack([1 / stretch, stretch]))), turn.T)
    # A rotation back and forth leaves rounding errors, and an unchanged image must stay the same.
    matrix = jnp.where(a5 == 0, matrix, _times(matrix, back))
    shift = _TRANSLATION * jnp.stack([a6 * width, a7 * height])
    label = [a0, a1, a2, jnp.cos(a3) - 1, jnp.sin(a3), a5 * jnp.cos(a4), a5 * jnp.sin(a4), a6, a7]
    return jnp.stack(label), matrix, shift


def _rotation(angle: jax.Array) -> jax.Array:
    """Returns the matrix that turns (x, y) clockwise, since y grows downwards."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])


def _times(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multiplies two matrices; accelerators would round the factors to bfloat16."""
    return jnp.matmul(a, b, precision="highest")


def _resample(image: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns the image `[H, W, C]` whose pixel at p is the given image's at matrix (p - shift)."""
    height, width, _ = image.shape
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    x = (jnp.arange(width) - centre_x - shift[0])[None, :]
    y = (jnp.arange(height) - centre_y - shift[1])[:, None]
    column, column_weight = _taps(matrix[0, 0] * x + matrix[0, 1] * y + centre_x, width)
    row, row_weight = _taps(matrix[1, 0] * x + matrix[1, 1] * y + centre_y, height)
    weight = row_weight[:, None] * column_weight[None, :]
    around = image[row[:, None], column[None, :]]  # [4, 4, H, W, C]
    return jnp.sum(weight[..., None] * around, axis=(0, 1)).astype(image.dtype)


def _taps(position: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Returns the four pixels around each position `[H, W]`, and Catmull-Rom's weights, `[4, H, W]` each."""
    first = jnp.floor(position)
    t = position - first
    weights = jnp.stack(
        [
            ((-0.5 * t + 1) * t - 0.5) * t,
            (1.5 * t - 2.5) * t * t + 1,
            ((-1.5 * t + 2) * t + 0.5) * t,
            (0.5 * t - 0.5) * t * t,
        ]
    )
    period = max(2 * (size - 1), 1)
    index = (first.astype(jnp.int32)[None] + jnp.arange(-1, 3)[:, None, None]) % period
    return jnp.minimum(index, period - index), weights


def __dir__() -> list[str]:
    return __all__
