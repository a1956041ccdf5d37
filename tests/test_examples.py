import functools
import sys

import jax
import numpy as np
import pytest
from scipy.stats import norm

import examples
from benchmarks import digits_quality
from examples import figure3, mlp, other_libraries, posterior_of_a_mixture
from ncsn_jax import inverse, losses, scores


def test_all_libraries_give_the_same_samples():
    functions = other_libraries.score_functions()
    pytest.importorskip("equinox")
    assert set(functions) == {"closed form", "flax linen", "flax nnx", "equinox"}
    found = {name: np.asarray(other_libraries.sample(f)) for name, f in functions.items()}
    for samples in found.values():
        # The error of 4,000 numbers of variance 1, plus the last level's noise and the finite steps.
        assert abs(samples.std() - 1) < 4 / np.sqrt(2 * samples.size) + 0.02
        np.testing.assert_allclose(samples, found["closed form"], atol=2e-4)


def test_mlp_learns_the_score_of_a_mixture():
    """Exact score matching leaves an error that is a fraction of the score where the data is."""
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


def test_figure_3_writes_a_png(tmp_path, monkeypatch):
    monkeypatch.setattr(figure3, "COUNT", 50)
    figure3.main(str(tmp_path / "figure.png"))
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_example_on_a_posterior_prints_its_weights(tmp_path, monkeypatch, capsys):
    """A sum over a fine grid of the hidden coordinate knows the exact ones."""
    monkeypatch.setattr(posterior_of_a_mixture, "COUNT", 200)
    monkeypatch.setattr(posterior_of_a_mixture, "STEPS_PER_LEVEL", 5)
    posterior_of_a_mixture.main(str(tmp_path / "figure.png"))
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:-1]]
    found = {name: np.asarray(row, float) for name, *row in rows if "±" not in row}
    given = {name: np.asarray(row[::3], float) for name, *row in rows if "±" in row}
    assert list(given) == list(inverse.METHODS)

    mixture = scores.gaussian_mixture([[-4, -1], [0, 0], [4, 1]], [0.7, 0.3, 0.6], [0.4, 0.2, 0.4])
    hidden, measured = np.meshgrid(np.linspace(-9, 9, 301), np.linspace(-4, 5, 151))
    x = np.stack([hidden, measured], -1).reshape(-1, 2)
    density = np.exp(mixture.log_prob(x, 0.0)) * norm.pdf(x[:, 1], 0.5, 0.5)
    mode = np.searchsorted([-2, 2], x[:, 0])
    exact = np.bincount(mode, density) / density.sum()
    np.testing.assert_allclose(found["exact"], exact, atol=2e-3)
    # The error of 200 samples is 0.03; each method errs as its docstring says.
    assert given["dps"][0] < 0.05 and given["langevin"][0] > 0.22
    np.testing.assert_allclose(given["mmps"], exact, atol=0.06 + 0.1)


@pytest.mark.parametrize("name", ["there.png", "no/x.png", "x", "", "two\nlines", "\udcff.jpg"])
def test_invalid_output_paths_are_rejected_with_one_line(name, tmp_path, monkeypatch):
    (tmp_path / "there.png").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["figure", name])
    with pytest.raises(SystemExit) as refused:
        examples.output_path("Draws.", "figure.png")
    assert refused.value.code.isprintable() and refused.value.code.startswith(f"error: {name!r}")


@pytest.mark.parametrize(
    "content", [{"samples": np.zeros((3, 5), np.uint8)}, {"x": np.zeros(3)}, b"PK\3\4", None]
)
def test_files_without_samples_are_rejected_with_one_line(content, tmp_path):
    path = tmp_path / "samples.npz"
    if isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as refused:
        digits_quality.main(str(path))
    assert refused.value.code.isprintable() and str(path) in refused.value.code


def test_real_digits_are_recognised_and_noise_is_not():
    noise = np.random.default_rng(0).uniform(size=(500, 64))
    share, real, _ = digits_quality.recognised(noise)
    assert share < 0.01 and 0.85 < real < 0.95
