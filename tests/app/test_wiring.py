"""Tests that each field of a configuration reaches the code that uses it.

A recorder wraps the functions of the library. A row of the table names the function and the argument that a
field becomes. Fields of the training loop and of the modes have separate runs below.
"""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import run_lib
from configs import digits_vp
from ncsn_jax import (
    averages,
    models,
    objectives,
    sampling,
    sde,
    sigmas,
    training,
)
from ncsn_jax._random import Stream
from ncsn_jax.app import (
    build,
    checkpoints,
    classifier_file,
    data,
    devices,
    restoration,
    run_flows,
    run_samplers,
    schema,
)
from ncsn_jax.app.data import image_folder
from ncsn_jax.app.modes import classifier as classifier_mode
from ncsn_jax.app.modes import complete, shared
from ncsn_jax.app.modes import interpolate as interpolate_mode
from ncsn_jax.app.modes import likelihood as likelihood_mode
from ncsn_jax.app.modes import restore as restore_mode
from tests import tiny
from tests.app import (
    test_build,
    test_classifier_training,
    test_restoration,
    test_samplers,
    test_sweep,
    test_watching,
)
from tests.app.modes import test_average, test_classes, test_classifier, test_evaluate, test_plan
from tests.recording import IMAGES, Recorder, draw
from tests.running import load_config, load_diffusion_config


def guide(config):
    of_classes = models.NoisyClassifier(3, 4)
    draw(config, Stream.CLASSES, jnp.zeros(2, int), params=(None, None), of_classes=of_classes)


def guide_away(config):
    draw(config, Stream.SAMPLES, jnp.zeros(2, int))


def flow(function, array):
    """Returns a call of a function of `run_flows` on an array."""
    return lambda config: run_flows.on_devices(config, function)(devices.replicate({}), array, 1)


def inpaint(config):
    image = jnp.full((2, 8, 8, 1), 0.25)
    draw(config, Stream.INPAINTING, image, image > 1)


# For each place: the function called, its caller, and the sampling method.
PLACES = {
    "load": ("load", build.load_images, None),
    "load_labels": ("load_labels", build.load_labels, None),
    "train_steps": ("train_steps", lambda c: build.make_train_steps(c)(0, 0, 0), None),
    "make_optimizer": ("make_optimizer", build.make_optimizer, None),
    "make_init": ("make_init", build.make_init, None),
    "ladder": ("ladder", build.make_train_steps, None),
    "diffusion": ("diffusion", build.make_train_steps, None),
    **{
        name: (name, build.make_train_steps, None) for name in ("edm_noise", "ve_noise", "vp_noise")
    },
    "initial_samples": ("initial_samples", draw, "annealed_langevin"),
    "annealed_langevin": ("annealed_langevin", draw, "annealed_langevin"),
    "predictor_corrector": ("predictor_corrector", draw, "predictor_corrector"),
    "heun": ("heun", draw, "heun"),
    "karras": ("karras", draw, "heun"),
    "euler": ("euler", draw, "euler"),
    "dpm_solver": ("dpm_solver", draw, "dpm_solver"),
    "probability_flow": ("probability_flow", draw, "probability_flow"),
    "score_fn": ("score_fn", draw, None),
    "time_score_fn": ("time_score_fn", draw, "probability_flow"),
    "inpaint": ("inpaint", inpaint, "annealed_langevin"),
    "guided": ("guided", guide, None),
    "classifier_free": ("classifier_free", guide_away, "heun"),
    "log_prob": ("log_prob", flow(run_flows.bits_per_dim, IMAGES[:1]), None),
    "bits_per_dim": ("bits_per_dim", flow(run_flows.bits_per_dim, IMAGES[:1]), None),
    "encode": ("probability_flow", flow(run_flows.encode, IMAGES[:1] / np.float32(255)), None),
    "decode": ("probability_flow", flow(run_flows.decode, np.ones((1, 8, 8, 1), np.float32)), None),
}


class Row(NamedTuple):
    """A field, a value other than its default, the argument it becomes, and that argument's value."""

    field: str
    value: Any
    where: str
    expected: Any = None
    given: dict = {}  # noqa: RUF012


SDE = {"sde": True}
VP = SDE | {"training.sde": "vp"}
EDM = SDE | {"training.sde": "edm", "data.centered": True}
CLASSES = SDE | {"data.labels": True}
CORRECTED = {"sampling.corrector": "langevin", "sampling.snr": 0.1}
ROWS = [
    *(Row("data.dataset", "mnist", f"{where}.dataset") for where in ("load", "load_labels")),
    *(Row("data.data_dir", "there", f"{where}.data_dir") for where in ("load", "load_labels")),
    Row("data.image_size", 16, "load.image_size"),
    Row("data.image_size", 16, "model.image_size", given=SDE),
    Row("data.image_size", 16, "make_init.image_shape", (16, 16, 1)),
    Row("data.channels", 3, "load.channels"),
    Row("data.value_range", (0, 1), "train_steps.dequantize", False),
    Row("data.image_size", (16, 8), "make_init.image_shape", (16, 8, 1)),
    Row("data.image_size", (16, 8), "model.image_size", 8, given=SDE | {"data.image_size": 16}),
    Row("data.channels", 3, "make_init.image_shape", (8, 8, 3)),
    Row("data.crop_size", -1, "load.crop_size"),
    Row("data.cache_bytes", 7, "load.cache_bytes"),
    Row("data.cache_bytes", 7, "load_labels.cache_bytes"),
    Row("data.background", 0, "load.background"),
    Row("data.holdout", 0.25, "load.holdout"),
    Row("data.random_flip", True, "train_steps.random_flip"),
    Row("data.dequantize", False, "train_steps.dequantize"),
    Row("data.centered", True, "train_steps.centered", given=SDE),
    Row("data.centered", True, "model.centered", given=SDE),
    Row("data.centered", True, "bits_per_dim.width", 2.0, SDE),
    Row(
        "data.centered",
        True,
        "annealed_langevin.clip",
        (-1, 1),
        SDE | {"sampling.clip": (0.0, 1.0)},
    ),
    Row("data.centered", True, "initial_samples.scale", 2.5, SDE),
    Row("model.name", "ncsnv2", "model.__class__", models.NCSNv2),
    Row("model.features", 4, "model.features"),
    Row("model.features", 8, "model.features", given=SDE),
    Row("model.normalization", "instance", "model.normalization"),
    Row("model.num_levels", 3, "model.num_levels"),
    Row("model.num_levels", 3, "ladder.sigmas", sigmas.geometric(1.0, 0.04, 3)),
    Row("model.num_levels", 3, "annealed_langevin.sigmas", sigmas.geometric(1.0, 0.04, 3)),
    Row("model.num_levels", 3, "score_fn.sigmas", sigmas.geometric(1.0, 0.04, 3)),
    Row("model.num_levels", 40, "diffusion.num_levels", given=SDE | {"training.continuous": False}),
    Row(
        "model.num_levels",
        40,
        "time_score_fn.num_levels",
        given=SDE | {"training.continuous": False},
    ),
    Row("model.sigma_begin", 2.0, "ladder.sigmas", sigmas.geometric(2.0, 0.04, 2)),
    Row("model.sigma_begin", 2.0, "annealed_langevin.sigmas", sigmas.geometric(2.0, 0.04, 2)),
    Row("model.sigma_begin", 2.0, "initial_samples.scale", 2.0),
    Row("model.sigma_begin", 2.0, "karras.sigma_begin"),
    Row("model.sigma_begin", 2.0, "diffusion.sde", sde.VE(0.01, 2.0), SDE),
    Row("model.sigma_begin", 2.0, "probability_flow.sde", sde.VE(0.04, 2.0)),
    Row("model.sigma_end", 0.5, "ladder.sigmas", sigmas.geometric(1.0, 0.5, 2)),
    Row("model.sigma_end", 0.5, "karras.sigma_end"),
    Row("model.sigma_end", 0.5, "diffusion.sde", sde.VE(0.5, 5.0), SDE),
    Row("model.beta_min", 0.2, "diffusion.sde", sde.VP(0.2, 20.0), VP),
    Row("model.beta_max", 10.0, "diffusion.sde", sde.VP(0.1, 10.0), VP),
    Row("model.ema_decay", 0.5, "train_steps.ema_decay"),
    Row("model.ema_decay", 0.0, "make_init.ema", False),
    Row("model.sigma_begin", 9.0, "ve_noise.sigma_max", given=EDM | {"edm.noise": "ve"}),
    Row("model.sigma_end", 0.3, "ve_noise.sigma_min", given=EDM | {"edm.noise": "ve"}),
    Row("model.beta_max", 9.0, "vp_noise.sde", sde.VP(0.1, 9.0), EDM | {"edm.noise": "vp"}),
    Row("edm.sigma_data", 0.3, "edm_noise.sigma_data", given=EDM),
    Row("edm.p_mean", 0.2, "edm_noise.p_mean", given=EDM),
    Row("edm.p_std", 0.7, "edm_noise.p_std", given=EDM),
    Row("model.ema_power", (0.1, 0.2), "make_init.averages", 2),
    Row(
        *("model.ema_power", (0.1, 0.2), "train_steps.gammas"),
        tuple(map(averages.gamma_of_width, (0.1, 0.2))),
    ),
    Row("data.labels", True, "model.num_classes", 10),
    Row("model.num_classes", 3, "model.num_classes", given=CLASSES),
    Row("model.num_classes", 3, "train_steps.num_classes", given=CLASSES),
    Row("model.label_dropout", 0.5, "train_steps.label_dropout"),
    Row("ncsnpp.ch_mult", (1, 2), "model.ch_mult", given=SDE),
    Row("ncsnpp.num_res_blocks", 2, "model.num_res_blocks", given=SDE),
    Row("ncsnpp.attn_resolutions", (8,), "model.attn_resolutions", given=SDE),
    Row("ncsnpp.dropout", 0.5, "model.dropout", given=SDE),
    Row("ncsnpp.dropout", 0.5, "diffusion.model.dropout", given=SDE),
    Row("ncsnpp.fourier_scale", 3.0, "model.fourier_scale", given=SDE),
    Row("ncsnpp.resblock_type", "ddpm", "model.resblock_type", given=SDE),
    Row("ncsnpp.fir", True, "model.fir", given=SDE | {"ncsnpp.progressive_input": "residual"}),
    Row("ncsnpp.skip_rescale", False, "model.skip_rescale", given=SDE),
    Row("ncsnpp.progressive", "output_skip", "model.progressive", given=SDE),
    Row("ncsnpp.progressive_input", "residual", "model.progressive_input", given=SDE),
    Row("ncsnpp.init_scale", 0.5, "model.init_scale", given=SDE),
    Row("training.sde", "vp", "diffusion.sde", sde.VP(0.1, 20.0), SDE),
    Row("training.sde", "subvp", "probability_flow.sde", sde.SubVP(0.1, 20.0), SDE),
    Row("training.sde", "vp", "model.scale_by_sigma", False, SDE),
    Row("training.continuous", False, "diffusion.num_levels", 30, SDE),
    Row("training.continuous", False, "model.embedding_type", "positional", SDE),
    Row("training.likelihood_weighting", True, "diffusion.likelihood_weighting", given=SDE),
    Row("training.augment", 0.3, "train_steps.augment", given=SDE),
    Row("training.augment", 0.3, "model.augment_features", 9, SDE),
    Row("training.reduce_mean", True, "train_steps.reduce_mean"),
    Row("training.loss", "sm", "ladder.loss", objectives.LOSSES["sm"]),
    Row(
        *("training.num_projections", 3, "ladder.loss.keywords.num_projections"),
        given={"training.loss": "ssm"},
    ),
    Row("training.anneal_power", 1.0, "ladder.anneal_power"),
    Row("training.microbatches", 2, "train_steps.microbatches", given={"training.batch_size": 16}),
    Row("training.remat", True, "ladder.model.remat"),
    Row("training.remat", True, "diffusion.model.remat", given=SDE),
    Row("training.dtype", "bfloat16", "ladder.model.dtype", jnp.bfloat16),
    Row("training.dtype", "bfloat16", "diffusion.model.dtype", jnp.bfloat16, SDE),
    Row("training.skip_nonfinite", 1, "train_steps.skip_nonfinite", True),
    Row("training.grad_clip", 0.5, "make_optimizer.grad_clip"),
    Row("optim.name", "adamw", "make_optimizer.name"),
    Row(
        *("optim.decay_after", 7, "make_optimizer.decay_after"),
        given={"optim.schedule": "rsqrt"},
    ),
    Row("optim.learning_rate", 0.5, "make_optimizer.learning_rate"),
    Row("optim.beta1", 0.5, "make_optimizer.beta1"),
    Row("optim.beta2", 0.5, "make_optimizer.beta2"),
    Row("optim.eps", 0.5, "make_optimizer.eps"),
    Row("optim.weight_decay", 0.5, "make_optimizer.weight_decay"),
    Row("optim.warmup_steps", 7, "make_optimizer.warmup_steps"),
    Row(
        *("optim.schedule", "cosine", "make_optimizer.decay_steps", 70),
        given={"training.num_steps": 70},
    ),
    Row("sampling.dtype", "bfloat16", "score_fn.model.dtype", jnp.bfloat16),
    Row("sampling.dtype", "bfloat16", "time_score_fn.model.dtype", jnp.bfloat16, SDE),
    *(
        row
        for where in ("annealed_langevin", "inpaint")
        for row in (
            Row("sampling.epsilon", 0.5, f"{where}.epsilon"),
            Row("sampling.steps_per_level", 3, f"{where}.steps_per_level"),
            Row("sampling.steps_per_level", 3, f"{where}.steps", (0, 7)),
            Row("sampling.denoise", False, f"{where}.denoise"),
            Row("sampling.clip", (0.0, 0.5), f"{where}.clip"),
        )
    ),
    Row("sampling.init", "normal", "initial_samples.init"),
    Row("inpainting.keep_observed", False, "inpaint.keep_observed"),
    Row("inpainting.scheme", "ncsn", "inpaint.scheme"),
    Row("sampling.predictor", "euler_maruyama", "predictor_corrector.predictor"),
    Row(
        "sampling.corrector",
        "langevin",
        "predictor_corrector.corrector",
        given={"sampling.snr": 0.1},
    ),
    Row("sampling.snr", 0.2, "predictor_corrector.snr", given=CORRECTED),
    Row("sampling.corrector_steps", 2, "predictor_corrector.corrector_steps"),
    Row("sampling.num_steps", 30, "predictor_corrector.num_steps"),
    Row("sampling.end", 0.1, "predictor_corrector.end"),
    Row("sampling.denoise", False, "predictor_corrector.denoise"),
    Row("sampling.num_steps", 30, "karras.num_levels"),
    Row("sampling.num_steps", 30, "heun.steps", (0, 30)),
    Row("sampling.rho", 2.0, "karras.rho"),
    Row("sampling.churn", 2.0, "heun.churn"),
    Row("sampling.churn", 2.0, "euler.churn"),
    Row("sampling.order", 3, "dpm_solver.order"),
    Row("sampling.stochastic", True, "dpm_solver.stochastic"),
    Row("sampling.rtol", 0.1, "probability_flow.rtol"),
    Row("sampling.atol", 0.1, "probability_flow.atol"),
    Row("sampling.end", 0.1, "probability_flow.end"),
    *(
        Row(f"sampling.{tol}", 0.1, f"{w}.{tol}")
        for w in ("encode", "decode")
        for tol in ("rtol", "atol")
    ),
    Row("sampling.end", 0.1, "encode.start"),
    Row("sampling.end", 0.1, "decode.end"),
    Row("classifier.scale", 2.0, "guided.scale", given=SDE),
    Row(
        *("sampling.guidance", 2.0, "classifier_free.scale"),
        given=CLASSES | {"sampling.guidance": 3.0},
    ),
    Row(  # the last call is of the score of time
        *("sampling.guidance_interval", (0.01, 5.0), "classifier_free.interval", (0.0, 1.0)),
        given=CLASSES | {"sampling.guidance": 3.0},
    ),
    Row("likelihood.exact", True, "log_prob.exact"),
    Row("likelihood.num_projections", 3, "log_prob.num_projections"),
    Row("likelihood.rtol", 0.1, "log_prob.rtol"),
    Row("likelihood.atol", 0.1, "log_prob.atol"),
    Row("likelihood.end", 0.1, "log_prob.end"),
]


def arrived(record, row: Row, *, changed: bool):
    """Returns the argument that a row's field becomes, with its default or another value."""
    function, *path = row.where.split(".")
    given = {name: value for name, value in row.given.items() if name != "sde"}
    place, act, method = PLACES.get(function, (None, None, None))
    if method:
        given["sampling.method"] = method
    given |= {row.field: row.value} if changed else {}
    load = load_diffusion_config if row.given.get("sde") else load_config
    config = load(**{name: value for name, value in given.items() if not name.startswith("data.")})
    config.update_from_flattened_dict({k: v for k, v in given.items() if k.startswith("data.")})
    if function == "model":
        found = build.make_model(config)
    else:
        record.calls.clear()
        act(config)
        found = record.calls[place][-1]
    for name in path:
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    return found


def equal(a, b) -> bool:
    if isinstance(a, jax.Array) or isinstance(b, jax.Array):
        return np.shape(a) == np.shape(b) and bool(np.all(np.asarray(a) == np.asarray(b)))
    return a == b


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.field}-{row.where}")
def test_a_field_reaches_its_argument(row, record):
    expected = row.value if row.expected is None else row.expected
    assert not equal(arrived(record, row, changed=False), expected)
    assert equal(arrived(record, row, changed=True), expected)


def test_temperature_scales_the_decoded_latents(record):
    config = load_config(**{"sampling.temperature": 3.0})
    decode = run_flows.on_devices(config, run_flows.decode)
    found, _ = decode(devices.replicate({}), IMAGES[:2].astype(np.float32), 2)
    np.testing.assert_array_equal(found, 3.0 * IMAGES[:2])


def test_noise_depends_on_the_seed_and_the_sample_index(record):
    """The start uses the first of a sample's two keys, and the steps the second."""

    def add_noise(key, x, steps, **_):
        noise = jax.vmap(lambda k: jax.random.uniform(k, x.shape[1:]))(key)
        return jnp.where(steps[0] == 0, x + noise, x)

    record.watch(sampling, "annealed_langevin", add_noise)
    indices = [4, 1, 7]
    config = load_config(seed=5, **{"sampling.init": "uniform"})
    made = run_samplers.Chains(config).run(devices.replicate({}), indices, 3).images
    key = jax.random.fold_in(jax.random.key(5), Stream.SAMPLES)
    pairs = [jax.random.split(jax.random.fold_in(key, i)) for i in indices]
    drawn = [[jax.random.uniform(k, (64,)).reshape(8, 8, 1) for k in pair] for pair in pairs]
    expected = np.clip(np.sum(drawn, axis=1), 0, 1) * 255
    np.testing.assert_allclose(made, expected, atol=0.51)


class Chains:
    """Makes black images, and records its arguments."""

    num_steps, evaluations, classes, value_range = 1, 1, None, ()

    def __init__(self, config, task=Stream.SAMPLES, classifier=None):
        self.task, self.sizes, self.known = task, [], []
        Chains.made = self

    def run(self, params, indices, size, *known, num_frames=0, advanced=lambda steps: None):
        self.sizes.append(size)
        self.known.append((indices, known))
        images = np.zeros((len(indices), 8, 8, 1), np.uint8)
        return run_samplers.Samples(images, None, [1] * len(images))


class Flow:
    """Encodes and decodes by the identity; the bits of an image are its mean."""

    sizes: list[int] = []  # noqa: RUF012

    def __init__(self, config, function):
        self.judges = function is run_flows.bits_per_dim

    def __call__(self, params, array, size, indices=None):
        Flow.sizes.append(size)
        return array.mean(axis=(1, 2, 3)) if self.judges else array, np.zeros(len(array))


@pytest.fixture
def trained(record, monkeypatch):
    """Lets the modes work without a run; the images are `IMAGES`."""
    monkeypatch.setattr(shared, "begin", lambda *_: None)
    monkeypatch.setattr(shared, "load", lambda c, w: shared.Loaded(c, w, 1, {}))
    monkeypatch.setattr(run_samplers, "Chains", Chains)
    monkeypatch.setattr(run_flows, "on_devices", Flow)
    monkeypatch.setattr(Flow, "sizes", [])
    return record


def read(path):
    with np.load(path) as file:
        return dict(file)


def test_inpainting_fields_reach_their_arguments(trained, tmp_path):
    trained.watch(complete, "make_masks")
    trained.watch(image_folder, "Folder", lambda **_: "the folder")
    trained.watch(image_folder, "first", lambda count, **_: (IMAGES[5 : 5 + count], ""))
    changes = {"num_images": 2, "num_completions": 3, "mask": "box", "images": "pictures"}
    config = load_config(**{f"inpainting.{name}": value for name, value in changes.items()})
    config.sampling.batch_size, config.sampling.name, config.seed = 4, "named", 9
    config.data.background = 3
    complete.inpaint(config, str(tmp_path))
    (pictures,), (first,) = trained.calls["Folder"], trained.calls["first"]
    assert (pictures["path"], pictures["crop_size"]) == ("pictures", -1)
    assert first == {"folder": "the folder", "count": 2}
    masks = trained.calls["make_masks"][0]
    assert (masks["mask"], masks["count"], masks["seed"]) == ("box", 2, 9)
    assert (masks["background"], pictures["background"]) == (3, 3)
    found = read(tmp_path / "inpainting" / "step_1_named" / "completions.npz")
    np.testing.assert_array_equal(found["originals"], IMAGES[5:7])
    assert found["completions"].shape == (2, 3, 8, 8, 1) and Chains.made.sizes == [4, 4]
    for indices, (observed, hidden) in Chains.made.known:
        which = np.asarray(indices) // 3
        np.testing.assert_allclose(observed, IMAGES[5:][which] / 255, rtol=1e-6)
        np.testing.assert_array_equal(hidden, found["masks"][which])


def test_images_to_inpaint_come_from_the_test_split_by_default(trained, tmp_path):
    complete.inpaint(load_config(), str(tmp_path))
    assert trained.calls["load"][-1]["split"] == "test"


def restoration_call(trained, tmp_path, **fields):
    """Returns the chains of the mode with these fields of `config.restore`, and its arrays."""
    changes = {f"restore.{name}": value for name, value in fields.items()}
    config = load_config(**{"restore.num_images": 2, "restore.num_samples": 3} | changes)
    config.sampling.batch_size = 4
    restore_mode.restore(config, str(tmp_path))
    return Chains.made, read(tmp_path / "restoration" / "step_1" / "restored.npz")


def test_restoration_fields_reach_their_arguments(trained, tmp_path):
    trained.watch(image_folder, "Folder", lambda **_: "the folder")
    trained.watch(image_folder, "first", lambda count, **_: (IMAGES[5 : 5 + count], ""))
    trained.watch(restoration, "random_masks")
    made, found = restoration_call(
        trained, tmp_path, images="pictures", operator="mask", factor=4.0, noise=0.0
    )
    assert trained.calls["Folder"][0]["path"] == "pictures" and made.sizes == [4, 4]
    assert trained.calls["Folder"][0]["field"] == "config.restore.images"
    assert trained.calls["random_masks"][0]["factor"] == 4.0
    np.testing.assert_array_equal(found["originals"], IMAGES[5:7])
    assert found["samples"].shape == (2, 3, 8, 8, 1) and found["masks"].sum() == 32
    expected = np.where(found["masks"][..., None], IMAGES[5:7] / 255, 0)
    np.testing.assert_allclose(found["measurements"], expected, rtol=1e-6)
    for indices, known in made.known:
        for told, of_all in zip(known, (found["measurements"], found["masks"]), strict=True):
            np.testing.assert_array_equal(told, of_all[np.asarray(indices) // 3])


def test_measurements_to_restore_come_from_their_file(trained, tmp_path):
    y = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype(np.float32)
    np.save(tmp_path / "y.npy", y)
    given = {"measurements": str(tmp_path / "y.npy"), "operator": "blur", "kernel": "0.7"}
    _, found = restoration_call(trained, tmp_path, **given)
    np.testing.assert_array_equal(found["measurements"], y[:2])
    assert "originals" not in found


def test_grey_is_the_mean_of_the_channels(trained, tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    trained.watch(data, "load", lambda **_: data.Images(images))
    colours = lambda self, params, indices, size, *known, **_: (
        self.known.append((indices, known))
        or run_samplers.Samples(images[: len(indices)], None, [1])
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chains, "run", colours)
        changes = {"inpainting.num_images": 2, "inpainting.num_completions": 1}
        complete.colorize(load_config(**changes, **{"data.channels": 3}), str(tmp_path))
    ((_, (grey,)),) = Chains.made.known
    np.testing.assert_allclose(grey[..., 0], images[:2].mean(axis=-1) / 255, rtol=1e-5)


def test_interpolation_fields_reach_their_arguments(trained, tmp_path):
    changes = {
        "interpolation.num_pairs": 3,
        "interpolation.num_steps": 5,
        "sampling.batch_size": 10,
    }
    interpolate_mode.interpolate(load_config(**changes), str(tmp_path))
    found = read(tmp_path / "interpolation" / "step_1" / "interpolation.npz")
    assert found["interpolations"].shape == (3, 5, 8, 8, 1)
    np.testing.assert_array_equal(found["originals"].reshape(6, 8, 8, 1), IMAGES[:6])
    assert Flow.sizes == [4, 10, 4, 10]  # two pairs at once, five images each


@pytest.mark.parametrize("split", ["train", "test"])
def test_likelihood_fields_reach_their_arguments(split, trained, tmp_path):
    changes = {"likelihood.split": split, "likelihood.num_images": 4, "sampling.batch_size": 3}
    likelihood_mode.likelihood(load_config(**changes), str(tmp_path))
    assert trained.calls["load"][-1]["split"] == split
    found = read(tmp_path / "likelihood" / "step_1" / "bits_per_dim.npz")["bits_per_dim"]
    np.testing.assert_allclose(found[:, 0], IMAGES[:4].mean(axis=(1, 2, 3)), rtol=1e-6)
    assert Flow.sizes == [3, 3]


@pytest.mark.parametrize(
    ("label", "expected"), [(-1, [0, 1, 2, 0, 1, 2, 0, 1]), (0, [0] * 8), (2, [2] * 8)]
)
def test_samples_have_the_chosen_class_or_every_class_in_turn(label, expected, trained, tmp_path):
    model = models.NoisyClassifier(3, 4)
    config = load_diffusion_config(digits_vp, **{"classifier.label": label})
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 1)), np.ones(1))
    params = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), shapes)
    described = classifier_file.describe(config, model)
    (tmp_path / "classifier").mkdir()
    classifier_file.save(str(tmp_path / "classifier" / "classifier.npz"), params, described)
    classifier_mode.classconditional(config, str(tmp_path))
    (known,) = (known for _, known in Chains.made.known)
    np.testing.assert_array_equal(known[0], expected)


def test_training_fields_reach_their_arguments(tmp_path, monkeypatch):
    """One run checks all of them, by the files it writes."""
    record = Recorder(monkeypatch)
    record.watch(data.Batches, "between")
    for owner, name in ((data, "Batches"), (devices, "TrainSteps"), (run_lib, "Window")):
        record.watch(owner, name)
    keys, make_init = [], training.make_init

    def init_with_key(*args, **options):
        init = make_init(*args, **options)
        return lambda key: keys.append(key) or init(key)

    monkeypatch.setattr(training, "make_init", init_with_key)
    sizes, real = [], run_samplers.Chains.run
    monkeypatch.setattr(
        run_samplers.Chains,
        "run",
        lambda self, params, indices, size, **options: (
            sizes.append((len(indices), size)) or real(self, params, indices, size, **options)
        ),
    )
    config = tiny.get_config()
    config.update_from_flattened_dict(
        {
            "seed": 9,
            "data.prefetch": 5,
            "data.workers": 3,
            "training.batch_size": 16,
            "training.steps_per_call": 2,
            "training.num_steps": 20,
            "training.checkpoint_every": 4,
            "training.log_every": 10,
            "training.sample_every": 10,
            "training.checkpoints_kept": 1,
            "training.keep_every": 8,
            "training.skip_nonfinite": 3,
            "training.remat": True,
            "sampling.preview_samples": 3,
            "sampling.num_samples": 5,
            "sampling.batch_size": 4,
            "sampling.gif": True,
            "sampling.name": "named",
        }
    )
    run_lib.train(config, str(tmp_path))
    with checkpoints.Checkpoints(str(tmp_path), read_only=True) as store:
        assert store.steps() == [20, 16, 8]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]
    samples = tmp_path / "samples"
    assert [path.parent.name for path in samples.glob("*/preview.png")] == ["step_10"]
    assert read(samples / "step_20_named" / "samples.npz")["samples"].shape == (5, 8, 8, 1)
    assert (samples / "step_20_named" / "annealing.gif").exists()
    assert sizes == [(3, 3), (4, 4), (1, 4), (4, 4)]  # preview, two batches, film
    (batches,), (steps,), (window,) = (record.calls[n] for n in ("Batches", "TrainSteps", "Window"))
    assert (batches["seed"], batches["batch_size"]) == (9, 16)
    (between,) = record.calls["between"]
    assert (between["first"], between["last"], between["num_steps"]) == (0, 20, 2)
    assert (between["threads"], between["ahead"]) == (3, 5)
    assert keys[-1] == jax.random.fold_in(jax.random.key(9), Stream.PARAMETERS)
    assert (
        steps["seed"] == 9
        and steps["remat"] is True
        and steps["images"].shape == (8, 2, 2, 8, 8, 1)
    )
    assert window["skip_nonfinite"] == 3


DENOISER = test_build.test_a_denoiser_has_the_columns_of_table_1_that_the_fields_name
HALFLIFE = test_build.test_the_half_life_of_the_average_grows_with_the_images_seen
PRECISION = test_build.test_products_of_a_network_and_its_derivatives_have_the_configured_precision

ELSEWHERE = {
    "seed": test_noise_depends_on_the_seed_and_the_sample_index,
    "edm.preconditioning": DENOISER,
    "edm.noise": DENOISER,
    "model.ema_halflife": HALFLIFE,
    "model.ema_rampup": HALFLIFE,
    "data.prefetch": test_training_fields_reach_their_arguments,
    "data.workers": test_training_fields_reach_their_arguments,
    "training.batch_size": test_training_fields_reach_their_arguments,
    "training.num_steps": test_training_fields_reach_their_arguments,
    "training.steps_per_call": test_training_fields_reach_their_arguments,
    "training.checkpoint_every": test_training_fields_reach_their_arguments,
    "training.log_every": test_training_fields_reach_their_arguments,
    "training.sample_every": test_training_fields_reach_their_arguments,
    "training.checkpoints_kept": test_training_fields_reach_their_arguments,
    "training.keep_every": test_training_fields_reach_their_arguments,
    "training.keep_best": test_watching.test_the_best_checkpoint_is_kept_over_resumes,
    "training.precision": PRECISION,
    "sampling.precision": PRECISION,
    "average.width": test_average.test_averages_of_other_widths_are_runs_that_every_mode_takes,
    "plan.topology": test_plan.test_the_plan_uses_the_devices_of_the_topology,
    "sampling.method": test_samplers.test_a_method_runs_only_its_sampler,
    "sampling.schedule": test_samplers.test_schedules_run_from_sigma_begin_or_over_the_times_of_the_sde,
    "sampling.temperature": test_temperature_scales_the_decoded_latents,
    "sampling.num_samples": test_training_fields_reach_their_arguments,
    "sampling.batch_size": test_training_fields_reach_their_arguments,
    "sampling.preview_samples": test_training_fields_reach_their_arguments,
    "sampling.gif": test_training_fields_reach_their_arguments,
    "sampling.name": test_training_fields_reach_their_arguments,
    "likelihood.split": test_likelihood_fields_reach_their_arguments,
    "likelihood.num_images": test_likelihood_fields_reach_their_arguments,
    "evaluation.every": test_watching.test_the_best_checkpoint_is_kept_over_resumes,
    "evaluation.num_samples": test_evaluate.test_a_run_is_measured_in_pixels,
    "evaluation.features": test_evaluate.test_features_that_images_cannot_have_are_refused,
    "evaluation.weights": test_evaluate.test_weights_that_cannot_be_had_are_one_line,
    "evaluation.sweep": test_sweep.test_a_sweep_names_every_combination,
    "sampling.label": test_classes.test_samples_have_the_chosen_classes_in_turn,
    "sampling.guide": test_classes.test_a_worse_network_guides,
    "sampling.guide_step": test_classes.test_a_worse_network_guides,
    "sampling.step": test_evaluate.test_a_sweep_evaluates_every_combination_and_goes_on_after_an_interruption,
    "evaluation.reference": test_evaluate.test_statistics_serve_as_the_reference,
    "interpolation.num_pairs": test_interpolation_fields_reach_their_arguments,
    "interpolation.num_steps": test_interpolation_fields_reach_their_arguments,
    "classifier.features": test_classifier.test_a_classifier_is_trained_on_one_split_and_tested_on_the_other,
    **dict.fromkeys(
        ("classifier.num_steps", "classifier.batch_size", "classifier.learning_rate"),
        test_classifier_training.test_training_runs_the_library_steps_on_the_batches_of_the_seed,
    ),
    "classifier.label": test_samples_have_the_chosen_class_or_every_class_in_turn,
    **dict.fromkeys(
        ("restore.operator", "restore.method", "restore.noise"),
        test_restoration.test_the_fields_are_the_arguments_of_the_posterior,
    ),
    "restore.kernel": test_restoration.test_a_normal_kernel_has_six_standard_deviations_or_fits_the_image,
    "restore.mask": test_restoration.test_masks_of_pixels_are_those_of_inpainting_or_of_a_file,
    "restore.measurements": test_measurements_to_restore_come_from_their_file,
    **dict.fromkeys(
        (f"restore.{name}" for name in ("factor", "images", "num_images", "num_samples")),
        test_restoration_fields_reach_their_arguments,
    ),
    "inpainting.mask": test_inpainting_fields_reach_their_arguments,
    "inpainting.images": test_inpainting_fields_reach_their_arguments,
    "inpainting.num_images": test_inpainting_fields_reach_their_arguments,
    "inpainting.num_completions": test_inpainting_fields_reach_their_arguments,
}


def test_every_field_is_covered():
    rows = {row.field for row in ROWS}
    assert not rows & ELSEWHERE.keys()
    assert rows | ELSEWHERE.keys() == schema.FIELDS.keys()
