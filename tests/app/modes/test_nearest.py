import numpy as np

from ncsn_jax.app.modes import nearest


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
