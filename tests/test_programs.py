"""Compiled programs on disk: found again where all is as it was, and only there."""

import hashlib
import json
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import run_lib
from ncsn_jax import checkpoints, launch, parallel, programs
from ncsn_jax import config as configuration
from tests import tiny


@pytest.fixture
def kept(tmp_path):
    """The directory of kept programs, with JAX's cache on around it and all of it written."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield tmp_path / "ncsn_jax"
    programs.wait()
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


X = np.linspace(0, 1, 24, dtype=np.float32).reshape(jax.local_device_count(), -1)


def compile_(factor):
    """Compiles what JAX's cache tells apart by the factor."""
    return jax.pmap(lambda x: jnp.sin(factor * x)).lower(X).compile()


def make(description, factor=1.0):
    program = programs.make(description, lambda: compile_(factor))
    programs.wait()
    return program


def load(description):
    found = programs.find(description)
    return None if found is None else found()


def test_a_program_is_found_again_and_does_the_same(kept):
    program = make("a")
    np.testing.assert_array_equal(load("a")(X), program(X))
    np.testing.assert_allclose(program(X), np.sin(X), rtol=1e-6)
    assert load("b") is None and load(None) is None
    make(None, 2.0)
    assert len(os.listdir(kept)) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " "),
        lambda patch: patch.setattr(jax, "process_count", lambda: 2),
        lambda patch: patch.setattr(jax, "default_backend", lambda: "gpu"),
        lambda patch: patch.setattr(programs, "_surroundings", lambda: ["another machine"]),
    ],
)
def test_none_is_found_where_something_differs(kept, monkeypatch, change):
    make("a")
    change(monkeypatch)
    assert programs.find("a") is None


def test_none_is_found_with_another_setting_of_jax_and_none_without_its_cache(kept):
    make("a")
    for name, value in (
        ("jax_default_matmul_precision", "highest"),
        ("jax_enable_compilation_cache", False),
        ("jax_compilation_cache_dir", None),
        ("jax_compilation_cache_dir", "gs://bucket/cache"),
    ):
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        try:
            assert programs.find("a") is None
        finally:
            jax.config.update(name, before)
    assert programs.find("a") is not None


def test_surroundings_are_the_source_and_the_cores(monkeypatch, tmp_path):
    programs._surroundings.cache_clear()
    before = programs._surroundings()
    programs._surroundings.cache_clear()
    monkeypatch.setattr(launch, "cores", lambda: 77)
    assert programs._surroundings() != before
    monkeypatch.undo()
    programs._surroundings.cache_clear()
    (tmp_path / "module.py").write_text("")
    monkeypatch.setattr(programs, "__file__", str(tmp_path / "module.py"))
    assert programs._surroundings()[0] != before[0]
    assert programs._surroundings()[1:] == before[1:]
    programs._surroundings.cache_clear()


@pytest.mark.parametrize("damage", ["cut", "flipped", "not a program", "no pickle"])
def test_a_damaged_file_is_none(kept, damage):
    make("a")
    (file,) = kept.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage != "cut":
        payload = pickle.dumps((b"", 1, 2)) if damage == "not a program" else b"text"
        content = hashlib.sha256(payload).digest() + payload
    file.write_bytes(content[:1000] if damage == "cut" else content)
    assert load("a") is None


def test_what_jax_had_in_its_cache_is_not_kept(kept):
    """XLA would serialize it without its functions."""
    make("a")
    (file,) = kept.iterdir()
    file.unlink()
    jax.clear_caches()
    make("a")
    assert not list(kept.iterdir())
    make("a", 3.0)
    np.testing.assert_allclose(load("a")(X), np.sin(3 * X), rtol=1e-6)


def test_the_least_recently_used_is_removed(kept, monkeypatch):
    monkeypatch.setattr(programs, "_MOST_FILES", 2)
    for at, name in enumerate("ab"):
        make(name, float(at + 2))
        os.utime(programs._path(name), (at, at))
    assert load("a") is not None  # and so it is newer than b
    make("c", 9.0)
    assert [programs.find(name) is not None for name in "abc"] == [True, False, True]


def test_a_directory_that_cannot_be_written_keeps_nothing(kept):
    kept.write_text("in the way")
    program = make("a")
    assert program(X)[0, 0] == 0 and load("a") is None


def test_descriptions_differ_with_what_programs_are_made_of(monkeypatch):
    def describe(*purpose, without=(), **changes):
        config = tiny.get_config()
        config.model.name = "ncsn"
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        return programs.describe(config, *purpose, without=without)

    assert describe("a") == describe("a", seed=3, training__num_steps=7, data__data_dir="/b")
    others = [
        describe("b"),
        describe("a", 1),
        describe("a", model__sigma_end=0.02),
        describe("a", training__microbatches=2),
        describe("a", sampling__epsilon=1.0),
    ]
    assert len({describe("a"), *others}) == 6
    parts = ("sampling.",)
    assert describe("a", without=parts) == describe("a", without=parts, sampling__epsilon=1.0)
    assert "sampling.num_steps" in json.loads(describe("a"))[0]
    assert programs.describe(tiny.get_config(), "a") is None  # a network of the user's
    monkeypatch.setitem(configuration.objectives.LOSSES, "dsm", lambda *_: 0.0)
    assert describe("a") is None


def test_a_run_like_an_earlier_one_compiles_nothing_and_is_the_same(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "_is_own", lambda part: True)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(kept.parent))
    config = tiny.get_config()
    config.training.num_steps = config.training.checkpoint_every = 3
    config.sampling.num_samples = 8

    def train(name):
        run_lib.train(config, str(tmp_path / name))
        programs.wait()
        with checkpoints.Checkpoints(str(tmp_path / name)) as store:
            state = store.restore(
                3, jax.eval_shape(configuration.make_init(config), jax.random.key(0))
            )
        samples = np.load(tmp_path / name / "samples" / "step_3" / "samples.npz")["samples"]
        return state, samples, (tmp_path / name / "log.txt").read_text()

    *first, log = train("first")
    assert len(os.listdir(kept)) == 2  # the training step and the chains
    assert "step compiled in" in log

    def compile_(lowered, options):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(parallel, "_compile", compile_)
    *second, log = train("second")
    assert "step as compiled before; memory per device" in log
    jax.tree.map(np.testing.assert_array_equal, second, first)
