"""Augmented images against their labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import augmentation
from tests.models.comparison import run

KEYS = jax.random.split(jax.random.key(0), 2000)
WIDTH, HEIGHT = 20, 16
# Each pixel holds its own coordinates from the centre, (x, y).
X, Y = np.arange(WIDTH) - 9.5, np.arange(HEIGHT) - 7.5
COORDINATES = np.stack(np.meshgrid(X, Y), axis=-1)


@pytest.fixture(scope="module")
def augmented():
    images = jnp.broadcast_to(jnp.float32(COORDINATES), (len(KEYS), HEIGHT, WIDTH, 2))
    augment = lambda keys, x: augmentation.augment(keys, x, probability=0.4)
    return [np.asarray(a) for a in run(augment, KEYS, images)]


def test_images_without_a_label_are_unchanged_and_flips_only_move_pixels(augmented):
    images, labels = augmented
    for flip_x, flip_y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        wanted = [flip_x, flip_y, *[0] * 7]
        found = images[(labels == wanted).all(axis=1)]
        assert len(found) >= 10
        expected = COORDINATES[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


def turn(angle):
    """Returns the matrix that turns (x, y), y downwards, counterclockwise."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def test_images_are_transformed_as_their_labels_say(augmented):
    """A cubic interpolates coordinates exactly, except across the edges, at which they are reflected."""
    size = np.array([WIDTH, HEIGHT])
    compared = 0
    for image, label in zip(*(a[:300] for a in augmented), strict=True):
        a0, a1, a2, cos_1, sin, along, across, a6, a7 = label.astype(float)
        a5, a4 = np.hypot(along, across), np.arctan2(across, along)
        errors = []
        for signed in (a5, -a5):  # one label stands for both
            stretch = turn(a4) @ np.diag([2 ** (0.2 * signed), 2 ** (-0.2 * signed)]) @ turn(-a4)
            forward = stretch @ turn(np.arctan2(sin, cos_1 + 1)) * 2 ** (0.2 * a2)
            forward = forward @ np.diag([1 - 2 * a0, 1 - 2 * a1])
            shift = np.array([a6 * WIDTH / 8, a7 * HEIGHT / 8])
            source = (COORDINATES - shift) @ np.linalg.inv(forward).T
            pixel = (source + (size - 1) / 2) % (2 * (size - 1))
            pixel = np.minimum(pixel, 2 * (size - 1) - pixel)
            inside = ((pixel > 1) & (pixel < size - 2)).all(axis=-1)
            errors.append(np.abs(image - pixel + (size - 1) / 2)[inside].max(initial=0))
        assert min(errors) < 2e-4
        compared += inside.sum()
    assert compared > 0.5 * 300 * WIDTH * HEIGHT


def test_labels_have_the_frequencies_of_the_table(augmented):
    labels = augmented[1]
    chosen = (labels[:, [0, 1, 2, 4, 5, 7]] != 0).mean(axis=0)
    error = 4 * np.sqrt(0.25 / len(KEYS))
    np.testing.assert_allclose(chosen, [0.5, 0.2, 0.4, 0.4, 0.4, 0.4], atol=error)
    assert ((labels[:, 6] != 0).mean() == pytest.approx(0.2, abs=error)) and labels.shape[1] == 9
    for column in (2, 7, 8):  # N(0, 1) where chosen
        assert np.std(labels[:, column]) == pytest.approx(np.sqrt(0.4), abs=0.08)


def test_draws_depend_on_the_example_alone(augmented):
    images = jnp.broadcast_to(jnp.float32(COORDINATES), (3, HEIGHT, WIDTH, 2))
    augment = lambda keys, x: augmentation.augment(keys, x, probability=0.4)
    found, labels = run(augment, KEYS[5:8], images)
    np.testing.assert_allclose(found, augmented[0][5:8], atol=1e-5)
    np.testing.assert_allclose(labels, augmented[1][5:8], atol=1e-6)


def test_malformed_arguments_are_refused():
    x = jnp.zeros((2, 8, 8, 1))
    for given, words in (
        ((KEYS[:2], x, 1.5), "probability must be from 0 to 1, got 1.5"),
        ((KEYS[0], x[0], 0.1), r"images must be \[B, H, W, C\], got shape \(8, 8, 1\)"),
        ((KEYS[:2], x.astype(jnp.uint8), 0.1), "images must be floating point, got uint8"),
    ):
        with pytest.raises(ValueError, match=words):
            augmentation.augment(*given[:2], probability=given[2])
