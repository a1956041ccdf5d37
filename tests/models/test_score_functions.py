"""The score functions of networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import models, sde, sigmas
from ncsn_jax.app import build
from tests import tiny
from tests.running import load_diffusion_config


class Network:
    """The network F(x, label) behind the authors' stored values."""

    def apply(self, params, x, label):
        label = label[:, None, None, None]
        return -0.7 * x + 0.2 * jnp.sin(3 * x) + 0.01 * label * jnp.cos(x)


@pytest.mark.parametrize(
    ("name", "process"),
    [("ve", sde.VE(0.01, 50.0)), ("vp", sde.VP(0.1, 20.0)), ("subvp", sde.SubVP(0.1, 20.0))],
)
def test_time_score_fn_matches_the_authors(name, process, golden):
    figures = golden("sde")
    x, t = jnp.asarray(figures["in/x"]), jnp.asarray(figures["in/t"])
    kinds = [("score_cont", None)] + ([] if name == "subvp" else [("score_disc", 100)])
    for kind, num_levels in kinds:
        expected = figures[f"out/{name}/{kind}"]
        score = models.time_score_fn(Network(), None, process, num_levels=num_levels)(x, t)
        scale = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
        # A few float32 roundings of labels up to 999 and exponents up to log(5000).
        np.testing.assert_allclose(score / scale, expected / scale, atol=5e-6)


def test_times_outside_0_to_1_use_the_nearest_level():
    """A solver that adds noise may go above t = 1."""
    process = sde.VE(0.01, 50.0)
    labels = []

    class Record(Network):
        def apply(self, params, x, label):
            labels.append(np.asarray(label))
            return x

    score_fn = models.time_score_fn(Record(), None, process, num_levels=100)
    score_fn(jnp.ones((3, 2, 2, 1)), jnp.asarray([1.1, 1.0, -0.1]))
    np.testing.assert_array_equal(labels[0], [0, 0, 99])


def test_dropout_with_a_key_per_example_does_not_depend_on_the_batch(monkeypatch):
    monkeypatch.setitem(build.MODELS, "ncsnpp", tiny.TinyDiffusion)
    config = load_diffusion_config()
    model = build.make_model(config)
    state = build.make_init(config)(jax.random.key(0))
    # The last convolutions start at almost zero, which would hide dropout.
    noise = jax.random.split(jax.random.key(1), len(jax.tree.leaves(state.params)))
    noise = jax.tree.unflatten(jax.tree.structure(state.params), list(noise))
    params = jax.tree.map(lambda p, k: p + 0.1 * jax.random.normal(k, p.shape), state.params, noise)
    keys = jax.random.split(jax.random.key(2), 4)
    x, t = jax.random.normal(jax.random.key(3), (4, 8, 8, 1)), jnp.full(4, 0.5)
    process = build.make_sde(config)

    @jax.jit
    def score(x, t, keys):
        return models.time_score_fn(model, params, process, dropout_keys=keys)(x, t)

    whole = score(x, t, keys)
    assert model.dropout == 0.1
    without = models.time_score_fn(model, params, process)(x, t)
    scale = np.abs(whole).max()
    assert np.abs(whole - without).max() / scale > 1e-2
    for i in range(2):
        part = score(x[i::2], t[i::2], keys[i::2])
        np.testing.assert_allclose(part / scale, whole[i::2] / scale, atol=1e-5)


def test_levels_of_finds_the_nearest_level():
    ladder = sigmas.geometric(10.0, 0.01, 7)
    np.testing.assert_array_equal(models.levels_of(ladder, ladder), np.arange(7))
    between = jnp.asarray([100.0, float(ladder[2]) * 1.1, 1e-9])
    np.testing.assert_array_equal(models.levels_of(between, ladder), [0, 2, 6])
