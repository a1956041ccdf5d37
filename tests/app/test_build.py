"""Tests the networks, SDEs, objectives and optimizers that a configuration describes."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from configs import digits_subvp
from configs.edm import cifar10_ddpmpp, cifar10_ncsnpp
from configs.score_sde import (
    ve_church_ncsnpp_continuous,
    ve_cifar10_ncsnpp_continuous,
    vp_cifar10_ddpmpp_deep_continuous,
)
from ncsn_jax import models, preconditioning, sde, training
from ncsn_jax.app import build, samplers, schema
from tests import tiny
from tests.models.comparison import run
from tests.running import load_config, load_diffusion_config


def test_memory_and_precision_fields_reach_the_step_and_the_samplers():
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


def test_products_of_a_network_and_its_derivatives_have_the_configured_precision():
    def precisions(function, *args):
        return set(re.findall(r"precision=(\(?[\w.]+)", str(jax.make_jaxpr(function)(*args))))

    given = (("default", "None"), ("high", "(Precision.HIGH"), ("highest", "(Precision.HIGHEST"))
    for precision, expected in given:
        config = load_diffusion_config(**{"training.precision": precision})
        state = jax.eval_shape(build.make_init(config), jax.random.key(0))
        shape = build.image_shape(config)
        images = np.zeros((1, 8, *shape), np.uint8)
        steps = build.make_train_steps(config)
        assert precisions(steps, state, images, np.uint32(0)) == {expected}
        config = load_diffusion_config(**{"sampling.precision": precision})
        _, score = build.make_score_fn(config, jax.tree.map(jnp.zeros_like, state.params))
        x, t = np.zeros((1, *shape), np.float32), np.full(1, 0.5, np.float32)
        assert precisions(score, x, t) == {expected}


def test_the_sde_determines_the_published_embedding_options():
    continuous = build.make_model(load_diffusion_config())
    assert continuous.embedding_type == "fourier" and continuous.scale_by_sigma
    discrete = build.make_model(load_diffusion_config(**{"training.continuous": False}))
    assert discrete.embedding_type == "positional" and discrete.sigmas.shape == (30,)
    vp = build.make_model(load_diffusion_config(digits_subvp))
    assert vp.embedding_type == "positional" and not vp.scale_by_sigma and vp.centered
    for module, embedding in ((cifar10_ncsnpp, "fourier_linear"), (cifar10_ddpmpp, "positional")):
        model = build.make_model(module.get_config())
        assert model.embedding_type == embedding and not model.scale_by_sigma and model.centered


def test_a_denoiser_has_the_columns_of_table_1_that_the_fields_name():
    sigma = jnp.asarray([0.1, 3.0])
    process, ends = sde.VP(0.4, 9.0), (0.3, 7.0)
    coefficients = {
        "edm": preconditioning.edm(0.6),
        "vp": preconditioning.vp(process),
        "ve": preconditioning.ve(),
    }
    noises = {
        "edm": preconditioning.edm_noise(0.6, -0.5, 0.8),
        "vp": preconditioning.vp_noise(process),
        "ve": preconditioning.ve_noise(*ends),
    }
    fields = {"sigma_data": 0.6, "p_mean": -0.5, "p_std": 0.8}
    changes = UNUSUAL | {"training.sde": "edm"} | {f"edm.{k}": v for k, v in fields.items()}
    for left, right in (("edm", "vp"), ("vp", "ve"), ("ve", "edm")):
        names = {"edm.preconditioning": left, "edm.noise": right}
        config = load_diffusion_config(**changes | names)
        for c, expected in zip(build.make_preconditioning(config), coefficients[left], strict=True):
            np.testing.assert_array_equal(c(sigma), expected(sigma))
        objective = build.make_objective(config)
        np.testing.assert_allclose(
            objective.weight(sigma), sigma**2 * noises[right].weight(sigma), rtol=1e-6
        )
        middle = noises[right].sigma(1 - (jnp.arange(10) + 0.5) / 10)
        np.testing.assert_array_equal(objective.sigmas, middle)
    assert build.make_sde(config) == sde.VE(*ends)


def test_the_half_life_of_the_average_grows_with_the_images_seen():
    config = tiny.get_config()
    config.model.ema_decay, config.model.ema_halflife, config.training.batch_size = 0.0, 1000, 16
    for config.model.ema_rampup, expected in ((0.0, [1000] * 4), (0.5, [0, 8, 800, 1000])):
        decay = build.make_train_steps(config).keywords["ema_decay"]
        found = [float(decay(jnp.int32(step))) for step in (0, 1, 100, 1000)]
        halves = [2 ** (-16 / h) if h else 0 for h in expected]
        np.testing.assert_allclose(found, halves, rtol=1e-6)
    assert jax.eval_shape(build.make_init(config), jax.random.key(0)).ema_params


@pytest.mark.parametrize(
    ("module", "count"),
    [
        (ve_cifar10_ncsnpp_continuous, 62_758_915),
        (ve_church_ncsnpp_continuous, 65_574_549),
        (vp_cifar10_ddpmpp_deep_continuous, 106_632_579),
        (cifar10_ddpmpp, 55_733_891),
        (cifar10_ncsnpp, 56_397_955),
    ],
)
def test_published_configurations_build_the_published_networks(module, count):
    config = module.get_config()
    model, shape = build.make_model(config), (1, *build.image_shape(config))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape), jnp.ones(1))
    assert sum(a.size for a in jax.tree.leaves(params)) == count
    multiples, blocks = tuple(config.ncsnpp.ch_mult), config.ncsnpp.num_res_blocks
    flat = traverse_util.flatten_dict(params)
    normalized = {v.size for k, v in flat.items() if k[-1] == "gamma"}
    assert normalized == models.normalized_channels(config.model.features, multiples, blocks)


def test_a_reduced_published_network_takes_a_training_step():
    """In NCSN++ for CIFAR-10, all parameters but the frequencies have a gradient."""
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
    # `make_init` would take as long as the rest, and its branches start near zero.
    shapes = jax.eval_shape(build.make_init(config), jax.random.key(0)).params
    params = jax.tree.map(lambda a: rng.normal(0, 0.1, a.shape).astype(a.dtype), shapes)
    opt_state = build.make_optimizer(config).init(params)
    state = training.TrainState(jnp.zeros((), jnp.int32), params, params, opt_state)
    images = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    # The EMA would take long to compile for so many arrays.
    options = build.make_train_steps(config).keywords | {"ema_decay": 0.0}
    steps = functools.partial(training.train_step, **options)
    after, metrics = run(steps, state, images, 0)
    assert np.isfinite(metrics.loss)
    moments = traverse_util.flatten_dict(optax.tree.get(after.opt_state, "mu"), sep="/")
    still = [name for name, moment in moments.items() if not np.any(moment)]
    assert still == ["params/fourier/frequencies"]


def test_warm_up_starts_at_zero_and_ends_after_its_steps():
    """For a constant gradient, Adam's step is the learning rate, up to eps."""
    config = load_config(**{"optim.warmup_steps": 4, "optim.learning_rate": 0.5})
    optimizer = build.make_optimizer(config)
    params = jnp.zeros(())
    state, taken = optimizer.init(params), []
    for _ in range(6):
        updates, state = optimizer.update(jnp.ones(()), state, params)
        taken.append(-float(updates))
    np.testing.assert_allclose(taken, [0, 0.125, 0.25, 0.375, 0.5, 0.5], rtol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_training_applies_dropout_if_the_network_has_it(dropout, monkeypatch):
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


# A value for every field of a network and its objective, each different from its default and all others.
UNUSUAL = {
    "data.image_size": 24,
    "data.channels": 3,
    "model.features": 12,
    "model.num_levels": 25,
    "model.sigma_begin": 7.0,
    "model.sigma_end": 0.3,
    "model.beta_min": 0.4,
    "model.beta_max": 9.0,
    "model.ema_decay": 0.55,
    "model.ema_power": (0.05, 0.1),
    "ncsnpp.ch_mult": (1, 3),
    "ncsnpp.num_res_blocks": 5,
    "ncsnpp.attn_resolutions": (6, 11),
    "ncsnpp.dropout": 0.35,
    "ncsnpp.fourier_scale": 2.5,
    "ncsnpp.skip_rescale": False,
    "ncsnpp.init_scale": 0.15,
}


def described(model):
    """Returns the fields of a network, its ladder as a list."""
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    ladder = fields.pop("sigmas", None)
    del fields["parent"], fields["name"]
    return fields, ladder if ladder is None else np.asarray(ladder).tolist()


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("ncsnv2", models.NCSNv2),
        ("ncsnv2_deeper", models.NCSNv2Deeper),
        ("ncsnv2_deepest", models.NCSNv2Deepest),
        ("ncsn_simplified", models.SimplifiedNCSN),
    ],
)
def test_networks_divided_by_sigma_get_features_and_ladder(name, network):
    config = load_config(**UNUSUAL | {"model.name": name})
    model = build.make_model(config, dtype="bfloat16", remat=True)
    fields, ladder = described(model)
    assert type(model) is network
    assert fields == {"features": 12, "remat": True, "dtype": jnp.bfloat16, "num_classes": 0}
    np.testing.assert_allclose(ladder, np.geomspace(7.0, 0.3, 25), rtol=1e-5)
    assert described(build.make_model(config))[0] == {
        "features": 12,
        "remat": False,
        "dtype": jnp.float32,
        "num_classes": 0,
    }


def test_ncsn_gets_features_levels_and_normalization():
    config = load_config(**UNUSUAL | {"model.normalization": "instance"})
    model = build.make_model(config, remat=True)
    assert type(model) is models.NCSN
    assert described(model)[0] == {
        "features": 12,
        "num_levels": 25,
        "normalization": "instance",
        "remat": True,
        "dtype": jnp.float32,
        "num_classes": 0,
    }


@pytest.mark.parametrize(
    ("kind", "continuous", "parts", "follows"),
    [
        ("ve", True, ("biggan", True, "output_skip", "input_skip"), ("fourier", True, False)),
        ("ve", False, ("biggan", True, "none", "residual"), ("positional", True, True)),
        ("vp", True, ("ddpm", False, "none", "none"), ("positional", False, False)),
        ("vp", False, ("biggan", False, "none", "none"), ("positional", False, False)),
        ("subvp", True, ("biggan", False, "none", "none"), ("positional", False, False)),
    ],
)
def test_ncsnpp_gets_every_field_and_the_options_that_the_sde_determines(
    kind, continuous, parts, follows
):
    names = ("resblock_type", "fir", "progressive", "progressive_input")
    given = {f"ncsnpp.{part}": value for part, value in zip(names, parts, strict=True)}
    given |= {"training.sde": kind, "training.continuous": continuous, "data.centered": True}
    config = load_diffusion_config(**UNUSUAL | given)
    fields, ladder = described(build.make_model(config, dtype="bfloat16"))
    embedding, scale_by_sigma, has_ladder = follows
    assert fields == {
        "features": 12,
        "num_classes": 0,
        "image_size": 24,
        "embedding_type": embedding,
        "scale_by_sigma": scale_by_sigma,
        "centered": True,
        "augment_features": 0,
        "ch_mult": (1, 3),
        "num_res_blocks": 5,
        "attn_resolutions": (6, 11),
        "dropout": 0.35,
        "fourier_scale": 2.5,
        "skip_rescale": False,
        "init_scale": 0.15,
        **dict(zip(names, parts, strict=True)),
        "fir_kernel": (1, 3, 3, 1),
        "progressive_combine": "sum",
        "resamp_with_conv": True,
        "conditional": True,
        "remat": False,
        "dtype": jnp.bfloat16,
    }
    assert (ladder is not None) == has_ladder
    if has_ladder:
        np.testing.assert_allclose(ladder, np.geomspace(7.0, 0.3, 25), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", sde.VE(0.3, 7.0)),
        ("ve", sde.VE(0.3, 7.0)),
        ("vp", sde.VP(0.4, 9.0)),
        ("subvp", sde.SubVP(0.4, 9.0)),
    ],
)
@pytest.mark.parametrize("continuous", [True, False])
def test_an_sde_gets_its_end_points_and_levels_unless_continuous(kind, expected, continuous):
    config = load_config(**UNUSUAL | {"training.sde": kind, "training.continuous": continuous})
    assert build.make_sde(config) == expected
    assert build.num_levels(config) == (None if continuous else 25)


def test_every_data_field_reaches_the_loaders(monkeypatch):
    calls = []
    for name in ("load", "load_labels"):
        keep = lambda *a, name=name, **k: calls.append((name, a, k))
        monkeypatch.setattr(build.data, name, keep)
    memory = dict(cache_bytes=12)
    others = dict(crop_size=17, background=9, holdout=0.25) | memory
    fields = dict(dataset="mnist", data_dir="there", image_size=24, channels=3) | others
    config = load_config(**{f"data.{name}": value for name, value in fields.items()})
    build.load_images(config)
    build.load_images(config, "test")
    build.load_labels(config, "test")
    assert calls == [
        ("load", ("mnist", "there", 24, 3), others | {"split": "train"}),
        ("load", ("mnist", "there", 24, 3), others | {"split": "test"}),
        ("load_labels", ("mnist", "there"), memory | {"split": "test"}),
    ]


def test_the_default_number_of_workers_is_the_spare_cores(monkeypatch):
    for backend, cores, expected in (
        *(("cpu", 1, 1), ("cpu", 2, 1), ("cpu", 9, 4)),
        *(("gpu", 1, 1), ("gpu", 2, 1), ("tpu", 9, 8), ("tpu", 200, 16)),
    ):
        monkeypatch.setattr(build.jax, "default_backend", lambda backend=backend: backend)
        monkeypatch.setattr(build.cpu, "cores", lambda cores=cores: cores)
        assert build.num_workers(load_config()) == expected
        for given in (0, 7):
            assert build.num_workers(load_config(**{"data.workers": given})) == given


def test_every_training_field_reaches_the_step_and_the_state(monkeypatch):
    fields = {"training.batch_size": 48, "training.microbatches": 3, "training.remat": True}
    fields |= {"training.skip_nonfinite": 1, "training.reduce_mean": True}
    fields |= {"data.random_flip": True, "data.dequantize": False, "training.grad_clip": 0.65}
    adam = dict(learning_rate=0.7, beta1=0.1, beta2=0.2, eps=0.3, weight_decay=0.4, warmup_steps=6)
    config = load_config(**UNUSUAL | fields | {f"optim.{k}": v for k, v in adam.items()})
    made = []
    real = training.make_optimizer
    keep = lambda *a, **k: made.append((a, k)) or real(*a, **k)
    monkeypatch.setattr(training, "make_optimizer", keep)
    inits = []
    monkeypatch.setattr(training, "make_init", lambda *a, **k: inits.append((a, k)))
    options = build.make_train_steps(config).keywords
    build.make_init(config)
    others = {"name": "adam", "grad_clip": 0.65, "decay_steps": 0, "decay_after": 0}
    assert made == [((), adam | others)] * 2
    objective, optimizer = options.pop("objective"), options.pop("optimizer")
    assert objective.sigmas.shape == (25,) and isinstance(optimizer, optax.GradientTransformation)
    np.testing.assert_allclose(options.pop("gammas"), [16.97, 6.94], atol=0.005)
    assert options == {
        "microbatches": 3,
        "skip_nonfinite": True,
        "ema_decay": 0.55,
        "random_flip": True,
        "dequantize": False,
        "centered": False,
        "augment": 0.0,
        "reduce_mean": True,
        "num_classes": 0,
        "label_dropout": 0.1,
    }
    ((model, _, shape), flags) = inits[0]
    assert shape == (24, 24, 3) and flags == {"ema": True, "averages": 2}
    assert described(model)[0]["remat"] is False  # only the step is
