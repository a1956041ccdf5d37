"""Packed parameters are the same parameters: there and back, in a step's view, and in its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncsn_jax.app.packing import Packed, Packing

# The sizes of the float32 arrays are 1, 6, 6, 7 and 24.
TREE = {
    "params": {
        "a": {
            "kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
            "bias": np.float32([5, 6, 7, 8, 9, 10]),
        },
        "b": {"kernel": np.float32([[1, 2, 3], [4, 5, 6]]), "count": np.arange(3, dtype=np.int32)},
        "c": {
            "scale": np.full((), -1.5, np.float32),
            "half": np.ones(2, np.float16),
            "last": np.ones(7, np.float32),
        },
    }
}


def equal(a, b):
    """Whether two trees have the same structure, values and types."""
    same = lambda x, y: x.dtype == y.dtype and x.shape == y.shape and np.array_equal(x, y)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        map(same, jax.tree.leaves(a), jax.tree.leaves(b))
    )


@pytest.mark.parametrize(
    ("largest", "small", "large"), [(0, 0, 7), (6, 13, 4), (7, 20, 3), (99, 44, 2)]
)
def test_small_arrays_of_float32_are_one_vector(largest, small, large):
    packing = Packing(jax.eval_shape(lambda: TREE), largest)
    packed = packing.pack(TREE)
    assert len(packed.large) == large
    assert (0 if packed.small is None else packed.small.size) == small
    assert equal(packing.unpack(packed), TREE)
    assert equal(jax.jit(packing.view)(packed, packing.offsets), TREE)


def test_every_part_of_a_state_is_packed():
    packing = Packing(TREE, 6)
    state = {
        "step": np.int32(3),
        "params": TREE,
        "average": {},
        "moments": (np.ones(6, np.float32), TREE),
    }
    packed = packing.pack_in(state)
    assert isinstance(packed["params"], Packed) and isinstance(packed["moments"][1], Packed)
    assert packed["moments"][0].shape == (6,) and packed["average"] == {}
    assert equal(packing.unpack_in(packed), state)


def test_adam_of_what_is_packed_is_adam():
    """One step and its gradient, of sines of the elements with another frequency in each array."""
    tree = dict(TREE["params"]["a"])
    tree["wide"] = np.linspace(0, 1, 90, dtype=np.float32).reshape(9, 10)
    packing, optimizer = Packing(tree, 30), optax.adam(0.1)

    def step(params, view):
        loss = lambda p: sum(
            jnp.sum(jnp.sin(x * (1 + i))) for i, x in enumerate(jax.tree.leaves(view(p)))
        )
        gradient = jax.grad(loss)(params)
        updates, state = optimizer.update(gradient, optimizer.init(params), params)
        return gradient, optax.apply_updates(params, updates), state

    expected = step(tree, lambda p: p)
    run = jax.jit(lambda params, offsets: step(params, lambda p: packing.view(p, offsets)))
    found = jax.tree.map(np.asarray, run(packing.pack(tree), packing.offsets))
    assert isinstance(found[0], Packed) and found[0].small.shape == (30,)
    found = packing.unpack_in(found)
    assert jax.tree.structure(found) == jax.tree.structure(jax.tree.map(np.asarray, expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


def test_what_is_like_the_parameters_in_structure_only_is_refused():
    packing = Packing(TREE, 6)
    with pytest.raises(
        ValueError, match=r"shape \(6,\) and type float16 .* shape \(6,\) and type f"
    ):
        packing.pack(jax.tree.map(lambda a: a.astype(np.float16), TREE))
    with pytest.raises(ValueError, match="shape "):
        packing.pack(jax.tree.map(np.transpose, TREE))
