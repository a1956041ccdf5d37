"""Tests the conversion between the data's units, [0, 1] and pictures."""

import numpy as np

from ncsn_jax.app import units


def test_bytes_are_divided_by_255_and_restored():
    images = np.arange(256, dtype=np.uint8)
    x = units.to_unit(images, ())
    np.testing.assert_array_equal(x, images / np.float32(255))
    assert x.dtype == np.float32
    np.testing.assert_array_equal(units.from_unit(x, ()), images)
    assert units.to_input(images, ()) is images and units.to_picture(images, ()) is images


def test_floats_are_mapped_from_their_range_and_restored_even_outside_it():
    images = np.array([260.0, 275.0, 320.0, 350.0, 230.0])
    x = units.to_unit(images, (260, 320))
    np.testing.assert_allclose(x, [0, 0.25, 1, 1.5, -0.5], rtol=1e-7)
    back = units.from_unit(x, (260, 320))
    assert x.dtype == back.dtype == units.dtype((260, 320)) == np.float32
    np.testing.assert_array_equal(back, images)
    np.testing.assert_array_equal(units.to_picture(images, (260, 320)), [0, 64, 255, 255, 0])


def test_a_narrow_range_far_from_zero_keeps_its_precision():
    """In float32, values near 1e6 are 1/16 apart."""
    images = 1e6 + np.array([0.0, 0.01, 0.02])
    np.testing.assert_allclose(units.to_unit(images, (1e6, 1e6 + 0.02)), [0, 0.5, 1], atol=1e-7)
