"""The networks, SDEs, objectives and optimizers that a configuration describes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from configs import digits_subvp
from configs.score_sde import (
    ve_church_ncsnpp_continuous,
    ve_cifar10_ncsnpp_continuous,
    vp_cifar10_ddpmpp_deep_continuous,
)
from ncsn_jax import models, training
from ncsn_jax.app import build, samplers, schema
from tests import tiny
from tests.models.comparison import run
from tests.running import load_config, load_diffusion_config


def test_fields_of_memory_and_precision_reach_the_step_and_the_samples():
    config = load_config(
        **{
            "training.microbatches": 2,
            "training.batch_size": 16,
            "training.remat": True,
            "training.dtype": "bfloat16",
            "training.skip_nonfinite": 3,
        }
    )
    options = build.make_train_steps(config).keywords
    assert options["microbatches"] == 2 and options["skip_nonfinite"] is True
    assert not build.make_train_steps(load_config()).keywords["skip_nonfinite"]

    made = []
    real = build.make_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "make_model", lambda *a, **k: made.append(real(*a, **k)) or made[-1])
        build.make_train_steps(config)
    assert [(m.remat, m.dtype) for m in made] == [(True, jax.numpy.bfloat16)]

    def program(**changes):
        changed = load_config(**changes)
        model = build.make_model(changed)
        shape = (1, *build.image_shape(changed))
        params = jax.eval_shape(model.init, jax.random.key(0), np.zeros(shape), np.zeros(1, int))
        score = lambda p, x, sigma: build.make_score_fn(changed, p)[0](x, sigma)
        return str(jax.make_jaxpr(score)(params, np.zeros(shape, np.float32), np.ones(1)))

    assert "bf16" in program(**{"sampling.dtype": "bfloat16"})
    without = program(**{"training.dtype": "bfloat16", "training.remat": True})
    assert "bf16" not in without and "checkpoint" not in without and "remat" not in without
    assert samplers.settings(config)["sampling.dtype"] == "float32"


def test_published_options_of_the_embedding_follow_from_the_sde():
    continuous = build.make_model(load_diffusion_config())
    assert continuous.embedding_type == "fourier" and continuous.scale_by_sigma
    discrete = build.make_model(load_diffusion_config(**{"training.continuous": False}))
    assert discrete.embedding_type == "positional" and discrete.sigmas.shape == (30,)
    vp = build.make_model(load_diffusion_config(digits_subvp))
    assert vp.embedding_type == "positional" and not vp.scale_by_sigma and vp.centered


@pytest.mark.parametrize(
    ("module", "count"),
    [
        (ve_cifar10_ncsnpp_continuous, 62_758_915),
        (ve_church_ncsnpp_continuous, 65_574_549),
        (vp_cifar10_ddpmpp_deep_continuous, 106_632_579),
    ],
)
def test_published_configurations_have_the_published_networks(module, count):
    config = module.get_config()
    model, shape = build.make_model(config), (1, *build.image_shape(config))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape), jnp.ones(1))
    assert sum(a.size for a in jax.tree.leaves(params)) == count
    multiples, blocks = tuple(config.ncsnpp.ch_mult), config.ncsnpp.num_res_blocks
    flat = traverse_util.flatten_dict(params)
    normalized = {v.size for k, v in flat.items() if k[-1] == "gamma"}
    assert normalized == models.normalized_channels(config.model.features, multiples, blocks)


def test_a_step_of_the_published_network_at_a_reduced_size():
    """Of NCSN++ for CIFAR-10 with all its parts: all but the frequencies have a gradient."""
    config = ve_cifar10_ncsnpp_continuous.get_config()
    config.update_from_flattened_dict(
        {
            "model.features": 8,
            "data.image_size": 16,
            "ncsnpp.num_res_blocks": 1,
            "ncsnpp.ch_mult": (1, 2),
            "optim.warmup_steps": 0,
        }
    )
    schema.check(config)
    rng = np.random.default_rng(0)
    # Not from `make_init`, which takes as long as the rest, and starts with branches of almost zero.
    shapes = jax.eval_shape(build.make_init(config), jax.random.key(0)).params
    params = jax.tree.map(lambda a: rng.normal(0, 0.1, a.shape).astype(a.dtype), shapes)
    opt_state = build.make_optimizer(config).init(params)
    state = training.TrainState(jnp.zeros((), jnp.int32), params, params, opt_state)
    images = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    # Without the average, which takes long to compile for so many arrays.
    options = build.make_train_steps(config).keywords | {"ema_decay": 0.0}
    steps = functools.partial(training.train_step, **options)
    after, metrics = run(steps, state, images, 0)
    assert np.isfinite(metrics.loss)
    moments = traverse_util.flatten_dict(optax.tree.get(after.opt_state, "mu"), sep="/")
    still = [name for name, moment in moments.items() if not np.any(moment)]
    assert still == ["params/fourier/frequencies"]


def test_the_warm_up_begins_at_zero_and_ends_after_its_steps():
    """Adam's step is the learning rate for a constant gradient, in the bound of eps."""
    config = load_config(**{"optim.warmup_steps": 4, "optim.learning_rate": 0.5})
    optimizer = build.make_optimizer(config)
    params = jnp.zeros(())
    state, taken = optimizer.init(params), []
    for _ in range(6):
        updates, state = optimizer.update(jnp.ones(()), state, params)
        taken.append(-float(updates))
    np.testing.assert_allclose(taken, [0, 0.125, 0.25, 0.375, 0.5, 0.5], rtol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_network_is_trained_with_dropout_if_it_has_some(dropout, monkeypatch):
    monkeypatch.setitem(build.MODELS, "ncsnpp", tiny.TinyDiffusion)
    config = load_diffusion_config(**{"ncsnpp.dropout": dropout})
    model, process = build.make_model(config), build.make_sde(config)
    x, t = jnp.ones((2, 8, 8, 1)), jnp.full(2, 0.5)
    params = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0), x, t))
    keys = jax.random.split(jax.random.key(1), 2)
    found = build.make_objective(config).score_fn(params, keys)(x, t)
    with_keys = models.time_score_fn(model, params, process, dropout_keys=keys)(x, t)
    without = models.time_score_fn(model, params, process)(x, t)
    np.testing.assert_allclose(found, with_keys if dropout else without, rtol=1e-5)
    assert np.allclose(with_keys, without) == (not dropout)


@pytest.mark.parametrize(("split", "count"), [("train", 1500), ("test", 297)])
def test_images_and_labels_are_of_the_split_that_is_asked_for(split, count):
    config = load_config()
    assert len(build.load_images(config, split)) == count
    assert len(build.load_labels(config, split)[0]) == count
