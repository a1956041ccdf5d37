"""The blocks of U-Nets against the original implementation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ncsn_jax.convert import names
from ncsn_jax.models import layers, resampling, unet
from tests.models.comparison import assert_close, nhwc, part, run

TAPS = (1, 3, 3, 1)


@pytest.mark.parametrize(
    ("name", "module", "layer"),
    [
        ("biggan_same", unet.ResnetBlock(8, skip_rescale=True), "middle_0"),
        ("biggan_widen", unet.ResnetBlock(12, skip_rescale=True), "middle_0"),
        ("biggan_up_fir", unet.ResnetBlock(8, True, "up", TAPS, True), "middle_0"),
        ("biggan_down_fir", unet.ResnetBlock(8, True, "down", TAPS, True), "middle_0"),
        ("biggan_up_naive", unet.ResnetBlock(8, True, "up", None, True), "middle_0"),
        ("biggan_down_naive", unet.ResnetBlock(8, True, "down", None, True), "middle_0"),
        ("ddpm_block_widen", unet.ResnetBlock(12, False), "middle_0"),
        ("attn", unet.Attention(skip_rescale=True), "middle_attention"),
        ("NIN", layers.Dense(6), None),
        ("Conv2d_down", resampling.SmoothedDownConv(5, TAPS), None),
        ("Downsample_conv", layers.Conv(8, stride=2, padding=(0, 1)), "down0_halving"),
    ],
)
def test_layer_matches_the_original(golden, name, module, layer):
    g = golden("layers_pp")
    inputs = [nhwc(a) if a.ndim == 4 else a for a in part(g, f"in/{name}/").values()]
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    resblock_type = "ddpm" if name == "ddpm_block_widen" else "biggan"
    state, params = part(g, f"state/{name}/"), {}
    for path in traverse_util.flatten_dict(shapes):
        if layer:
            key = names.ncsnpp_name((layer, *path[1:]), resblock_type)
        else:
            leaves = {"kernel": "W", "bias": "b"} if name == "NIN" else {"kernel": "weight"}
            key = leaves.get(path[-1], path[-1])
        array = state.pop(key)
        params[path] = array.transpose(np.argsort(names.torch_axes(key, array.ndim)))
    assert not state
    found = run(module.apply, traverse_util.unflatten_dict(params), *inputs)
    assert_close(found, nhwc(g[f"out/{name}"]))


def test_dropout_drops_its_share_and_keeps_the_mean():
    rate, size = 0.3, 40_000
    found = np.asarray(unet.drop_out(jax.random.key(0), jnp.ones((4, size // 4)), rate))
    assert set(np.unique(found)) == {0.0, np.float32(1 / (1 - rate))}
    assert abs(np.mean(found == 0) - rate) < 4 * math.sqrt(rate * (1 - rate) / size)
