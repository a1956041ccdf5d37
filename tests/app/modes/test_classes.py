"""Samples of a run with classes: their classes, guidance, and the guide, against the library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ncsn_jax
import run_lib
from ncsn_jax import sampling, sigmas
from ncsn_jax._random import Stream
from ncsn_jax.app import build, distributed, guides, measuring, samplers, schema
from ncsn_jax.app.modes import plan
from ncsn_jax.app.sample_store import SampleStore
from ncsn_jax.errors import UserError
from tests.app.modes import runs
from tests.running import load_config, python_of

small_network = runs.small_network
HEUN = {"sampling.method": "heun", "sampling.num_steps": 5, "model.sigma_begin": 5.0}


def labelled(**changes):
    return runs.vp_config(**HEUN | {"data.labels": True} | changes)


classes_run = runs.run_fixture(labelled)


@pytest.fixture(scope="module")
def guide(small_network, tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("guide") / "run")
    runs.write_run(labelled(), workdir, scale=1.5)
    return workdir


def by_library(config, score_fn):
    """Returns the five samples of a score of sigma."""
    start, key = runs.keys(Stream.SAMPLES, np.arange(5))
    ladder = sigmas.karras(config.model.sigma_begin, config.model.sigma_end, 5, config.sampling.rho)
    x = config.model.sigma_begin * runs.normal(start)
    return jax.jit(lambda: sampling.heun(key, score_fn, x, ladder)[0])()


def combined(given, others, scale, low=0.0, high=np.inf):
    """Returns the guided score, as the paper has it."""

    def score(x, sigma):
        inside = ((low <= sigma) & (sigma <= high))[:, None, None, None]
        one, other = given(x, sigma), others(x, sigma)
        return jnp.where(inside, (1 - scale) * other + scale * one, one)

    return score


def test_samples_have_the_chosen_classes_in_turn(classes_run):
    interval = 0.1, 1.0
    options = {"label": (2, 7), "guidance": 3.0, "guidance_interval": interval, "name": "guided"}
    config = labelled(**{f"sampling.{name}": value for name, value in options.items()})
    run_lib.sample(config, classes_run)
    found = runs.read(classes_run, f"samples/step_{runs.STEP}_guided", "samples.npz")
    np.testing.assert_array_equal(found["labels"], [2, 7, 2, 7, 2])
    given = runs.library(config, classes_run, classes=jnp.asarray([2, 7, 2, 7, 2]))[1]
    others = runs.library(config, classes_run, classes=jnp.full(5, 10))[1]
    for scale, is_right in ((3.0, True), (1.0, False)):
        expected = by_library(config, combined(given, others, scale, *interval))
        error = np.abs(runs.as_bytes(config, expected).astype(int) - found["samples"]).max()
        assert (error <= 1) == is_right
    made = run_lib.shared.load(config, classes_run).sampler_settings()
    assert made["sampling.label"] == [2, 7] and made["sampling.guidance"] == 3.0


def test_a_run_gives_samples_and_scores_of_a_class(classes_run):
    run, config = ncsn_jax.load_run(classes_run), labelled()
    given, others = (
        runs.library(config, classes_run, **given)[1]
        for given in ({"classes": jnp.full(5, 3)}, {"classes": jnp.full(5, 10)})
    )
    x, sigma = run.prepare(np.full((5, *runs.SHAPE), 0.3, np.float32)), jnp.linspace(0.1, 2.0, 5)
    one, other = run.score_fn(x, sigma, classes=jnp.full(5, 3)), run.score_fn(x, sigma)
    np.testing.assert_allclose(one, given(x, sigma), rtol=1e-5)
    np.testing.assert_allclose(other, others(x, sigma), rtol=1e-5)
    assert np.abs(one - other).max() > 1e-2
    key = jax.random.key(runs.SEED)
    for score_fn, scale in ((given, 1.0), (others, 0.0)):
        found = run.sample(key, 5, label=3, guidance=scale)
        expected = run.restore(by_library(config, score_fn))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_page_on_classes_gives_samples_and_scores(classes_run, monkeypatch):
    run, names = ncsn_jax.load_run(classes_run), {}
    monkeypatch.setattr(ncsn_jax, "load_run", lambda workdir: run)
    (code,) = python_of("docs/classes.md")
    exec(code, names)
    assert names["images"].shape == names["score"].shape == (16, 8, 8, 1)
    assert np.isfinite(names["score"]).all()


def test_a_worse_network_guides(classes_run, guide):
    run, config = ncsn_jax.load_run(classes_run), labelled()
    classes = jnp.arange(5)
    scores = (runs.library(config, where, classes=classes)[1] for where in (classes_run, guide))
    key, options = jax.random.key(runs.SEED), {"guide": guide, "guidance": 2.0}
    found = run.sample(key, 5, **options, guide_step=runs.STEP)
    expected = run.restore(by_library(config, combined(*scores, 2.0)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(UserError, match=r"sampling.guide='.*' holds no checkpoint of step 5"):
        run.sample(key, 5, **options, guide_step=5)
    config = labelled(**{f"sampling.{name}": value for name, value in options.items()})
    assert samplers.settings(config)["sampling.guide_step"] == runs.STEP
    config.model.beta_max = 12.0
    with pytest.raises(UserError, match="is unlike this run: SDE is 'VP.*15.0.*' there and"):
        samplers.make(config)


def test_the_first_process_finds_the_step_of_the_guide(monkeypatch, tmp_path):
    """The others see no checkpoints."""
    monkeypatch.setattr(distributed, "on_first", lambda what, function: 7)
    config = load_config(**{"sampling.guide": str(tmp_path), "sampling.guidance": 2.0})
    found = {"sampling.guide": str(tmp_path), "sampling.guide_step": 7}
    assert guides.settings(config) == found


def test_the_plan_gives_a_step_its_classes_and_a_sampler_its_guide(small_network, guide):
    config = labelled(**{"sampling.guide": guide, "sampling.guidance": 2.0})
    config.training.steps_per_call, devices = 3, jax.devices()[:2]
    _, state, (images, classes) = plan.train_step_of(config, devices)
    assert (images.shape, classes.shape, classes.dtype) == ((3, 4, *runs.SHAPE), (3, 4), np.int32)
    for params in plan.sampler_of(config, samplers.make(config), devices)[1]:
        jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), params, state.params)


def test_classes_come_in_turn_and_completions_have_none_by_default():
    config = load_config(**{"data.labels": True})
    np.testing.assert_array_equal(samplers.classes_of(config), np.arange(10))
    for task in (Stream.INPAINTING, Stream.COLORIZATION, Stream.CLASSES):
        np.testing.assert_array_equal(samplers.classes_of(config, task), [10])
    config.sampling.label = (4, 4, 1)
    for task, classes in ((Stream.INPAINTING, [4, 4, 1]), (Stream.CLASSES, [10])):
        np.testing.assert_array_equal(samplers.classes_of(config, task), classes)
    assert samplers.classes_of(load_config()) is None


def test_a_grid_has_a_named_column_for_each_class(tmp_path):
    store = SampleStore(str(tmp_path), {}, (8, 8, 1), classes=np.asarray([3, 5], np.int32))
    images = np.stack([runs.drawn(i) for i in range(25)])
    store.add(list(range(25)), images)
    store.finish()
    shown = runs.rows_of(list(images[:20]), 2)
    with Image.open(tmp_path / "grid.png") as picture:
        heading, grid = np.split(np.asarray(picture), [20])
    runs.assert_shows(grid, shown)
    halves = np.split(heading, 2, axis=1)
    assert all(half.max() > 100 for half in halves) and (halves[0] != halves[1]).any()


def test_the_classifier_counts_the_samples_of_the_wanted_class():
    p = np.asarray([[0.95, 0.05, 0], [0.05, 0.95, 0], [0.6, 0.4, 0], [0.05, 0.04, 0.91]]) + 1e-9
    found = measuring.of_labels(np.log(p), np.asarray([0, 0, 0, 0]))
    assert found == {"recognised_label_4": 0.25, "likeliest_label_4": 0.75}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.labels": True, "data.dataset": "image_folder"},
            "data.labels=True must be False for config.data.dataset='image_folder', which has no labels",
        ),
        (
            {"sampling.label": (3,)},
            r"sampling.label=\[3\] must be \(\) without config.data.labels",
        ),
        (
            {"data.labels": True, "sampling.label": (3, 10)},
            r"sampling.label=\[3, 10\] must be \(\) or classes below 10",
        ),
        ({"sampling.guidance": 2.0}, "sampling.guidance=2.0 must be 1 without config.data.labels"),
        ({"sampling.guidance_interval": (0.1, 1.0)}, r"guidance_interval=.* must be \(\) without"),
        ({"sampling.guide_step": 3}, "guide_step=3 must be -1 without config.sampling.guide"),
        ({"model.label_dropout": 0.0}, "label_dropout=0.0 must be above 0 and below 1"),
    ],
)
def test_classes_and_guidance_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        schema.check(load_config(**changes))


def test_labels_of_another_number_of_classes_are_refused():
    config = load_config(**{"data.labels": True, "model.num_classes": 3})
    with pytest.raises(
        UserError, match="num_classes=3 must be 10, the number of classes of .*'digits'"
    ):
        build.load_classes(config)
    with pytest.raises(UserError, match="labels=True must be False for an array of images"):
        build.load_classes(config, given=True)
    assert build.load_classes(load_config()) is None


def test_a_classifier_does_not_guide_twice():
    config = labelled(**{"sampling.guidance": 2.0})
    with pytest.raises(UserError, match="guidance=2.0 must be 1 for classconditional"):
        samplers.check(config, Stream.CLASSES)


def test_completions_without_a_class_are_not_guided():
    config = labelled(**{"sampling.guidance": 2.0, "sampling.method": "predictor_corrector"})
    with pytest.raises(
        UserError, match="guidance=2.0 must be 1 for inpainting without config.samp"
    ):
        samplers.check(config, Stream.INPAINTING)
    config.sampling.label = (3,)
    samplers.check(config, Stream.INPAINTING)
