"""Embeddings of the noise level against the original implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax.models import embeddings
from tests.models.comparison import assert_close, run


@pytest.mark.parametrize("width", [15, 16])
def test_positional_embedding_matches_the_original(golden, width):
    g = golden("layers_pp")
    time = jnp.asarray(g[f"in/posemb_{width}/0"])
    assert_close(embeddings.positional_embedding(time, width), g[f"out/posemb_{width}"])


def test_fourier_embedding_matches_the_original(golden):
    g = golden("layers_pp")
    frequencies = g["state/fourier/W"]
    module = embeddings.FourierEmbedding(len(frequencies), 16.0)
    # The original takes the logarithm outside this layer.
    found = module.apply({"params": {"frequencies": frequencies}}, jnp.exp(g["in/fourier/0"]))
    assert_close(found, g["out/fourier"], 5e-5)


def test_frequencies_have_no_gradient():
    module = embeddings.FourierEmbedding(2, 16.0)
    params = {"params": {"frequencies": jnp.asarray([0.3, 2.0])}}
    loss = lambda params, sigma: module.apply(params, sigma).sum()
    gradient, by_sigma = run(jax.grad(loss, (0, 1)), params, np.array([0.5, 3.0], np.float32))
    assert not np.any(gradient["params"]["frequencies"]) and np.all(by_sigma != 0)
