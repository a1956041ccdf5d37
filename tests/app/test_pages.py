"""The Python of README.md and of the pages in docs, and the examples that open a run or train a network."""

import importlib.util
import os
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from examples import two_moons, use_a_run
from ncsn_jax import models, scores
from tests.running import ROOT


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


class Beginning(nn.Module):
    """A network whose score is 0, as that of a new NCSN is about."""

    @nn.compact
    def __call__(self, x, level):
        return nn.Dense(1, kernel_init=nn.initializers.zeros)(x)


@pytest.fixture
def beside_a_run(uninterrupted, tmp_path, monkeypatch):
    """A directory with a run, in which a user may work."""
    (tmp_path / "runs").mkdir()
    os.symlink(uninterrupted(1)[0], tmp_path / "runs" / "digits")
    np.savez(tmp_path / "weights.npz", **{"model/w": np.zeros(3, np.float32)})
    monkeypatch.chdir(tmp_path)


def test_readme_does_what_it_says(beside_a_run, capsys, monkeypatch):
    # The network of two convolutions takes a second to compile. It begins with scores near 0.
    monkeypatch.setattr(models, "NCSN", lambda features, num_levels: Beginning())
    names = {}
    for block in blocks("README.md"):
        if "import numpy as np, torch" not in block or importlib.util.find_spec("torch"):
            exec(block, names)
        if "load_run" in block:
            assert names["images"].shape == (16, 8, 8, 1) and names["score"].shape == (16, 8, 8, 1)
            assert names["nats"].shape == (16,) and np.isfinite(names["nats"]).all()
    share, evaluations, loss = map(float, capsys.readouterr().out.splitlines())
    assert abs(share - 0.2) < 0.03  # 10,000 samples; the sampler's bias is more than their error
    assert evaluations == 35
    assert abs(loss / 392 - 1) < 4 * np.sqrt(2 / (8 * 784))  # half a chi square of 784, eight times
    assert names["images"].shape == (8, 28, 28, 1) and names["run"].step == 60
    nats = names["nats"]
    assert nats.shape == (1000,) and np.isfinite(nats).all()


def test_a_run_denoises_judges_and_completes(beside_a_run, capsys):
    use_a_run.main("runs/digits", "x.png")
    assert "Run(tiny, " in capsys.readouterr().out
    picture = np.asarray(Image.open("x.png"))
    scale = picture.shape[1] // (8 * 9 + 1)
    tiles = picture[::scale, ::scale][1:, 1:].reshape(5, 9, 8, 9)[:, :8, :, :8].swapaxes(1, 2)
    images, noisy, _, known, completed = tiles.astype(int)
    np.testing.assert_array_equal(known[:, :4], images[:, :4])
    assert np.all(abs(known[:, 4:] - 128) <= 1)
    assert abs(completed[:, :4] - images[:, :4]).max() < abs(noisy - images).max()


def test_two_moons_are_learnt(tmp_path, monkeypatch, capsys):
    """In a few steps, the density of the data comes near to what it is without learning the shape."""
    monkeypatch.setattr(two_moons, "COUNT", 50)
    two_moons.main(str(tmp_path / "moons.png"), num_steps=150)
    assert (tmp_path / "moons.png").read_bytes().startswith(b"\x89PNG")
    nats = float(re.search(r"data: (\S+) nats", capsys.readouterr().out)[1])
    x = two_moons.moons(jax.random.key(0), 1000)
    normal = scores.gaussian_mixture([x.mean(0)], [float(x.std())], [1.0])
    baseline = float(normal.log_prob(x, jnp.full(1000, 1e-3)).mean())
    assert nats > baseline + 0.5
