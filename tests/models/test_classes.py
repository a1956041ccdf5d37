"""Networks of classes: they begin as networks without, and only a class changes their function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ncsn_jax import convert, models
from ncsn_jax.models import normalization
from tests.models.comparison import run

SIGMAS = np.geomspace(1.0, 0.1, 3).astype(np.float32)
LAYERS = [
    (normalization.ConditionalInstanceNorm, {"num_levels": 3}),
    (normalization.ConditionalInstanceNormPlus, {"num_levels": 3}),
    (normalization.InstanceNormPlus, {}),
]
NETWORKS = [
    models.NCSN(2, 3, num_classes=3),
    models.NCSNv2(2, SIGMAS, num_classes=3),
    models.SimplifiedNCSN(2, SIGMAS, num_classes=3),
]
X = jnp.asarray(np.random.default_rng(0).random((4, 8, 8, 3)), jnp.float32)
LEVEL, CLASSES = jnp.asarray([0, 1, 2, 1]), jnp.asarray([0, 1, 3, 2])


def tables_of(params):
    return {k: v for k, v in traverse_util.flatten_dict(params).items() if "classes" in k}


def filled(params, plain):
    """Checks that parameters add to `plain` only tables, and fills these with random numbers."""
    flat, rng = traverse_util.flatten_dict(params), np.random.default_rng(1)
    others = {k: v for k, v in flat.items() if k not in tables_of(params)}
    jax.tree.map(np.testing.assert_array_equal, traverse_util.unflatten_dict(others), plain)
    shapes = {k: v.shape for k, v in tables_of(params).items()}
    random = {k: rng.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}
    return traverse_util.unflatten_dict(flat | random)


@pytest.mark.parametrize(("layer", "options"), LAYERS)
def test_a_normalization_adds_the_row_of_the_class_to_its_parameters(layer, options):
    plain, model = layer(**options), layer(**options, num_classes=3)
    base = plain.init(jax.random.key(0), X, LEVEL)
    params = model.init(jax.random.key(0), X, (LEVEL, CLASSES))
    assert not any(v.any() for v in tables_of(params).values())
    params = filled(params, base)
    ((_, table),) = tables_of(params).items()
    found = model.apply(params, X, (LEVEL, CLASSES))
    for i, one in enumerate(CLASSES):
        row = table[one] if one < 3 else np.zeros_like(table[0])
        if layer is normalization.InstanceNormPlus:
            added = dict(zip(("gamma", "alpha", "beta"), np.split(row, 3), strict=True))
        else:
            added = {"embedding": row[None]}
        moved = {"params": {k: v + added[k] for k, v in base["params"].items()}}
        expected = plain.apply(moved, X[i : i + 1], LEVEL[i : i + 1])
        np.testing.assert_allclose(found[i : i + 1], expected, atol=2e-6)


@pytest.mark.parametrize("model", NETWORKS, ids=lambda model: type(model).__name__)
def test_every_normalization_of_a_network_knows_the_class(model):
    params = jax.eval_shape(model.init, jax.random.key(0), X, LEVEL)
    tables = tables_of(params)
    others = traverse_util.flatten_dict(params).keys() - tables
    layers = {path[:-1] for path in others if path[-1] in ("embedding", "gamma")}
    assert {path[:-2] for path in tables} == layers
    assert {table.shape[0] for table in tables.values()} == {3}


def test_only_a_class_changes_the_function_of_ncsnpp():
    options = {"features": 4, "ch_mult": (1,), "num_res_blocks": 1, "init_scale": 1.0}
    plain, model = models.NCSNpp(**options), models.NCSNpp(**options, num_classes=3)
    shape, sigma = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), LEVEL + 1.0
    key, label = jax.random.key(0), jax.ShapeDtypeStruct((1,), jnp.float32)
    base = plain.lazy_init(key, shape, label)
    params = filled(model.lazy_init(key, shape, label), base)
    expected = run(plain.apply, base, X, sigma)
    found = run(lambda *args: model.apply(*args[:-1], classes=args[-1]), params, X, sigma, CLASSES)
    error = np.abs(found - expected).max(axis=(1, 2, 3)) / np.abs(expected).max(axis=(1, 2, 3))
    assert error[2] < 1e-6 and (error[[0, 1, 3]] > 1e-3).all()


@pytest.mark.parametrize(
    ("num_classes", "classes", "message"),
    [
        (0, [0] * 4, "classes of NCSN must be None, since it has num_classes=0"),
        (3, [0] * 3, r"classes of NCSN must be integers \[B\] = \[4\], got int32\[3\]"),
        (3, [0.0] * 4, r"must be integers \[B\] = \[4\], got float32\[4\]"),
        (3, [0, 1, 2, 4], "must be integers from 0 to 2, or 3 for none, got 4"),
    ],
)
def test_classes_that_a_network_does_not_have_are_rejected(num_classes, classes, message):
    model = models.NCSN(2, 3, num_classes=num_classes)
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), X, LEVEL, classes=jnp.asarray(classes))


def test_the_original_networks_have_no_classes():
    with pytest.raises(ValueError, match="model must have num_classes=0, .* got 3"):
        convert.from_torch({}, models.NCSN(2, 3, num_classes=3))
    with pytest.raises(ValueError, match="model must have augment_features=0, like the original"):
        convert.from_torch({}, models.NCSNpp(augment_features=9))
