"""Tests cropping and resizing, pixel by pixel, on small images made by hand."""

import numpy as np
import pytest
from PIL import Image

from ncsn_jax.app.data.transforms import LARGEST_SQUARE, fit

PIXELS = np.arange(0, 160, 10, dtype=np.uint8).reshape(4, 4)


@pytest.mark.parametrize(
    ("crop_size", "size", "rows", "columns"),
    [
        (LARGEST_SQUARE, 5, slice(0, 5), slice(1, 6)),
        (3, 3, slice(1, 4), slice(2, 5)),
        (1, 1, slice(2, 3), slice(3, 4)),
    ],
)
def test_the_crop_is_the_middle_of_the_image(crop_size, size, rows, columns):
    wide = np.arange(40, dtype=np.uint8).reshape(5, 8)
    for pixels, expected in ((wide, wide[rows, columns]), (wide.T, wide.T[columns, rows])):
        found = fit(Image.fromarray(pixels), size, 1, crop_size)
        np.testing.assert_array_equal(found[..., 0], expected)


def test_shrinking_averages_with_a_triangle_filter():
    """At half the size, pixels at distances of 1/4, 1/4 and 3/4 have the weights 3/7, 3/7 and 1/7."""
    row = np.array([0, 70, 140, 210], np.uint8)
    for pixels, axis in ((np.tile(row, (4, 1)), 1), (np.tile(row[:, None], (1, 4)), 0)):
        found = fit(Image.fromarray(pixels), 2, 1, LARGEST_SQUARE)[..., 0]
        np.testing.assert_array_equal(np.moveaxis(found, axis, 1), [[50, 160]] * 2)


def test_resizing_to_a_larger_size_interpolates_linearly():
    found = fit(Image.fromarray(np.array([[0, 80]] * 2, np.uint8)), 4, 1, LARGEST_SQUARE)
    np.testing.assert_array_equal(found[..., 0], [[0, 20, 60, 80]] * 4)


def test_colours_become_luminance_and_grey_becomes_three_equal_channels():
    colours = np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]], np.uint8)
    # ITU-R 601: 0.299 red + 0.587 green + 0.114 blue.
    found = fit(Image.fromarray(colours), 2, 1, 0)
    np.testing.assert_array_equal(found[..., 0], [[76, 150], [29, 255]])
    found = fit(Image.fromarray(PIXELS), 4, 3, 0)
    np.testing.assert_array_equal(found, np.repeat(PIXELS[..., None], 3, axis=-1))
    np.testing.assert_array_equal(fit(Image.fromarray(colours), 2, 3, 0), colours)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"is 4x4, not 8x8; set data.crop_size"):
        fit(Image.fromarray(PIXELS), 8, 1, 0)
    with pytest.raises(ValueError, match="is 4x4, smaller than data.crop_size=5"):
        fit(Image.fromarray(PIXELS), 4, 1, 5)
