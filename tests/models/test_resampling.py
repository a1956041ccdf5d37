"""Doubling and halving against the original implementation."""

import jax.numpy as jnp
import pytest

from ncsn_jax.models import resampling
from tests.models.comparison import assert_close, nhwc

TAPS = (1, 3, 3, 1)
LOPSIDED = (1, 2, 4, 1)  # shows that the filter is flipped


@pytest.mark.parametrize(
    ("name", "function", "taps"),
    [
        ("fir_up", resampling.upsample, TAPS),
        ("fir_up_asym", resampling.upsample, LOPSIDED),
        ("naive_up", resampling.upsample, None),
        ("fir_down", resampling.downsample, TAPS),
        ("fir_down_asym", resampling.downsample, LOPSIDED),
        ("naive_down", resampling.downsample, None),
    ],
)
def test_resampling_matches_the_original(golden, name, function, taps):
    g = golden("layers_pp")
    assert_close(function(jnp.asarray(nhwc(g[f"in/{name}/0"])), taps), nhwc(g[f"out/{name}"]))
