import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import convert, models, sigmas
from tests.models.comparison import assert_close, nhwc, run


def test_stages_match_the_original(golden):
    """The original works in [-1, 1], with x as 2x - 1, twice the sigma and half the score."""
    g = golden("ncsn_simple_16")
    model = models.SimplifiedNCSN(8, g["in/sigmas"] / 2)
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    params = convert.from_torch(state, model)
    apply = lambda p, x, y: model.apply(
        p, x, y, capture_intermediates=True, mutable=["intermediates"]
    )
    score, captured = run(apply, params, (nhwc(g["in/x"]) + 1) / 2, g["in/y"])
    # 83 convolutions in a row and the division by sigma leave a float32 error of 5e-6.
    assert_close(score / 2, nhwc(g["out/score"]), 2e-5)
    stages = captured["intermediates"]
    paths = {name: (name,) for name in ("begin_conv", "end_conv")}
    paths |= {f"stage{i}": (f"stage{i}",) for i in (1, 2, 3, 4)}
    paths |= {f"refine{i}": (f"refine{i}",) for i in (1, 2, 3, 4)}
    paths |= {
        "refine3.rcu_in.0": ("refine3", "adapt_0"),
        "refine3.rcu_in.1": ("refine3", "adapt_1"),
        "refine3.msf": ("refine3", "fusion"),
        "refine3.crp": ("refine3", "pooling"),
    }
    for name, path in paths.items():
        found = stages
        for part in path:
            found = found[part]
        assert_close(found["__call__"][0], nhwc(g[f"out/{name}"]), 2e-5)


@pytest.mark.parametrize(
    ("features", "channels", "count"),
    [(64, 3, 3_176_067), (64, 1, 3_173_761), (128, 3, 12_471_555), (8, 3, 62_355)],
)
def test_parameter_count_matches_the_original(features, channels, count):
    model = models.SimplifiedNCSN(features, sigmas.geometric(0.5, 0.005, 10))
    shapes = convert.parameter_shapes(model, channels)
    assert sum(shape.size for shape in shapes.values()) == count


def test_network_is_initialised_with_xavier_kernels_and_identical_levels():
    model = models.SimplifiedNCSN(16, sigmas.geometric(0.5, 0.005, 10))
    # Initialises without running the network.
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    params = model.lazy_init(jax.random.key(0), image, jax.ShapeDtypeStruct((1,), jnp.int32))
    unit = params["params"]["stage1"]["unit_0"]
    kernel, bound = np.asarray(unit["conv1"]["kernel"]), np.sqrt(6 / (9 * 32))
    assert np.abs(kernel).max() <= bound
    # The variance of n uniform values has a relative standard error of sqrt(4 / (5 n)).
    assert abs(kernel.var() / (bound**2 / 3) - 1) < 4 * np.sqrt(0.8 / kernel.size)
    assert np.all(unit["conv1"]["bias"] == 0)
    gamma, beta = np.split(np.asarray(unit["normalize1"]["embedding"]), 2, axis=1)
    assert np.all(gamma == 1) and np.all(beta == 0)
