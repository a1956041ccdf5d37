"""Inputs that networks accept and reject, and the types of parameters and outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import models, objectives, sde, training

LADDER = np.geomspace(1.0, 0.1, 3)  # float64
SMALL = {"features": 4, "ch_mult": (1, 1), "num_res_blocks": 1, "attn_resolutions": (4,)}
NETWORKS = {
    "NCSN": models.NCSN(4, 3),
    "NCSN, plain": models.NCSN(4, 3, "instance"),
    "NCSNv2": models.NCSNv2(4, LADDER),
    "NCSNv2Deeper": models.NCSNv2Deeper(4, LADDER),
    "NCSNv2Deepest": models.NCSNv2Deepest(4, LADDER),
    "SimplifiedNCSN": models.SimplifiedNCSN(4, LADDER),
    "NCSNpp": models.NCSNpp(**SMALL, image_size=8, dropout=0.0),
    "NCSNpp, ladder": models.NCSNpp(
        **SMALL, image_size=8, embedding_type="positional", sigmas=LADDER
    ),
    "NoisyClassifier": models.NoisyClassifier(3, 4),
}
HAVE_LADDERS = [n for n in NETWORKS if n not in ("NCSNpp", "NoisyClassifier")]
KEY, X, LEVEL = jax.random.key(0), np.zeros((2, 8, 8, 1), np.float32), np.asarray([0, 2])


def refused(name, x, level, message):
    model = NETWORKS[name]
    with pytest.raises(ValueError, match=message) as caught:
        model.init(KEY, x, level)
    assert type(model).__name__ in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_that_are_not_a_batch_of_images_are_rejected(name):
    refused(name, np.zeros((2, 8, 8, 1), np.uint8), LEVEL, r"floating-point .*got uint8\[2, 8, 8,")
    refused(name, X[0], LEVEL[:1], r"needs floating-point images \[B, H, W, C\], got float32\[8, 8")
    for level in (LEVEL[:1], LEVEL[0]):
        refused(name, X, level, r"(level|label|sigma) of .* must be .* \[B\] = \[2\], got int")


@pytest.mark.parametrize("name", HAVE_LADDERS)
def test_invalid_levels_are_rejected(name):
    for level in ([0, 3], [-1, 0]):
        refused(name, X, np.asarray(level), "(level|label) of .* must be integers from 0 to 2, got")
    refused(name, X, np.asarray([0.0, 0.5]), "(level|label) of .* must be integers")


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_float32_and_the_output_has_the_type_of_x(name):
    """Tested with a default of float64."""
    model = NETWORKS[name]
    with jax.enable_x64(True):
        params = jax.eval_shape(model.init, KEY, X, LEVEL)
        assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
        for dtype in (jnp.bfloat16, jnp.float64):
            x = jax.ShapeDtypeStruct(X.shape, dtype)
            assert jax.eval_shape(model.apply, params, x, LEVEL).dtype == dtype


def test_training_state_has_the_same_types_with_and_without_x64():
    objective, model = objectives.diffusion(NETWORKS["NCSNpp"], sde.VE()), NETWORKS["NCSNpp"]
    optimizer = training.make_optimizer(1e-3, warmup_steps=5, grad_clip=1.0, weight_decay=0.1)
    options = {"ema_decay": 0.9, "random_flip": True, "dequantize": True, "skip_nonfinite": True}

    def states():
        params = jax.eval_shape(model.init, KEY, X[:1], LEVEL[:1])
        opt_state = jax.eval_shape(optimizer.init, params)
        state = training.TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, params, opt_state)
        step = lambda state, images: training.train_step(
            state, images, jnp.int32(0), objective=objective, optimizer=optimizer, **options
        )
        images = jax.ShapeDtypeStruct(X.shape, jnp.uint8)
        return state, jax.eval_shape(step, state, images)[0]

    with jax.enable_x64(True):
        wide = states()
    types = [[a.dtype for a in jax.tree.leaves(state)] for state in (*states(), *wide)]
    assert all(found == types[0] for found in types)
