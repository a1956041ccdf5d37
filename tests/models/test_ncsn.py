"""NCSN against the original implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import convert, losses, models
from tests.models.comparison import assert_close, nhwc, run

MODEL = models.NCSN(features=8, num_levels=10)


@pytest.fixture(scope="module", params=["ncsn_v1_28", "ncsn_v1_32"])
def case(request, golden):
    g = golden(request.param)
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    return g, convert.from_torch(state, MODEL)


def test_stages_match_the_original(case):
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


def test_loss_and_gradients_match_the_original(golden, monkeypatch):
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
def test_parameter_counts_match_the_published_ones(features, shape, count):
    level = jax.ShapeDtypeStruct((1,), jnp.int32)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    params = jax.eval_shape(models.NCSN(features, 10).init, jax.random.key(0), image, level)
    assert sum(a.size for a in jax.tree.leaves(params)) == count


def test_odd_sides_are_rejected():
    with pytest.raises(ValueError, match="NCSN needs .* multiples of 2, got 9x8"):
        MODEL.init(jax.random.key(0), jnp.zeros((1, 9, 8, 1)), jnp.zeros(1, int))
