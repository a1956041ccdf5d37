"""NCSN++ and DDPM++ against the original implementation."""

import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ncsn_jax import convert, models
from ncsn_jax.convert.names import layer_names
from tests.models.comparison import assert_close, nhwc, part, run
from tests.models.test_memory import ROUNDING, equations

VP = {"embedding_type": "positional", "scale_by_sigma": False, "centered": True}
DDPMPP = {**VP, "fir": False, "progressive_input": "none"}
DISCRETE = np.geomspace(50, 0.01, 1000).astype(np.float32)
SKIP = {"progressive": "output_skip", "progressive_input": "input_skip"}
NETWORKS = {
    "ncsnpp_32": models.NCSNpp(16, (1, 2), 1),
    "ncsnpp_ddpmpp_32": models.NCSNpp(8, (1, 2), 1, **DDPMPP),
    "ncsnpp_skip_32": models.NCSNpp(8, (1, 2, 2), 1, **SKIP),
    # The pyramid's second step, and the index of a level for a label.
    "ncsnpp_discrete_16": models.NCSNpp(
        4, (1, 1, 2), 1, (8,), 16, embedding_type="positional", sigmas=DISCRETE
    ),
    # From the original with its upsampling's arguments fixed, which otherwise raises.
    "ncsnpp_ddpm_16": models.NCSNpp(
        4, (1, 2, 1), 1, (8,), 16, **DDPMPP | {"centered": False}, resblock_type="ddpm"
    ),
}


def tiny(**options):
    return models.NCSNpp(4, (1, 2), 1, (4,), 8, **options)


TINY = {
    "ncsnpp": tiny(),
    "ddpmpp": tiny(**DDPMPP),
    "skip": tiny(**SKIP),
    "ddpm": tiny(**DDPMPP, resblock_type="ddpm"),
}
ONE_LEVEL = models.NCSNpp(4, (1,), 1, (), 8)
LADDER = np.geomspace(50, 0.01, 3, dtype=np.float32)
X = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
LABEL = np.array([0.5, 3.0], np.float32)


def parameters(model):
    """Returns parameters without zeros."""
    rng = np.random.default_rng(1)
    drawn = {
        path: (rng.normal(scale=0.3, size=a.shape) + (path[-1] == "gamma")).astype(np.float32)
        for path, a in convert.parameter_shapes(model, X.shape[-1]).items()
    }
    return traverse_util.unflatten_dict(drawn)


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_match_the_original(golden, name):
    g, model = golden(name), NETWORKS[name]
    params = convert.from_torch(part(g, "state/"), model)
    apply = lambda p, x, t: model.apply(
        p, x, t, capture_intermediates=True, mutable=["intermediates"]
    )
    score, captured = run(apply, params, nhwc(g["in/x"]), g["in/t"])
    bound = 5e-5 if model.embedding_type == "fourier" else 1e-5
    assert_close(score, nhwc(g["out/score"]), bound)
    names, compared = layer_names(model), part(g, "out/all_modules.")
    assert len(compared) >= 2
    for number, expected in compared.items():
        found = captured["intermediates"][names[int(number)]]["__call__"][0]
        assert_close(found, nhwc(expected) if expected.ndim == 4 else expected, bound)


LARGE = {"features": 128, "num_res_blocks": 2, "ch_mult": (1, 1, 2, 2, 2, 2, 2), "image_size": 256}
HUGE = {
    "features": 16,
    "num_res_blocks": 1,
    "ch_mult": (1, 2, 4, 8, 16, 32, 32, 32),
    "image_size": 1024,
}


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 62_758_915),  # ve/cifar10_ncsnpp_continuous
        ({"num_res_blocks": 8}, 107_587_075),
        ({"embedding_type": "positional", "sigmas": LADDER}, 62_693_251),  # ve/cifar10_ncsnpp
        ({"embedding_type": "positional", "sigmas": LADDER, "image_size": 64}, 62_693_251),
        (VP, 62_693_251),  # vp and subvp, cifar10_ncsnpp
        ({**VP, "num_res_blocks": 8}, 107_521_411),
        (DDPMPP, 61_804_419),
        ({**DDPMPP, "num_res_blocks": 8}, 106_632_579),
        ({**SKIP, **LARGE}, 65_574_549),
        ({**SKIP, **HUGE}, 105_785_896),
    ],
)
def test_parameter_counts_match_the_published_ones(settings, count):
    model = models.NCSNpp(**settings)
    shapes = convert.parameter_shapes(model, 3)
    assert sum(a.size for a in shapes.values()) == count
    assert {path[1] for path in shapes} == set(layer_names(model))


def test_network_is_initialised_like_the_original():
    model = models.NCSNpp(16, (1,), 1, (), 8)
    params = run(model.init, jax.random.key(0), X, LABEL)
    flat = traverse_util.flatten_dict(params["params"], sep="/")
    bounds = {
        "begin_conv/kernel": math.sqrt(6 / (9 * (3 + 16))),
        "dense_0/kernel": math.sqrt(6 / (32 + 64)),
        "up0_0/conv1/kernel": math.sqrt(6 / (9 * (32 + 16))),
        "up0_0/conv2/kernel": math.sqrt(6e-10 / (9 * (16 + 16))),
        "up0_0/shortcut/kernel": math.sqrt(6 / (32 + 16)),
        "middle_attention/key/kernel": math.sqrt(0.6 / (16 + 16)),
        "middle_attention/output/kernel": math.sqrt(6e-10 / (16 + 16)),
        "end_conv/kernel": math.sqrt(6e-10 / (9 * (16 + 3))),
    }
    for name, bound in bounds.items():
        values = np.asarray(flat[name])
        assert np.abs(values).max() <= bound * (1 + 1e-6)
        # The variance of n uniform values has a relative standard error of sqrt(4 / (5 n)).
        assert abs(values.var() / (bound**2 / 3) - 1) < 4 * math.sqrt(0.8 / values.size), name
    assert all(not a.any() for name, a in flat.items() if name.endswith(("bias", "beta")))
    assert all(np.all(a == 1) for name, a in flat.items() if name.endswith("gamma"))
    frequencies = np.asarray(flat["fourier/frequencies"])
    assert abs(frequencies.std() / 16 - 1) < 4 / math.sqrt(2 * frequencies.size)


def test_dropout_is_random_and_only_active_in_training():
    model = ONE_LEVEL.clone(dropout=0.5)
    params = parameters(model)

    def outputs(params, first, second):
        def trained(key):
            return model.apply(params, X, LABEL, deterministic=False, rngs={"dropout": key})

        return model.apply(params, X, LABEL), trained(first), trained(second)

    keys = jax.random.split(jax.random.key(0))
    plain, first, second = map(np.asarray, run(outputs, params, *keys))
    assert not np.allclose(first, second) and not np.allclose(first, plain)
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        jax.eval_shape(lambda: model.apply(params, X, LABEL, deterministic=False))


def test_the_label_of_an_augmentation_adds_to_the_embedding_without_a_bias():
    without = ONE_LEVEL.clone(embedding_type="fourier_linear", scale_by_sigma=False)
    model = without.clone(augment_features=9)
    params = parameters(model)
    (added,) = set(params["params"]) - set(parameters(without)["params"])
    kernel = params["params"][added]["kernel"]
    assert added == "augment" and kernel.shape == (9, 8)
    plain = {"params": {k: v for k, v in params["params"].items() if k != added}}
    labels = np.random.default_rng(2).normal(size=(2, 9)).astype(np.float32)

    def outputs(params, plain):
        known = [model.apply(params, X, LABEL, augment=a) for a in (None, 0 * labels, labels)]
        return without.apply(plain, X, LABEL), *known

    bare, unknown, zeros, told = run(outputs, params, plain)
    np.testing.assert_allclose(unknown, bare, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(zeros, bare, rtol=1e-5, atol=1e-6)
    assert np.abs(told - bare).max() > 1e-2
    with pytest.raises(ValueError, match=r"augment must have shape \(2, 9\), got \(2, 8\)"):
        model.apply(params, X, LABEL, augment=labels[:, 1:])


def test_attention_levels_do_not_depend_on_the_size_of_x():
    model = TINY["ddpmpp"]
    layers_of = convert.parameter_shapes(model, 3).keys()
    attentions = {path[1] for path in layers_of if path[1].endswith("attention")}
    assert attentions == {"down1_0_attention", "middle_attention", "up1_attention"}
    shapes = jax.eval_shape(model.init, jax.random.key(0), X, LABEL)
    assert jax.eval_shape(model.apply, shapes, X[:, :4, :6], LABEL).shape == (2, 4, 6, 3)


@pytest.mark.parametrize("name", TINY)
def test_remat_covers_every_block_and_bfloat16_all_but_the_ends(name):
    """The parameters are those of the plain network."""
    model = TINY[name].clone(remat=True, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(TINY[name].init, jax.random.key(0), X, LABEL)
    assert jax.eval_shape(model.init, jax.random.key(0), X, LABEL) == shapes
    found, remats, result = equations(model.apply, shapes, X, LABEL)
    names = [layer for layer in layer_names(model) if layer[0] in "dum"]
    other = ["dense", "pyramid", "normalizer", "image"]
    other += ["halving", "doubling"] if name == "ddpm" else []
    assert remats == sum(not any(part in layer for part in other) for layer in names)
    assert (result.shape, result.dtype) == (X.shape, jnp.float32)
    types = [
        {str(v.aval.dtype) for v in e.invars}
        for e in found
        if e.primitive.name == "conv_general_dilated"
    ]
    ends = [i for i, found in enumerate(types) if found == {"float32"}]
    # Each level's contribution to the growing image is an end.
    assert len(ends) == (3 if name == "skip" else 2) and ends[0] == 0
    assert all(found == {"bfloat16"} for i, found in enumerate(types) if i not in ends)
    of_statistics = ("reduce_sum", "rsqrt", "exp")
    statistics = {str(e.outvars[0].aval.dtype) for e in found if e.primitive.name in of_statistics}
    assert statistics == {"float32"}


def test_bfloat16_network_is_close_to_float32():
    """The bound is four times the error of some 15 layers with four roundings each, about 8 roundings."""
    model = ONE_LEVEL
    params = parameters(model)

    def both(params):
        types = (jnp.float32, jnp.bfloat16)
        return [model.clone(dtype=dtype).apply(params, X, LABEL) for dtype in types]

    exact, rounded = run(both, params)
    assert exact.dtype == rounded.dtype == jnp.float32
    axes = (1, 2, 3)
    error = np.sqrt(np.square(rounded - exact).mean(axes) / np.square(exact).mean(axes))
    assert np.all(error > 0) and np.all(error < 32 * ROUNDING)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fir": False}, r"must be one of .* got \('biggan', False, 'none', 'residual'\)"),
        ({"progressive": "residual"}, r"got \('biggan', True, 'residual', 'residual'\)"),
        ({"progressive": "output_skip"}, r"got \('biggan', True, 'output_skip', 'residual'\)"),
        ({"resblock_type": "ddpm"}, r"got \('ddpm', True, 'none', 'residual'\)"),
        ({"resblock_type": "resnet"}, r"got \('resnet', "),
        (
            {"progressive_combine": "cat"},
            r"progressive_combine must be one of \['sum'\], got 'cat'",
        ),
        ({"conditional": False}, r"conditional must be one of \[True\], got False"),
        ({"resamp_with_conv": False}, r"resamp_with_conv must be one of \[True\], got False"),
        ({"embedding_type": "none"}, "embedding_type must be one of .*'positional'.*, got 'none'"),
        ({"embedding_type": "positional"}, "scale_by_sigma .* needs sigmas"),
        ({"fir_kernel": (1, 2, 1)}, r"fir_kernel must have four taps, got \(1, 2, 1\)"),
        ({"dropout": 1.0}, "dropout must be in \\[0, 1\\), got 1.0"),
        ({"features": 3}, "GroupNorm needs at least 4 channels, .* got 3 channels for 0 groups"),
        ({"ch_mult": (1, 2, 2, 2, 2)}, "multiples of 16, got 8x8"),
    ],
)
def test_unsupported_settings_are_rejected(settings, message):
    model = models.NCSNpp(**{"features": 4, **settings})
    with pytest.raises(ValueError, match=message) as error:
        jax.eval_shape(model.init, jax.random.key(0), X, LABEL)
    assert "\n" not in str(error.value)
