"""The application with an SDE: training, every sampler and every mode, on networks of a few channels."""

import functools
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import run_lib
from configs import digits_subvp, digits_ve, digits_vp
from ncsn_jax import likelihood, losses, models, objectives, sde, training
from ncsn_jax.app import (
    build,
    classifier_file,
    devices,
    run_flows,
    run_samplers,
    storage,
    workdirs,
)
from ncsn_jax.app.modes import classifier
from ncsn_jax.errors import UserError
from tests import tiny
from tests.models.comparison import run
from tests.running import load_diffusion_config as load_config


@pytest.fixture(scope="module", autouse=True)
def small_network():
    """What is tested here is not the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.MODELS, "ncsnpp", tiny.TinyDiffusion)
        yield


@pytest.fixture(scope="module")
def vp_run(tmp_path_factory):
    """A run whose SDE is on images in [-1, 1]."""
    workdir = str(tmp_path_factory.mktemp("vp"))
    run_lib.train(load_config(digits_vp), workdir)
    return workdir


@pytest.fixture(scope="module")
def ladder_run(tmp_path_factory):
    """A run on a ladder, without an SDE."""
    workdir = str(tmp_path_factory.mktemp("ladder"))
    config = tiny.get_config()
    config.update_from_flattened_dict(
        {
            "training.num_steps": 2,
            "training.checkpoint_every": 2,
            "training.log_every": 2,
            "training.sample_every": 0,
        }
    )
    run_lib.train(config, workdir)
    return config, workdir


def read(workdir, *path):
    with np.load("/".join([workdir, *path])) as file:
        return {name: file[name] for name in file.files}


METHODS = {
    "heun": ({}, 5),
    "predictor_corrector": (
        {
            "sampling.predictor": "ancestral",
            "sampling.corrector": "langevin",
            "sampling.snr": 0.1,
            "sampling.corrector_steps": 2,
            "sampling.num_steps": 21,
        },
        63,
    ),
    "probability_flow": ({}, None),
    "annealed_langevin": ({"sampling.steps_per_level": 1, "sampling.denoise": True}, 31),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_sampler_samples_from_an_sde(method, vp_run):
    changes, evaluations = METHODS[method]
    config = load_config(
        digits_vp, **{"sampling.method": method, "sampling.name": method} | changes
    )
    run_lib.sample(config, vp_run)
    samples = read(vp_run, "samples", f"step_4_{method}", "samples.npz")["samples"]
    assert samples.shape == (8, 8, 8, 1) and samples.dtype == np.uint8
    runner = run_samplers.Chains(config)
    assert runner.evaluations == evaluations


@pytest.mark.parametrize("method", ["heun", "predictor_corrector", "probability_flow"])
def test_every_sampler_samples_from_a_ladder(method, ladder_run):
    config, workdir = ladder_run
    changes = {
        "sampling.method": method,
        "sampling.name": method,
        "sampling.num_steps": 3,
        "sampling.rtol": 1e-2,
        "sampling.atol": 1e-2,
    }
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    run_lib.sample(config, workdir)
    assert read(workdir, "samples", f"step_2_{method}", "samples.npz")["samples"].shape[0] == 12


def test_a_run_in_two_parts_is_the_whole_run_to_the_bit(vp_run, tmp_path):
    """With dropout, whose keys are the step's and the example's."""
    for steps in (2, 4):
        config = load_config(digits_vp)
        config.training.num_steps, config.training.checkpoint_every = steps, 2
        run_lib.train(config, str(tmp_path))
    assert config.ncsnpp.dropout == 0.1
    states = [workdirs.load_newest(load_config(digits_vp), w)[1] for w in (vp_run, str(tmp_path))]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_samples_do_not_depend_on_their_batch(vp_run):
    """Nor on the parts in which the steps are run: 3 of 8 devices' chains against 8 of them."""
    config = load_config(
        digits_vp, **{"sampling.method": "predictor_corrector", "sampling.num_steps": 21}
    )
    _, state = workdirs.load_newest(config, vp_run)
    runner, params = run_samplers.Chains(config), devices.replicate(state.ema_params)
    whole = runner.run(params, list(range(8)), 8)
    part = runner.run(params, [2, 5, 7], 8, num_frames=2)
    # One grey level, where rounding differs at its edge.
    difference = whole.images[[2, 5, 7]].astype(int) - part.images
    assert np.abs(difference).max() <= 1
    np.testing.assert_array_equal(part.frames[-1], part.images)


def test_what_was_made_otherwise_is_not_overwritten(vp_run):
    config = load_config(digits_vp, **{"sampling.name": "heun", "sampling.num_steps": 4})
    with pytest.raises(UserError, match="sampling.num_steps is 3 there and 4 here"):
        run_lib.sample(config, vp_run)


def test_likelihood_is_added_to(vp_run):
    name = "step_4"
    config = load_config(digits_vp, **{"likelihood.num_images": 3})
    run_lib.likelihood(config, vp_run)
    first = read(vp_run, "likelihood", name, "bits_per_dim.npz")["bits_per_dim"]
    assert first.shape == (3, 2) and np.isfinite(first).all()
    config = load_config(digits_vp, **{"likelihood.num_images": 5})
    run_lib.likelihood(config, vp_run)
    bits = read(vp_run, "likelihood", name, "bits_per_dim.npz")["bits_per_dim"]
    np.testing.assert_array_equal(bits[:3], first)
    summary = json.loads(storage.read(f"{vp_run}/likelihood/{name}/summary.json"))
    assert summary["images"] == 5
    assert summary["bits_per_dim"] == pytest.approx(bits[:, 0].mean(dtype=float))
    error = bits[:, 0].std(ddof=1, dtype=float) / np.sqrt(5)
    assert summary["standard_error"] == pytest.approx(error)
    with pytest.raises(UserError, match="likelihood.rtol is 0.01 there and 0.1 here"):
        run_lib.likelihood(load_config(digits_vp, **{"likelihood.rtol": 0.1}), vp_run)


def test_interpolation_begins_and_ends_at_the_images(vp_run):
    config = load_config(digits_vp, **{"interpolation.num_pairs": 2, "interpolation.num_steps": 3})
    config.sampling.rtol = config.sampling.atol = 1e-5
    run_lib.interpolate(config, vp_run)
    found = read(vp_run, "interpolation", "step_4", "interpolation.npz")
    originals, between = found["originals"].astype(int), found["interpolations"].astype(int)
    assert between.shape == (2, 3, 8, 8, 1)
    config.sampling.temperature = 2.0
    with pytest.raises(UserError, match="sampling.temperature is 1.0 there and 2.0 here"):
        run_lib.interpolate(config, vp_run)
    for end in (0, -1):  # to one grey level, where rounding differs
        assert np.abs(between[:, end] - originals[:, end]).max() <= 1
    assert np.abs(between[:, 1] - originals[:, 0]).max() > 9


def test_inpainting_by_predictor_and_corrector_keeps_what_is_observed(vp_run):
    config = load_config(
        digits_vp,
        **{
            "sampling.method": "predictor_corrector",
            "sampling.num_steps": 21,
            "inpainting.num_images": 2,
            "inpainting.num_completions": 4,
        },
    )
    run_lib.inpaint(config, vp_run)
    found = read(vp_run, "inpainting", "step_4", "completions.npz")
    observed = np.broadcast_to(found["masks"][:, None], found["completions"].shape).astype(bool)
    originals = np.broadcast_to(found["originals"][:, None], observed.shape)
    np.testing.assert_array_equal(found["completions"][observed], originals[observed])
    assert (found["completions"][~observed] != originals[~observed]).any()


def test_colorization_keeps_the_grey(tmp_path):
    """Of a network of one step, whose colours are noise within the limits of 8 bits."""
    pictures, workdir = tmp_path / "pictures", str(tmp_path / "run")
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        image = rng.integers(100, 156, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(image).save(pictures / f"{i}.png")
    config = load_config(
        digits_subvp,
        **{
            "data.dataset": "image_folder",
            "data.data_dir": str(pictures),
            "data.channels": 3,
            "data.crop_size": -1,
            "training.num_steps": 1,
            "training.checkpoint_every": 1,
            "training.log_every": 1,
            "sampling.num_samples": 1,
            "inpainting.images": str(pictures),
            "inpainting.num_images": 2,
            "inpainting.num_completions": 4,
        },
    )
    run_lib.train(config, workdir)
    with pytest.raises(UserError, match="'heun' must be 'predictor_corrector' for colorization"):
        run_lib.colorize(config, workdir)
    config.sampling.method = "predictor_corrector"
    config.sampling.predictor = "euler_maruyama"
    config.sampling.num_steps = 50
    run_lib.colorize(config, workdir)
    found = read(workdir, "colorization", "step_1", "completions.npz")
    completions = found["completions"].astype(float)
    inside = ((completions > 0) & (completions < 255)).all(axis=-1)
    assert inside.mean() > 0.1
    grey = np.broadcast_to(found["grey"][:, None, ..., 0], inside.shape)
    # Three channels and the grey are rounded to a level each: their mean is off by half a level twice.
    assert np.abs(completions.mean(axis=-1) - grey)[inside].max() < 1.1


class TinyClassifier(nn.Module):
    num_classes: int
    features: int = 4
    ch_mult: tuple[int, ...] = (1, 2)

    @nn.compact
    def __call__(self, x, sigma):
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


def test_classes_take_a_classifier(vp_run, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier_file, "NoisyClassifier", TinyClassifier)
    monkeypatch.setattr(classifier, "NoisyClassifier", TinyClassifier)
    config = load_config(digits_vp)
    workdir = str(shutil.copytree(vp_run, tmp_path / "run"))
    with pytest.raises(UserError, match="holds no classifier: train it with --mode=classifier"):
        run_lib.classconditional(config, workdir)
    run_lib.classifier(config, workdir)
    with pytest.raises(UserError, match="is there already"):
        run_lib.classifier(config, workdir)
    config.classifier.label = 10
    with pytest.raises(UserError, match="label=10 must be -1"):
        run_lib.classconditional(config, workdir)
    config.classifier.label = 3
    config.sampling.method, config.sampling.name = "probability_flow", "flow"
    run_lib.classconditional(config, workdir)
    config.sampling.method, config.sampling.name = "heun", ""
    run_lib.classconditional(config, workdir)
    found = read(workdir, "classconditional", "step_4", "samples.npz")["samples"]
    run_lib.sample(config, workdir)
    without = read(workdir, "samples", "step_4", "samples.npz")["samples"]
    assert found.shape == without.shape and not np.array_equal(found, without)
    other = load_config(digits_vp, **{"classifier.scale": 2.0})
    with pytest.raises(UserError, match="classifier.scale is 1.0 there and 2.0 here"):
        run_lib.classconditional(other, workdir)


@pytest.mark.parametrize("module", [digits_ve, digits_vp])
def test_bits_per_dimension_are_those_of_a_known_density(module, monkeypatch):
    """Pixels N(0.5, 0.3^2) in [0, 1], of which the SDE may have 2 x - 1."""
    config = load_config(module, **{"likelihood.exact": True})
    config.likelihood.rtol = config.likelihood.atol = 1e-5
    config.model.sigma_begin = 50.0
    process, std = build.make_sde(config), 0.6 if config.data.centered else 0.3
    mean = 0.0 if config.data.centered else 0.5

    def score(x, sigma):
        return (mean - x) / (std**2 + sigma**2)[:, None, None, None]

    time_score_fn = sde.from_sigma_score(process, score)
    monkeypatch.setattr(build, "make_score_fn", lambda *_: (score, time_score_fn))
    images = np.random.default_rng(0).integers(60, 200, (3, 8, 8, 1), dtype=np.uint8)
    found = run_flows.Flow(config).bits_per_dim(devices.replicate({}), [0, 1, 2], images, 3)
    key = jax.random.fold_in(jax.random.key(config.seed), run_flows._FOR_LIKELIHOOD)
    keys = jnp.stack([jax.random.split(jax.random.fold_in(key, i))[0] for i in range(3)])
    x = np.asarray(likelihood.dequantize(keys, images))
    nats = np.mean((x - 0.5) ** 2, axis=(1, 2, 3)) / 2 / 0.09 + np.log(0.3 * np.sqrt(2 * np.pi))
    # The prior is not quite the distribution at t = 1, and the noise at t = 0 has sigma_min^2 / std^2 = 1e-3.
    np.testing.assert_allclose(found.values, 8 + nats / np.log(2), atol=3e-3)


class Network:
    """F(x, label) of the authors' figures."""

    def apply(self, params, x, label):
        label = label[:, None, None, None]
        return -0.7 * x + 0.2 * jnp.sin(3 * x) + 0.01 * label * jnp.cos(x)


@pytest.mark.parametrize(
    ("name", "process"),
    [("ve", sde.VE(0.01, 50.0)), ("vp", sde.VP(0.1, 20.0)), ("subvp", sde.SubVP(0.1, 20.0))],
)
def test_scores_of_a_network_equal_the_authors(name, process, golden):
    figures = golden("sde")
    x, t = jnp.asarray(figures["in/x"]), jnp.asarray(figures["in/t"])
    kinds = [("score_cont", None)] + ([] if name == "subvp" else [("score_disc", 100)])
    for kind, num_levels in kinds:
        expected = figures[f"out/{name}/{kind}"]
        score = models.time_score_fn(Network(), None, process, num_levels=num_levels)(x, t)
        scale = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
        # A few roundings of float32, of labels up to 999 and exponents up to log(5000).
        np.testing.assert_allclose(score / scale, expected / scale, atol=5e-6)


def test_more_noise_than_the_largest_has_its_level():
    """As a solver asks for that adds noise of its own."""
    process = sde.VE(0.01, 50.0)
    labels = []

    class Record(Network):
        def apply(self, params, x, label):
            labels.append(np.asarray(label))
            return x

    score_fn = models.time_score_fn(Record(), None, process, num_levels=100)
    score_fn(jnp.ones((3, 2, 2, 1)), jnp.asarray([1.1, 1.0, -0.1]))
    np.testing.assert_array_equal(labels[0], [0, 0, 99])


def test_likelihood_weighting_enters_the_mean_and_not_the_bins():
    process = sde.VP(0.1, 20.0)
    x = jnp.ones((4, 2, 2, 1))
    t = jnp.asarray([0.05, 0.35, 0.95, 1.0])
    keys = jax.random.split(jax.random.key(0), 4)
    objective = objectives.diffusion(Network(), process, likelihood_weighting=True)
    score_fn = objective.score_fn(None, keys)
    plain = objective.loss(keys, score_fn, x, t)
    weighted = losses.denoising_diffusion(keys, process, score_fn, x, t, likelihood_weighting=True)
    np.testing.assert_allclose(objective.weight(t) * plain, weighted, rtol=1e-5)
    np.testing.assert_array_equal(objective.bin(t), [9, 6, 0, 0])
    assert (np.diff(objective.sigmas) < 0).all()


def test_dropout_of_an_example_does_not_depend_on_the_devices():
    config = load_config(**{"training.reduce_mean": True})
    model = build.make_model(config)
    state = build.make_init(config)(jax.random.key(0))
    # The last convolutions begin at almost zero, behind which dropout would not be seen.
    noise = jax.random.split(jax.random.key(1), len(jax.tree.leaves(state.params)))
    noise = jax.tree.unflatten(jax.tree.structure(state.params), list(noise))
    params = jax.tree.map(lambda p, k: p + 0.1 * jax.random.normal(k, p.shape), state.params, noise)
    keys = jax.random.split(jax.random.key(2), 4)
    x, t = jax.random.normal(jax.random.key(3), (4, 8, 8, 1)), jnp.full(4, 0.5)
    process = build.make_sde(config)

    @jax.jit
    def score(x, t, keys):
        return models.time_score_fn(model, params, process, dropout_keys=keys)(x, t)

    whole = score(x, t, keys)
    assert model.dropout == 0.1
    without = models.time_score_fn(model, params, process)(x, t)
    scale = np.abs(whole).max()
    assert np.abs(whole - without).max() / scale > 1e-2
    for i in range(2):
        part = score(x[i::2], t[i::2], keys[i::2])
        np.testing.assert_allclose(part / scale, whole[i::2] / scale, atol=1e-5)


def test_the_mean_over_elements_is_two_over_d_times_the_sum():
    config = load_config()
    state = build.make_init(config)(jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    objective = build.make_objective(config)
    options = build.make_train_steps(config).keywords | {"objective": objective}

    def measured(reduce_mean):
        step = functools.partial(training.train_step, **options | {"reduce_mean": reduce_mean})
        return run(step, state, images, 0)[1]

    total, mean = measured(False), measured(True)
    for name in ("loss", "grad_norm"):
        ratio = float(getattr(mean, name) / getattr(total, name))
        assert ratio == pytest.approx(2 / 64, rel=1e-4)
    np.testing.assert_allclose(mean.level_loss, total.level_loss, rtol=1e-6)
