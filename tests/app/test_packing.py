"""Tests that packing keeps the parameters: in a round trip, in a step's view, and under Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncsn_jax.app.packing import Packing

TREE = {
    "params": {
        "a": {"kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4)},
        "b": {"bias": np.float32([5, 6, 7]), "scale": np.full((), -1.5, np.float32)},
    }
}
# Trees are flattened in the order of their names.
VECTOR = np.float32([*range(24), 5, 6, 7, -1.5])


@pytest.fixture
def packing():
    return Packing(jax.eval_shape(lambda: TREE))


def test_arrays_are_concatenated_into_one_vector(packing):
    np.testing.assert_array_equal(packing.pack(TREE), VECTOR)
    assert packing.offsets == (0, 24, 27)
    for found in (packing.unpack(VECTOR), jax.jit(packing.view)(VECTOR, packing.offsets)):
        jax.tree.map(np.testing.assert_array_equal, found, TREE)


def test_every_part_shaped_like_the_parameters_is_packed(packing):
    state = {"step": np.int32(3), "ema": {}, "params": TREE, "moments": (np.int32(4), TREE)}
    packed = packing.pack(state)
    np.testing.assert_array_equal(packed["params"], VECTOR)
    np.testing.assert_array_equal(packed["moments"][1], VECTOR)
    assert (packed["step"], packed["ema"], packed["moments"][0]) == (3, {}, 4)
    jax.tree.map(np.testing.assert_array_equal, packing.unpack(packed), state)


def test_adam_on_the_vector_equals_adam_on_the_tree(packing):
    """The objective is the sum of the sines of all elements, with its own frequency for each array."""
    optimizer = optax.adam(0.1)

    def step(params, view):
        def loss(params):
            arrays = jax.tree.leaves(view(params))
            return sum(jnp.sum(jnp.sin(x * (1 + i))) for i, x in enumerate(arrays))

        gradient = jax.grad(loss)(params)
        updates, state = optimizer.update(gradient, optimizer.init(params), params)
        return gradient, optax.apply_updates(params, updates), state

    run = jax.jit(lambda vector, offsets: step(vector, lambda v: packing.view(v, offsets)))
    found = packing.unpack(jax.tree.map(np.asarray, run(VECTOR, packing.offsets)))
    # Float32 rounds angles of up to 23.
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(compare, found, step(TREE, lambda params: params))
