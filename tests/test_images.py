"""Bytes as floats: centring, dequantization, flips."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax import images as images_


def test_prepare_dequantizes_and_flips_images():
    n = 400
    keys = jax.random.split(jax.random.key(0), n)
    images = np.broadcast_to(
        np.array([0, 51, 102, 255], np.uint8)[None, None, :, None], (n, 1, 4, 1)
    )
    plain = images_.prepare(keys, images, random_flip=False, dequantize=False)
    plain = np.asarray(plain)
    np.testing.assert_allclose(plain, images / np.float32(255), rtol=1e-6)
    spread = np.asarray(images_.prepare(keys, images, random_flip=False, dequantize=True))
    offset = spread * 256 - images
    assert offset.min() >= 0 and offset.max() <= 1
    # A uniform variable's mean over m draws has standard error sqrt(1 / (12 m)).
    assert abs(offset.mean() - 0.5) < 4 * np.sqrt(1 / 12 / offset.size)
    flipped = np.asarray(images_.prepare(keys, images, random_flip=True, dequantize=False))
    mirrored = flipped[:, 0, 0, 0] == 1
    np.testing.assert_allclose(flipped[mirrored], plain[mirrored][:, :, ::-1])
    np.testing.assert_allclose(flipped[~mirrored], plain[~mirrored])
    assert abs(mirrored.mean() - 0.5) < 4 * np.sqrt(0.25 / n)


def test_to_float_centres_images_only_if_asked():
    images = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
    for centered, expected in ((False, [0, 0.2, 1]), (True, [-1, -0.6, 1])):
        found = images_.to_float(images, centered=centered).ravel()
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_dequantize_spreads_each_byte_over_its_cell():
    images = jnp.arange(256, dtype=jnp.uint8).reshape(1, 256).repeat(100, axis=0)
    keys = jax.random.split(jax.random.key(0), 100)
    x = images_.dequantize(keys, images)
    assert x.dtype == jnp.float32
    np.testing.assert_array_equal(jnp.floor(256 * x), images)
    u = np.asarray(256 * x - images)
    # Four standard errors of a uniform's mean and variance.
    assert abs(u.mean() - 1 / 2) < 4 * math.sqrt(1 / 12 / u.size)
    assert abs(u.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / u.size)
    np.testing.assert_array_equal(images_.dequantize(keys[3:5], images[3:5]), x[3:5])
    assert np.unique(u[:, 0]).size > 95  # each example has its own noise


def test_uncenter_inverts_center():
    x = np.asarray([0.0, 0.25, 1.0], np.float32)
    np.testing.assert_array_equal(images_.center(x), [-1, -0.5, 1])
    np.testing.assert_array_equal(images_.uncenter(images_.center(x)), x)
    np.testing.assert_array_equal(images_.center(x, False), x)
    np.testing.assert_array_equal(images_.uncenter(x, False), x)
    assert (images_.width(True), images_.width(False)) == (2.0, 1.0)


def test_prepare_centres_images_only_if_asked():
    keys, options = jax.random.split(jax.random.key(0), 2), {"random_flip": False}
    images = np.asarray([0, 255], np.uint8).reshape(2, 1, 1, 1)
    for dequantize in (False, True):
        plain = images_.prepare(keys, images, dequantize=dequantize, **options)
        centred = images_.prepare(keys, images, dequantize=dequantize, centered=True, **options)
        np.testing.assert_allclose(centred, 2 * plain - 1, atol=1e-6)


def test_prepare_treats_floats_like_the_equivalent_bytes():
    keys = jax.random.split(jax.random.key(0), 4)
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 2), dtype=np.uint8)
    for centered in (False, True):
        options = {"random_flip": True, "dequantize": False, "centered": centered}
        floats = images_.prepare(keys, images / np.float32(255), **options)
        np.testing.assert_allclose(floats, images_.prepare(keys, images, **options), atol=1e-6)
