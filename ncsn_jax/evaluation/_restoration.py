"""Measures of restored images: PSNR and SSIM of one against another, and the coverage of posterior samples.

All compute in float64 on the host.
"""

import numpy as np
from numpy.typing import ArrayLike

from ncsn_jax import _checks as check

# Of SSIM, as published: the side of the window, its standard deviation, K_1 and K_2.
_WINDOW, _STD, _K1, _K2 = 11, 1.5, 0.01, 0.03


def psnr(images_1: ArrayLike, images_2: ArrayLike, data_range: float = 1.0) -> np.ndarray:
    """Returns the peak signal-to-noise ratio in decibels, 10 log10(range^2 / mean (x - y)^2), of each pair.

    Args:
      images_1, images_2: `[N, ...]` each, of the same shape.
      data_range: the length of the range of values, > 0: 1 for images in [0, 1], 255 for bytes.

    Returns:
      `[N]`; infinite for equal images.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from ncsn_jax.evaluation import psnr
      >>> psnr([[0.0, 0.0]], [[0.1, -0.1]]).round(6).tolist()
      [20.0]
    """
    one, two = _pair(images_1, images_2, 1)
    peak = check.positive("data_range", data_range)
    mean = np.square(one - two).reshape(len(one), -1).mean(axis=1)
    with np.errstate(divide="ignore"):
        return 20 * np.log10(peak) - 10 * np.log10(mean)


def ssim(images_1: ArrayLike, images_2: ArrayLike, data_range: float = 1.0) -> np.ndarray:
    """Returns the structural similarity of each pair of images, at most 1 (Wang et al., 2004).

        (2 m_x m_y + C_1) (2 s_xy + C_2) / ((m_x^2 + m_y^2 + C_1) (s_x^2 + s_y^2 + C_2))

    with means m and (co)variances s under a normal window of 11 x 11 pixels, standard deviation 1.5,
    C_1 = (0.01 range)^2 and C_2 = (0.03 range)^2; the mean over all places where the window lies within the
    image, and over the channels.

    Differs from the paper: images smaller than the window have the largest odd one that fits.

    Args:
      images_1, images_2: `[N, H, W, C]` each.
      data_range: as for `psnr`.

    Returns:
      `[N]`.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> import numpy as np
      >>> from ncsn_jax.evaluation import ssim
      >>> x = np.random.default_rng(0).uniform(size=(1, 16, 16, 1))
      >>> ssim(x, x).tolist()
      [1.0]
    """
    one, two = _pair(images_1, images_2, 4)
    peak = check.positive("data_range", data_range)
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    m1, m2 = _windowed(one), _windowed(two)
    variances = _windowed(one * one) - m1 * m1 + _windowed(two * two) - m2 * m2
    covariance = _windowed(one * two) - m1 * m2
    similarity = (2 * m1 * m2 + c1) * (2 * covariance + c2)
    similarity /= (m1 * m1 + m2 * m2 + c1) * (variances + c2)
    return similarity.mean(axis=(1, 2, 3))


def coverage(samples: ArrayLike, truth: ArrayLike, level: float = 0.9) -> tuple[float, float]:
    """Returns the share of true values within central intervals of posterior samples, and its nominal value.

    The interval of a value reaches from the k-th smallest to the k-th largest of its S samples, with k the
    integer nearest to (1 - level) / 2 (S + 1), at least 1. If the truth and the samples are independent draws
    from one continuous posterior, each rank of the truth is equally likely, so the interval contains it with
    probability (S + 1 - 2 k) / (S + 1) exactly. With 19 samples and level 0.9 that is 0.9, from the smallest
    to the largest. A smaller share means that the samples vary too little, a larger one too much.

    Args:
      samples: `[S, ...]`.
      truth: `[...]`.
      level: the share to aim at, in (0, 1).

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from ncsn_jax.evaluation import coverage
      >>> coverage([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], [2.5, 4.0], level=0.5)
      (0.5, 0.5)
    """
    samples, truth = np.asarray(samples, np.float64), np.asarray(truth, np.float64)
    if samples.ndim < 1 or samples.shape[1:] != truth.shape or not samples.size:
        raise ValueError(
            f"samples must be [S, ...] of a truth [...], got shapes {list(samples.shape)} and "
            f"{list(truth.shape)}"
        )
    level = check.fraction("level", level)
    count = len(samples)
    k = min(max(1, round((1 - level) / 2 * (count + 1))), (count + 1) // 2)
    ordered = np.sort(samples, axis=0)
    inside = (ordered[k - 1] <= truth) & (truth <= ordered[count - k])
    return float(inside.mean()), (count + 1 - 2 * k) / (count + 1)


def _windowed(images: np.ndarray) -> np.ndarray:
    """Returns the weighted means of images `[N, H, W, C]` in all windows within them."""
    for axis in (1, 2):
        side = images.shape[axis]
        size = min(_WINDOW, side - 1 + side % 2)
        weights = np.exp(-0.5 * ((np.arange(size) - size // 2) / _STD) ** 2)
        windows = np.lib.stride_tricks.sliding_window_view(images, size, axis)
        images = windows @ (weights / weights.sum())
    return images


def _pair(images_1: ArrayLike, images_2: ArrayLike, axes: int) -> tuple[np.ndarray, np.ndarray]:
    one, two = np.asarray(images_1, np.float64), np.asarray(images_2, np.float64)
    if one.shape != two.shape or one.ndim < axes or (axes > 1 and one.ndim > axes) or not one.size:
        wanted = "[N, H, W, C]" if axes > 1 else "[N, ...]"
        raise ValueError(
            f"images must be {wanted}, both of one shape, got {list(one.shape)} and {list(two.shape)}"
        )
    return one, two
