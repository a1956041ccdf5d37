"""Parameters to and from PyTorch's names, and rejected input."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ncsn_jax import convert, models
from tests.models.comparison import part, run
from tests.models.test_ncsnpp import DISCRETE, LADDER
from tests.models.test_ncsnpp import NETWORKS as NCSNPP

NETWORKS = {
    "ncsn_v1_28": lambda g: models.NCSN(8, 10),
    "ncsn_v1_32": lambda g: models.NCSN(8, 10),
    "ncsnv2_32": lambda g: models.NCSNv2(8, g["state/sigmas"]),
    "ncsnv2_deeper_32": lambda g: models.NCSNv2Deeper(4, g["state/sigmas"]),
    "ncsnv2_deepest_32": lambda g: models.NCSNv2Deepest(4, g["state/sigmas"]),
    "ncsn_simple_16": lambda g: models.SimplifiedNCSN(8, g["in/sigmas"]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip_is_bit_identical(golden, name):
    g = golden(name)
    model = NETWORKS[name](g)
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    back = convert.to_torch(convert.from_torch(state, model), model)
    assert back.keys() == state.keys()
    for key, array in state.items():
        assert back[key].dtype == array.dtype and back[key].flags.c_contiguous
        np.testing.assert_array_equal(back[key], array)


def test_ladders_that_differ_from_the_model_are_rejected(golden):
    g = golden("ncsnv2_32")
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    with pytest.raises(ValueError, match=r"sigmas has shape \[\d+\], expected \[7\]"):
        convert.from_torch(state, models.NCSNv2(8, np.ones(7, np.float32)))
    with pytest.raises(ValueError, match=r"sigmas\[0\] is .*, expected .*\(both of shape"):
        convert.from_torch(state, models.NCSNv2(8, 2 * g["state/sigmas"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.update({"end_conv.bias": np.ones(3, complex)}),
            "has type complex128, expected",
        ),
        (
            lambda s: s.update({"end_conv.bias": np.full(3, 0.1)}),
            "values that are not finite or not exact in float32",
        ),
        (lambda s: s.update({"end_conv.bias": np.full(3, np.nan)}), "values that are not finite"),
        (
            lambda s: s.update({"begin_conv.weight": np.ones(3)}),
            r"has shape \[3\], expected \[8, 3",
        ),
        (
            lambda s: s.update({"module.end_conv.bias": np.ones(3)}),
            "appear twice, with and without",
        ),
    ],
)
def test_arrays_that_cannot_be_converted_exactly_are_rejected(golden, change, message):
    g = golden("ncsn_v1_32")
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    change(state)
    with pytest.raises(ValueError, match=message):
        convert.from_torch(state, models.NCSN(8, 10))


def test_parameters_of_another_network_are_rejected(golden):
    g = golden("ncsn_v1_32")
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    params = convert.from_torch(state, models.NCSN(8, 10))
    other = models.SimplifiedNCSN(8, np.ones(10, np.float32))
    with pytest.raises(ValueError, match="normalizer/embedding|SimplifiedNCSN expects"):
        convert.to_torch(params, other)
    with pytest.raises(ValueError, match=r"NCSN expects"):
        convert.to_torch(params["params"], models.NCSN(8, 10))
    with pytest.raises(ValueError, match="model must be a network of ncsn_jax.models, got Dense"):
        convert.to_torch(params, nn.Dense(3))
    with pytest.raises(ValueError, match="state_dict must map names to arrays, got list"):
        convert.from_torch([state], models.NCSN(8, 10))


def test_plain_normalization_keeps_the_names_and_has_a_smaller_table():
    model = models.NCSN(4, 10, "instance")
    image, level = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, int)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, level)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), shapes)
    state = convert.to_torch(params, model)
    assert state["normalizer.embed.weight"].shape == (10, 8)
    assert (
        state.keys()
        == convert.to_torch(
            jax.tree.map(
                lambda shape: np.zeros(shape.shape, np.float32),
                traverse_util.unflatten_dict(convert.parameter_shapes(models.NCSN(4, 10), 1)),
            ),
            models.NCSN(4, 10),
        ).keys()
    )
    back = convert.from_torch(state, model)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    # Each level has its own row.
    levels = np.array([0, 9], np.int32)
    first, last = run(model.apply, params, np.full((2, 8, 8, 1), 0.3, np.float32), levels)
    assert not np.allclose(first, last)


@pytest.mark.parametrize(
    ("change", "channels", "message"),
    [
        (lambda s: s.update({5: np.ones(3)}), None, "names must be strings, got 5"),
        (lambda s: None, 2.5, "channels must be from 1 to 1000, got 2.5"),
        (lambda s: None, -1, "channels must be from 1 to 1000, got -1"),
    ],
)
def test_invalid_names_and_channels_are_rejected(golden, change, channels, message):
    g = golden("ncsn_v1_32")
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    change(state)
    with pytest.raises(ValueError, match=message):
        convert.from_torch(state, models.NCSN(8, 10), channels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("res2.0.conv2.conv.bias"),
            r"res2.0.conv2.conv.bias is missing; NCSN expects shape \[16\]",
        ),
        (
            lambda s: s.update(extra=np.zeros(3)),
            r"extra with shape \[3\] is not a parameter of NCSN",
        ),
        (
            lambda s: s.update({"end_conv.weight": np.zeros((2, 8, 3, 3))}),
            r"end_conv.weight has shape \[2, 8, 3, 3\], expected \[1, 8, 3, 3\]",
        ),
    ],
)
def test_arrays_that_do_not_fit_ncsn_are_named(golden, change, message):
    g = golden("ncsn_v1_28")
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    change(state)
    with pytest.raises(ValueError, match=message):
        convert.from_torch({f"module.{k}": v for k, v in state.items()}, models.NCSN(8, 10))


@pytest.mark.parametrize("name", NCSNPP)
def test_ncsnpp_round_trip_is_bit_identical_and_exports_a_ladder(golden, name):
    g = golden(name)
    state = part(g, "state/")
    model = NCSNPP[name].clone(sigmas=state["sigmas"])
    params = convert.from_torch({f"module.{key}": a for key, a in state.items()}, model)
    back = convert.to_torch(params, model)
    assert back.keys() == state.keys()
    for key, array in state.items():
        assert back[key].dtype == array.dtype and back[key].flags.c_contiguous
        np.testing.assert_array_equal(back[key], array)
    # The original always has a ladder of this length, used or not, and needs it to load a state dict.
    without = model.clone(sigmas=None, scale_by_sigma=False)
    for ladder, expected in ((None, DISCRETE), (LADDER, LADDER)):
        back = convert.to_torch(params, without, ladder)
        assert back.keys() == state.keys()
        np.testing.assert_allclose(back["sigmas"], expected, rtol=1e-6)  # of logarithms in float32
    with pytest.raises(ValueError, match=r"sigmas must have shape \[L\], got \[\]"):
        convert.to_torch(params, without, 50.0)


def test_arrays_that_do_not_fit_ncsnpp_are_named(golden):
    model, state = NCSNPP["ncsnpp_ddpm_16"], part(golden("ncsnpp_ddpm_16"), "state/")
    params = convert.from_torch(state, model)
    with pytest.raises(ValueError, match=r"sigmas\[0\] is 50, expected 100"):
        convert.from_torch(state, model.clone(sigmas=2 * state["sigmas"]))
    with pytest.raises(ValueError, match=r"all_modules\..*(expected|expects shape) \["):
        convert.from_torch(state, model.clone(num_res_blocks=2))
    with pytest.raises(
        ValueError, match=r"all_modules\.\d+\.bias is missing; NCSNpp expects shape"
    ):
        convert.from_torch({}, model)
    with pytest.raises(ValueError, match="NCSNpp expects"):
        convert.to_torch(params, model.clone(features=8))
