import jax
import jax.numpy as jnp
import pytest

from ncsn_jax import convert, models, sigmas
from tests.models.comparison import assert_close, nhwc, run

CASES = {
    "ncsnv2_32": (models.NCSNv2, 8),
    "ncsnv2_deeper_32": (models.NCSNv2Deeper, 4),
    "ncsnv2_deepest_32": (models.NCSNv2Deepest, 4),
}


@pytest.mark.parametrize("name", CASES)
def test_stages_match_the_original(golden, name):
    g = golden(name)
    network, features = CASES[name]
    model = network(features, g["state/sigmas"])
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    params = convert.from_torch(state, model)
    apply = lambda p, x, y: model.apply(
        p, x, y, capture_intermediates=True, mutable=["intermediates"]
    )
    score, captured = run(apply, params, nhwc(g["in/x"]), g["in/y"])
    assert_close(score, nhwc(g["out/score"]))
    for stage, module in {
        "res4": "res4_1",
        "refine1": "refine1",
        "refine2": "refine2",
        "refine3": "refine3",
    }.items():
        assert_close(captured["intermediates"][module]["__call__"][0], nhwc(g[f"out/{stage}"]))


@pytest.mark.parametrize(
    ("network", "features", "count"),
    [
        (models.NCSNv2, 128, 29_694_083),
        (models.NCSNv2, 8, 117_323),
        (models.NCSNv2Deeper, 128, 83_445_379),
        (models.NCSNv2Deepest, 128, 94_132_611),
    ],
)
def test_parameter_counts_match_the_published_ones(network, features, count):
    model = network(features, sigmas.geometric(1.0, 0.01, 10))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), image, level)
    assert sum(a.size for a in jax.tree.leaves(params)) == count


def test_sides_that_cannot_be_halved_are_rejected():
    model = models.NCSNv2Deepest(4, sigmas.geometric(1.0, 0.01, 10))
    with pytest.raises(ValueError, match="NCSNv2Deepest needs .* multiples of 8, got 12x16"):
        model.init(jax.random.key(0), jnp.zeros((1, 12, 16, 3)), jnp.zeros(1, int))
