"""`--mode=nearest` against a comparison with every training image."""

import numpy as np
from PIL import Image

import run_lib
from ncsn_jax.app import build
from ncsn_jax.app.modes import nearest
from tests.app.modes import runs


def test_finds_the_nearest_of_all_in_order(monkeypatch):
    monkeypatch.setattr(nearest, "_ELEMENTS", 7 * 48)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
    queries = rng.integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    queries[2] = images[31]
    images[35:50] = images[20]  # more alike than are asked for, over several blocks
    queries[4] = images[20]
    indices, distances = nearest.find_nearest(queries, images, 6)
    every = np.linalg.norm(
        queries.reshape(5, 1, -1).astype(float) - images.reshape(1, 50, -1).astype(float), axis=2
    )
    np.testing.assert_array_equal(indices, np.argsort(every, axis=1, kind="stable")[:, :6])
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :6] / 255, rtol=1e-12)
    assert (indices[2, 0], distances[2, 0]) == (31, 0.0)


def test_samples_are_shown_beside_their_nearest_training_images(ladder_run):
    config = runs.ladder_config(**{"sampling.name": "near", "sampling.preview_samples": 3})
    run_lib.nearest(config, ladder_run)
    directory = f"{ladder_run}/samples/step_{runs.STEP}_near"
    samples, images = runs.read(directory, "samples.npz")["samples"], build.load_images(config)
    assert len(samples) == 5
    difference = samples[:, None] / 255.0 - np.asarray(images)[None] / 255.0
    distances = np.linalg.norm(difference.reshape(5, len(images), -1), axis=2)
    found = runs.read(directory, "nearest.npz")
    np.testing.assert_array_equal(found["indices"], np.argsort(distances, axis=1)[:, :6])
    np.testing.assert_allclose(found["distances"], np.sort(distances, axis=1)[:, :6])
    with Image.open(f"{directory}/nearest.png") as picture:  # 7 columns, 3 rows of 9 pixels, and 1
        factor = picture.size[0] // 64
        assert picture.size == (64 * factor, 28 * factor)
        row = np.asarray(picture.convert("L"))[::factor, ::factor][1:9]
    np.testing.assert_array_equal(row[:, 1:9], samples[0, ..., 0])
    np.testing.assert_array_equal(row[:, 10:18], images[found["indices"][0, 0], ..., 0])
    config.sampling.num_samples = 2  # of those that are there
    run_lib.nearest(config, ladder_run)
    fewer = runs.read(directory, "nearest.npz")["indices"]
    np.testing.assert_array_equal(fewer, found["indices"][:2])
