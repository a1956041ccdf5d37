"""Compares `--mode=nearest` with a search over every training image."""

import os
import shutil

import numpy as np
import pytest

import run_lib
from ncsn_jax.app import build, copies, storage
from ncsn_jax.app.data import Images
from ncsn_jax.errors import UserError
from tests.app.modes import runs


def test_the_nearest_images_are_found_in_order(monkeypatch):
    monkeypatch.setattr(copies, "_ELEMENTS", 7 * 48)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
    queries = rng.integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    queries[2] = images[31]
    images[35:50] = images[20]  # more duplicates than requested, across several blocks
    queries[4] = images[20]
    indices, distances = copies.find_nearest(queries, images, 6)
    every = np.linalg.norm(
        queries.reshape(5, 1, -1).astype(float) - images.reshape(1, 50, -1).astype(float), axis=2
    )
    np.testing.assert_array_equal(indices, np.argsort(every, axis=1, kind="stable")[:, :6])
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :6] / 255, rtol=1e-12)
    assert (indices[2, 0], distances[2, 0]) == (31, 0.0)


def test_samples_are_compared_with_every_training_image(ladder_run):
    config = runs.ladder_config(**{"sampling.name": "near"})
    run_lib.nearest(config, ladder_run)
    directory = f"{ladder_run}/samples/step_{runs.STEP}_near"
    samples, images = runs.read(directory, "samples.npz")["samples"], build.load_images(config)
    assert len(samples) == 5
    difference = samples[:, None] / 255.0 - np.asarray(images)[None] / 255.0
    distances = np.linalg.norm(difference.reshape(5, len(images), -1), axis=2)
    found = runs.read(directory, "nearest.npz")
    np.testing.assert_array_equal(found["indices"], np.argsort(distances, axis=1)[:, :6])
    np.testing.assert_allclose(found["distances"], np.sort(distances, axis=1)[:, :6])
    config.sampling.num_samples = 2  # of the existing ones
    run_lib.nearest(config, ladder_run)
    fewer = runs.read(directory, "nearest.npz")["indices"]
    np.testing.assert_array_equal(fewer, found["indices"][:2])


def test_every_requested_sample_is_compared(ladder_run, chains, monkeypatch):
    """Training images are compared in blocks of 97; the samples are noise."""
    monkeypatch.setattr(copies, "_DISTANCES", 97 * 103 + 1)
    config = runs.ladder_config(
        **{"sampling.num_samples": 103, "sampling.batch_size": 60, "sampling.preview_samples": 102},
        **{"sampling.name": "many"},
    )
    run_lib.nearest(config, ladder_run)
    assert [call["indices"] for call in chains] == [list(range(60)), list(range(60, 103))]
    runs.assert_ema(chains[0]["params"], config, ladder_run)
    directory = f"{ladder_run}/samples/step_{runs.STEP}_many"
    written = [
        "cost.json",
        "grid.png",
        "nearest.npz",
        "nearest.png",
        "samples.npz",
        "settings.json",
    ]
    assert sorted(os.listdir(directory)) == written
    samples = np.stack([runs.drawn(i) for i in range(103)])
    images = np.asarray(build.load_images(config, "train"))
    squares = np.square(samples.reshape(103, 1, 64) / 255 - images.reshape(1, -1, 64) / 255)
    distances = np.sqrt(squares.sum(axis=2))
    nearest_six = np.argsort(distances, axis=1, kind="stable")[:, :6]
    found = runs.read(directory, "nearest.npz")
    assert found.keys() == {"indices", "distances"}
    np.testing.assert_array_equal(found["indices"], nearest_six)
    expected = np.take_along_axis(distances, nearest_six, axis=1)
    np.testing.assert_allclose(found["distances"], expected, rtol=1e-6)
    rows = [[samples[i], *images[nearest_six[i]]] for i in range(102)]
    runs.assert_shows(f"{directory}/nearest.png", rows)
    log = storage.read(f"{ladder_run}/log.txt").decode()
    first = expected[:, 0]
    numbers = f"smallest {first.min():.3g}, median {np.median(first):.3g}"
    assert f"distance to the nearest of 1500 training images: {numbers}; wrote" in log


def test_few_training_images_are_all_neighbours_and_different_images_are_refused(
    ladder_run, chains, tmp_path, monkeypatch
):
    workdir = str(shutil.copytree(ladder_run, tmp_path / "run"))
    config = runs.ladder_config(**{"sampling.name": "few", "sampling.preview_samples": 2})
    images = Images(np.asarray(build.load_images(config))[:4], identity="of four")
    monkeypatch.setattr(build, "load_images", lambda config, *_: images)
    with pytest.raises(UserError, match="holds a run on different images: files is"):
        run_lib.nearest(config, workdir)
    os.remove(f"{workdir}/images.json")
    run_lib.nearest(config, workdir)
    assert not os.path.exists(f"{workdir}/images.json")  # only training writes it
    directory = f"{workdir}/samples/step_{runs.STEP}_few"
    found = runs.read(directory, "nearest.npz")["indices"]
    np.testing.assert_array_equal(np.sort(found, axis=1), [[0, 1, 2, 3]] * 5)
    rows = [[runs.drawn(i), *images[found[i]]] for i in range(2)]
    runs.assert_shows(f"{directory}/nearest.png", rows)
