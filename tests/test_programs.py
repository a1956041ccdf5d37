"""Compiled programs on disk: found again where all is as it was, and only there."""

import concurrent.futures
import hashlib
import operator
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import time

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import run_lib
from configs import digits, digits_vp
from ncsn_jax.app import checkpoints, devices, launch, programs, samplers
from ncsn_jax.app import config as configuration
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
    programs.keep_all()
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


X = np.linspace(0, 1, 24, dtype=np.float32).reshape(jax.local_device_count(), -1)


PROCESS = """
import sys
import jax, numpy as np
from ncsn_jax.app import programs
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
x = np.ones((jax.local_device_count(), 1), np.float32)
program = programs.load("a")
found = program is not None
if not found:
    program = programs.make("a", jax.pmap(jax.numpy.sin).lower(x).compile)
result = program(x)
programs.keep(program, result)
print("found" if found else "made", f"{float(result[0, 0]):.6f}")
"""
ROOT = pathlib.Path(__file__).parent.parent


def lower(factor=1.0):
    """Returns a program that JAX's cache tells apart by the factor; it donates its argument."""
    return jax.pmap(lambda x: jnp.sin(factor * x), donate_argnums=0).lower(X)


def make(description, factor=1.0):
    program = programs.make(description, lower(factor).compile)
    programs.keep_all()
    return program


def written_by_jax(kept):
    return [name for name in os.listdir(kept.parent) if name != kept.name]


def test_a_program_is_found_again_and_does_the_same(kept):
    program = make("a")
    np.testing.assert_array_equal(programs.load("a")(X), program(X))
    np.testing.assert_allclose(program(X), np.sin(X), rtol=1e-6)
    donated = program(X)
    programs.load("a")(donated)
    assert donated.is_deleted()
    assert programs.load("b") is None and programs.load(None) is None
    make(None, 2.0)
    assert len(os.listdir(kept)) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " "),
        lambda patch: patch.setenv("PJRT_NPROC", "3"),
        lambda patch: patch.setenv("FLAX_PROFILE", "0"),
        lambda patch: patch.setattr(jax, "process_count", lambda: 2),
        lambda patch: patch.setattr(jax, "default_backend", lambda: "gpu"),
        lambda patch: patch.setattr(programs, "_SOURCE", "other"),
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
    with flax.config.temp_flip_flag("fix_rng_separator", True):
        assert programs.find("a") is None
    assert programs.find("a") is not None


def test_surroundings_are_versions_and_cores(monkeypatch):
    surroundings = programs._surroundings.__wrapped__
    before = surroundings()
    assert before == surroundings() and jax.__version__ in before[1]
    monkeypatch.setattr(launch, "cores", lambda: 77)
    assert surroundings() != before and surroundings()[:-1] == before[:-1]


def test_the_source_is_that_of_the_import(kept, monkeypatch, tmp_path):
    package = tmp_path / "ncsn_jax_copy"
    package.mkdir()
    (package / "module.py").write_text("one = 1")
    monkeypatch.setattr(programs, "__file__", str(package / "module.py"))
    seen = {programs._source()}
    for name in ("module.py", "other.py", "../run_lib.py"):
        (package / name).write_text("two = 2")
        seen.add(programs._source())
    assert len(seen) == 4 and programs._SOURCE not in seen
    make("a")  # of a source that has changed since
    assert not list(kept.iterdir())


def test_another_process_finds_a_program(tmp_path):
    def output():
        result = subprocess.run(
            [sys.executable, "-c", PROCESS, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=ROOT,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert output() == f"made {np.sin(np.float32(1)):.6f}\n"
    assert output() == f"found {np.sin(np.float32(1)):.6f}\n"


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
    assert programs.load("a") is None


def test_what_jax_had_in_its_cache_is_not_kept(kept):
    """XLA would serialize it without its functions."""
    lower().compile()
    assert written_by_jax(kept)
    jax.clear_caches()
    make("a")
    assert not kept.exists()


def test_jax_writes_no_copy_of_what_is_kept_and_all_else_as_before(kept):
    make("a")
    assert not written_by_jax(kept)
    with pytest.raises(ZeroDivisionError):
        programs.make("b", lambda: 1 / 0)
    lower(2.0).compile()
    assert written_by_jax(kept)


@pytest.mark.parametrize("when", ["before", "meanwhile", "after"])
def test_jax_writes_what_is_compiled_until_another_thread_is_done(kept, when):
    others = concurrent.futures.Future()

    def compile_():
        if when == "meanwhile":
            others.set_result(None)
        return lower().compile()

    if when == "before":
        others.set_result(None)
    programs.make("a", compile_, others)
    if when == "after":
        others.set_result(None)
    before = written_by_jax(kept)
    assert bool(before) == (when == "after")
    lower(2.0).compile()
    assert len(written_by_jax(kept)) > len(before)
    programs.keep_all()
    np.testing.assert_allclose(programs.load("a")(X), np.sin(X), rtol=1e-6)


def test_a_program_is_kept_when_its_first_result_is_there(kept, monkeypatch):
    program = programs.make("a", lower().compile)
    result, waited, computed = program(X), [], threading.Event()
    monkeypatch.setattr(jax, "block_until_ready", lambda a: waited.append((a, computed.wait(60))))
    programs.keep(object())
    programs.keep(program, result)
    assert not kept.exists()
    computed.set()
    programs.keep_all()
    assert waited == [(result, True)]
    assert programs.load("a") is not None


def test_a_program_whose_first_call_fails_is_kept(kept, monkeypatch):
    def fail(arrays):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")

    program = programs.make("a", lower().compile)
    monkeypatch.setattr(jax, "block_until_ready", fail)
    programs.keep(program, program(X))
    programs.keep_all()
    assert programs.load("a") is not None


def test_a_program_is_kept_with_the_options_that_xla_knows(kept):
    unknown = {"xla_no_such_option": "1"}
    programs.make("a", lambda: devices._compile(lower(), unknown))
    programs.keep_all()
    np.testing.assert_allclose(programs.load("a")(X), np.sin(X), rtol=1e-6)


def test_a_program_of_others_is_found(kept, monkeypatch):
    def utime(path):
        raise PermissionError

    make("a")
    monkeypatch.setattr(os, "utime", utime)
    assert programs.load("a") is not None


def test_the_least_recently_used_is_removed(kept, monkeypatch):
    monkeypatch.setattr(programs, "_MOST_FILES", 2)
    for at, name in enumerate("ab"):
        make(name, float(at + 2))
        os.utime(programs._path(name), (at, at))
    (kept / "not a program").write_text("")
    assert programs.load("a") is not None  # and so it is newer than b
    make("c", 9.0)
    assert [programs.find(name) is not None for name in "abc"] == [True, False, True]
    assert (kept / "not a program").exists()


def test_a_directory_that_cannot_be_made_keeps_nothing(kept):
    kept.write_text("in the way")
    program = make("a")
    assert program(X)[0, 0] == 0 and programs.load("a") is None


def changed(**changes):
    config = tiny.get_config()
    config.model.name = "ncsn"
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def test_descriptions_differ_with_what_programs_are_made_of(monkeypatch):
    training, sampling = configuration.describe_training, configuration.describe_sampling
    steps = [
        changed(),
        changed(model__sigma_end=0.02),
        changed(training__microbatches=2),
        changed(optim__learning_rate=0.5),
    ]
    assert len({*map(training, steps)}) == 4
    chains = [*steps[:-1], changed(sampling__epsilon=1.0), changed(sampling__num_steps=7)]
    assert len({*(sampling(c, "a") for c in chains), sampling(chains[0], "b")}) == 6
    same = changed(seed=3, training__num_steps=7, data__data_dir="/b")
    assert training(same) == training(changed()) and sampling(same) == sampling(changed())
    assert training(chains[-1]) == training(changed())
    assert sampling(steps[-1]) == sampling(changed())


@pytest.mark.parametrize(
    ("table", "name"), [("MODELS", "ncsn"), ("SDES", "ve"), ("objectives.LOSSES", "dsm")]
)
def test_parts_of_other_packages_have_no_description(monkeypatch, table, name):
    config = changed(training__sde="ve")
    assert configuration.describe_training(config) is not None
    assert configuration.describe_training(tiny.get_config()) is None
    parts = operator.attrgetter(table)(configuration)
    monkeypatch.setitem(parts, name, lambda *_: None)
    assert configuration.describe_training(config) is None
    assert configuration.describe_sampling(config, "a") is None


class Recorded:
    """A configuration, or a section of it, that notes which fields are read."""

    def __init__(self, values, read, prefix=""):
        self._values, self._read, self._prefix = values, read, prefix

    def __getattr__(self, name):
        value, whole = self._values[name], self._prefix + name
        if isinstance(value, ml_collections.ConfigDict):
            return Recorded(value, self._read, f"{whole}.")
        self._read.add(whole)
        return value

    __getitem__ = __getattr__

    def keys(self):
        return self._values.keys()

    def items(self):
        return [(name, self[name]) for name in self.keys()]


@pytest.mark.parametrize("config", [digits, digits_vp], ids=["ladder", "vp"])
def test_programs_are_not_made_of_what_their_descriptions_leave_out(config, monkeypatch):
    config, read = config.get_config(), set()
    everything = configuration.flatten(config).keys()
    assert everything >= configuration._NOT_COMPILED
    monkeypatch.setattr(configuration, "flatten", lambda _: pytest.fail("all are read"))
    recorded = Recorded(config, read)
    init = configuration.make_init(recorded)
    train_steps = configuration.make_train_steps(recorded)
    images = np.zeros((1, 8, 8, 8, 1), np.uint8)
    shapes = jax.eval_shape(init, jax.random.key(0))
    jax.eval_shape(train_steps, shapes, images, np.uint32(0))
    assert {"model.features", "optim.learning_rate", "data.random_flip"} <= read
    assert not read & configuration._NOT_COMPILED
    assert not [name for name in read if name.startswith(configuration.NOT_OF_TRAINING)]

    read.clear()
    monkeypatch.setattr(samplers, "check", lambda *_: None)
    sampler = samplers.make(recorded)
    keys = jax.random.split(jax.random.key(0), 8)
    x = jax.eval_shape(lambda k: sampler.start(k, 8), keys)
    jax.eval_shape(sampler.advance, keys, shapes.params, x, np.int32(0), np.int32(1))
    assert "model.features" in read
    assert not read & configuration._NOT_COMPILED
    assert not [name for name in read if name.startswith("optim.")]


def test_a_run_like_an_earlier_one_compiles_nothing_and_is_the_same(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(configuration, "_is_own", lambda part: True)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(kept.parent))
    config = tiny.get_config()
    config.training.num_steps = config.training.checkpoint_every = 3
    config.sampling.num_samples = 8

    def train(name):
        run_lib.train(config, str(tmp_path / name))
        assert not programs._made
        programs.keep_all()
        shapes = jax.eval_shape(configuration.make_init(config), jax.random.key(0))
        with checkpoints.Checkpoints(str(tmp_path / name)) as store:
            state = store.restore(3, shapes)
        samples = np.load(tmp_path / name / "samples" / "step_3" / "samples.npz")["samples"]
        return state, samples, (tmp_path / name / "log.txt").read_text()

    being_kept, seen = [], []
    keep, notes = programs._keep, devices._notes

    def keep_slowly(*arguments):
        being_kept.append(True)
        time.sleep(0.5)
        keep(*arguments)
        being_kept.clear()

    def begin_step(number):
        seen.append(bool(being_kept))
        return notes(number)

    monkeypatch.setattr(programs, "_keep", keep_slowly)
    monkeypatch.setattr(devices, "_notes", begin_step)
    *first, log = train("first")
    assert not any(seen) and len(seen) >= 3  # No step takes memory while the program does.
    assert len(os.listdir(kept)) == 2  # the training step and the chains
    assert "step compiled in" in log

    def refuse(lowered, options):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(devices, "_compile", refuse)
    *second, log = train("second")
    assert "step as compiled before; memory per device" in log
    jax.tree.map(np.testing.assert_array_equal, second, first)
