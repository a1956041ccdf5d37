import functools

import jax
import numpy as np
import pytest

from examples import figure3, mlp, other_libraries
from ncsn_jax import losses, scores


def test_scores_of_all_libraries_give_the_same_samples():
    functions = other_libraries.score_functions()
    pytest.importorskip("equinox")
    assert set(functions) == {"closed form", "flax linen", "flax nnx", "equinox"}
    found = {name: np.asarray(other_libraries.sample(f)) for name, f in functions.items()}
    for samples in found.values():
        # 4,000 numbers of variance 1, and a little for the last level's noise and finite steps.
        assert abs(samples.std() - 1) < 4 / np.sqrt(2 * samples.size) + 0.02
        np.testing.assert_allclose(samples, found["closed form"], atol=2e-4)


def test_the_small_network_learns_the_score_of_a_mixture():
    """By exact score matching; where the data is, the error is a fraction of the score."""
    mixture = scores.gaussian_mixture([[-1.0, 0.0], [1.0, 0.0]], [0.7, 0.7], [0.5, 0.5])

    def loss(key, score_fn, x):
        del key
        return losses.score_matching(score_fn, x, jax.numpy.ones(len(x)))

    params = mlp.init(jax.random.key(0), (2, 32, 2))
    sample = functools.partial(mixture.sample, n=256)
    params, _ = mlp.train(jax.random.key(1), params, loss, sample, 1500, learning_rate=3e-3)
    x = mixture.sample(jax.random.key(2), 2000)
    small = jax.numpy.full(len(x), 1e-3)
    true = mixture.score(x, small)
    error = np.square(mlp.apply(params, x, small) - true).sum(axis=1).mean()
    assert error < 0.05 * np.square(true).sum(axis=1).mean()


def test_figure_3_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(figure3, "COUNT", 50)
    figure3.main(str(tmp_path / "figure.png"))
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
