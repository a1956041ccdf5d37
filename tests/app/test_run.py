"""Tests `load_run`: a run's network, scores and samples, from its work directory alone."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax.app import run as runs
from ncsn_jax.app import run_config, schema
from ncsn_jax.errors import UserError
from tests import running, tiny

# `main.py`, with the tests' network registered.
MAIN = """
import runpy, sys, tests.tiny
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
"""


@pytest.fixture
def run(workdir):
    return runs.load_run(str(workdir))


def main(*arguments):
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments],
        cwd=running.ROOT,
        env=running.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_run_has_its_configuration(run):
    assert schema.flatten(run.config) == schema.flatten(tiny.get_config())
    assert repr(run).startswith("Run(tiny, ") and repr(run).endswith("step 60)")
    with pytest.raises(AttributeError):
        run.config.no_such_field = 1


def test_samples_match_the_samples_of_main(run, workdir):
    expected = np.load(workdir / "samples" / "step_60" / "samples.npz")["samples"]
    x = run.sample(jax.random.key(run.config.seed), 12)
    np.testing.assert_array_equal(run.to_uint8(x), expected)
    # Sample i depends on the key and i alone; overrides are heeded.
    np.testing.assert_array_equal(run.sample(jax.random.key(run.config.seed), 3), x[:3])
    assert np.all(run.sample(jax.random.key(7), 3) != x[:3])
    longer = run.sample(jax.random.key(run.config.seed), 3, steps_per_level=3)
    assert np.all(longer != x[:3])


def test_scores_match_the_network(run):
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    levels = jnp.array([1, 0])
    expected = run.model.apply(run.params, x, levels)
    np.testing.assert_array_equal(run.score_fn(x, run.sigmas[levels]), expected)
    t = jnp.array([1.0, 0.0])  # the last time belongs to the first level
    np.testing.assert_array_equal(
        run.time_score_fn(x, t)[0], run.score_fn(x, run.sigmas[:1].repeat(2))[0]
    )


def test_a_checkpoint_can_be_chosen_and_nothing_is_changed(workdir):
    def listing():
        return sorted(os.path.join(d, f) for d, _, files in os.walk(workdir) for f in files)

    before = listing()
    older, newer = (runs.load_run(str(workdir), step) for step in (50, None))
    assert (older.step, newer.step) == (50, 60)
    old, new = (jax.tree.leaves(run.params)[0] for run in (older, newer))
    assert not np.array_equal(old, new)
    assert listing() == before
    with pytest.raises(UserError, match=r"no checkpoint of step 55, only of steps \[60, 50\]"):
        runs.load_run(str(workdir), 55)


def test_mistakes_are_reported_on_one_line(run, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        runs.load_run(str(tmp_path / "none"))
    x = jnp.zeros((2, 8, 8, 1))
    for images, sigma, message in (
        (jnp.zeros((2, 9, 9, 1)), jnp.ones(2), r"x must be images \[B, 8, 8, 1\]"),
        (x, 0.1, r"sigma must be floats \[B\] = \[2\], got float32\[\]"),
        (x, jnp.zeros(2, int), r"sigma must be floats \[B\] = \[2\], got int32\[2\]"),
        (x, jnp.array([0.1, -1.0]), "sigma must be > 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            run.score_fn(images, sigma)
    with pytest.raises(UserError, match=r"must be in \[0, 1\], got 255"):
        run.prepare(np.full((1, 8, 8, 1), 255.0))
    with pytest.raises(UserError, match="images must be float or uint8, got int64"):
        run.prepare(np.ones((1, 8, 8, 1), int))
    for key in (jax.random.key(0, impl="rbg"), jax.random.split(jax.random.key(0), 2)):
        with pytest.raises(UserError, match="key must be one threefry key"):
            run.sample(key, 2)
    with pytest.raises(UserError, match="num_samples must be given as n"):
        run.sample(jax.random.key(0), 2, num_samples=3)
    with pytest.raises(UserError, match="config.sampling.epsilon=-1.0 must be"):
        run.sample(jax.random.key(0), 1, epsilon=-1)
    with pytest.raises(UserError, match=r"config\.sampling\.epsylon is not a field"):
        run.sample(jax.random.key(0), 1, epsylon=1)


@pytest.mark.parametrize("centered", [False, True])
def test_prepare_and_restore_map_images_to_the_range_of_the_network_and_back(run, centered):
    config = run.config.copy_and_resolve_references()
    config.data.centered = centered
    run = dataclasses.replace(run, config=config)
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    x = run.prepare(images)
    assert x.dtype == jnp.float32 and (x.min(), x.max()) == ((-1 if centered else 0), 1)
    np.testing.assert_allclose(run.prepare(images / 255.0), x, atol=3e-7)
    np.testing.assert_array_equal(run.to_uint8(run.restore(x)), images)
    config.data.value_range = (270.0, 310.0)
    kelvin = 270 + 40 * (images / 255.0)
    np.testing.assert_allclose(run.prepare(kelvin), x, atol=2e-6)
    np.testing.assert_allclose(run.restore(run.prepare(kelvin)), kelvin, rtol=3e-7)
    np.testing.assert_array_equal(run.to_uint8(kelvin), images)


def test_a_work_directory_is_enough_for_every_mode(workdir):
    """Overrides apply; those that would change the training are refused."""
    done = main(f"--workdir={workdir}", "--config.training.num_steps=8e1")
    assert done.returncode == 0 and (workdir / "samples" / "step_80").is_dir()
    done = main(f"--workdir={workdir}", "--config.training.batch_size=16")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "training.batch_size is 8 there and 16 here" in line


def test_tuples_stay_tuples(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 1, "a.b": [1, 2], "a.c": "x"}')
    config = run_config.get_config(str(tmp_path))
    assert config.to_dict() == {"seed": 1, "a": {"b": (1, 2), "c": "x"}}
