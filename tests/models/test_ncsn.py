import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import convert, models, sigmas
from ncsn_jax.models import layers
from tests.models.comparison import assert_close, nhwc, run

MODEL = models.NCSN(features=8, num_levels=10)


@pytest.fixture(scope="module", params=["ncsn_v1_28", "ncsn_v1_32"])
def case(request, golden):
    g = golden(request.param)
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    return g, convert.from_torch(state, MODEL)


def test_reproduces_the_original_stage_by_stage(case):
    g, params = case
    apply = lambda p, x, y: MODEL.apply(
        p, x, y, capture_intermediates=True, mutable=["intermediates"]
    )
    score, state = run(apply, params, nhwc(g["in/x"]), g["in/y"])
    stages = state["intermediates"]
    assert_close(score, nhwc(g["out/score"]))
    names = {
        "res2": ("res2_1",),
        "res4": ("res4_1",),
        "refine1": ("refine1",),
        "refine2.msf": ("refine2", "fusion"),
        "refine2.crp": ("refine2", "pooling"),
        "refine3": ("refine3",),
    }
    for name, path in names.items():
        if f"out/{name}" in g:
            found = stages
            for part in path:
                found = found[part]
            assert_close(found["__call__"][0], nhwc(g[f"out/{name}"]))


def test_loss_and_gradients_are_the_originals(golden, monkeypatch):
    from ncsn_jax import losses

    weights, g = golden("ncsn_v1_32"), golden("losses")
    state = {k.removeprefix("state/"): v for k, v in weights.items() if k.startswith("state/")}
    params = convert.from_torch(state, MODEL)
    ladder = jnp.asarray(g["in/sigmas"])
    monkeypatch.setattr(losses, "normal_like", lambda key, x: jnp.asarray(nhwc(g["in/net/noise"])))

    def loss(params):
        per_example = losses.denoising_score_matching(
            jax.random.key(0),
            models.score_fn(MODEL, params, ladder),
            jnp.asarray(nhwc(g["in/net/x"])),
            ladder[g["in/net/labels"]],
        )
        return per_example.mean(), per_example

    (value, per_example), gradient = run(jax.value_and_grad(loss, has_aux=True), params)
    assert float(value) == pytest.approx(float(g["out/net/dsm"]), rel=1e-5)
    np.testing.assert_allclose(per_example, g["out/net/dsm_v2_per_example"], rtol=1e-5)
    found = convert.to_torch(gradient, MODEL)
    largest = max(np.abs(array).max() for array in found.values())
    assert found.keys() == state.keys()
    for name, array in found.items():
        expected = g[f"out/net/dsm_grad/{name}"]
        # A bias before a normalization has a gradient of zero, up to rounding.
        bound = max(1e-4 * np.abs(expected).max(), 1e-7 * largest)
        assert np.abs(array - expected).max() < bound, name


@pytest.mark.parametrize(
    ("features", "shape", "count"),
    [
        (8, (28, 28, 1), 143_505),
        (8, (32, 32, 3), 143_795),
        (64, (28, 28, 1), 7_638_657),
        (64, (32, 32, 3), 7_640_963),
        (128, (32, 32, 3), 30_117_635),
    ],
)
def test_parameter_counts_are_the_published_ones(features, shape, count):
    level = jax.ShapeDtypeStruct((1,), jnp.int32)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    params = jax.eval_shape(models.NCSN(features, 10).init, jax.random.key(0), image, level)
    assert sum(a.size for a in jax.tree.leaves(params)) == count


def test_initial_parameters_have_the_originals_distribution():
    kernel = layers.Conv(64).init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))["params"]
    bound = 1 / np.sqrt(9 * 32)
    for name in ("kernel", "bias"):
        values = np.asarray(kernel[name])
        assert np.abs(values).max() <= bound
        # The variance of n uniform values has a relative standard error of sqrt(4 / (5 n)).
        error = values.var() / (bound**2 / 3) - 1
        assert abs(error) < 4 * np.sqrt(0.8 / values.size)
    norm = models.ncsn.ConditionalInstanceNormPlus(10)
    table = norm.init(jax.random.key(1), jnp.zeros((1, 2, 2, 50)), jnp.zeros(1, int))["params"]
    scales, shifts = np.split(np.asarray(table["embedding"]), [100], axis=1)
    assert abs(scales.mean() - 1) < 4 * 0.02 / np.sqrt(scales.size)
    assert abs(scales.var() / 0.02**2 - 1) < 4 * np.sqrt(2 / scales.size)
    assert np.all(shifts == 0)


def test_upsampling_aligns_the_corners():
    x = jnp.asarray([0.0, 3.0]).reshape(1, 2, 1, 1)
    y = layers.resize_bilinear(x, (4, 1))
    np.testing.assert_allclose(np.asarray(y).ravel(), [0, 1, 2, 3], atol=1e-6)
    ramp = jnp.arange(7.0)[None, :, None, None] * jnp.arange(5.0)[None, None, :, None]
    y = np.asarray(layers.resize_bilinear(ramp, (13, 9)))[0, :, :, 0]
    np.testing.assert_allclose(y, np.outer(np.arange(13) / 2, np.arange(9) / 2), atol=1e-5)


def test_average_pooling_counts_the_border_as_zeros():
    y = np.asarray(layers.average_pool5(jnp.ones((1, 6, 6, 1))))[0, :, :, 0]
    count = np.array([3, 4, 5, 5, 4, 3])
    np.testing.assert_allclose(y, np.outer(count, count) / 25, rtol=1e-6)


def test_adapter_maps_sigma_to_the_nearest_level():
    ladder = sigmas.geometric(10.0, 0.01, 7)
    np.testing.assert_array_equal(models.levels_of(ladder, ladder), np.arange(7))
    between = jnp.asarray([100.0, float(ladder[2]) * 1.1, 1e-9])
    np.testing.assert_array_equal(models.levels_of(between, ladder), [0, 2, 6])


def test_refuses_odd_sides():
    with pytest.raises(ValueError, match="NCSN needs an even height and width, got 9x8"):
        MODEL.init(jax.random.key(0), jnp.zeros((1, 9, 8, 1)), jnp.zeros(1, int))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("res2.0.conv2.conv.bias"),
            r"res2.0.conv2.conv.bias is missing; NCSN expects shape \[16\]",
        ),
        (
            lambda s: s.update(extra=np.zeros(3)),
            r"extra with shape \[3\] belongs to no parameter of NCSN",
        ),
        (
            lambda s: s.update({"end_conv.weight": np.zeros((2, 8, 3, 3))}),
            r"end_conv.weight has shape \[2, 8, 3, 3\], expected \[1, 8, 3, 3\]",
        ),
    ],
)
def test_conversion_names_what_does_not_fit(golden, change, message):
    g = golden("ncsn_v1_28")
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    change(state)
    with pytest.raises(ValueError, match=message):
        convert.from_torch({f"module.{k}": v for k, v in state.items()}, MODEL)
