"""Tests that the training step and mapped functions on eight devices equal those on one."""

import functools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncsn_jax import losses, objectives, preconditioning, sigmas, training
from ncsn_jax._random import Stream, example_keys, stream_key
from ncsn_jax.app import devices
from tests.models.comparison import compiled_quickly

LADDER = sigmas.geometric(1.0, 0.1, 4)
SEED = np.uint32(7)


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, x, level):
        h = nn.Conv(6, (3, 3))(2 * x - 1) + nn.Embed(4, 6)(level)[:, None, None, :]
        return nn.Conv(x.shape[-1], (3, 3))(nn.elu(h))


OPTIMIZER = training.make_optimizer(1e-2, grad_clip=1.0, warmup_steps=3)
OPTIONS = dict(
    objective=objectives.ladder(Tiny(), LADDER),
    optimizer=OPTIMIZER,
    ema_decay=0.9,
    random_flip=True,
    dequantize=True,
)


@pytest.fixture(scope="module")
def state():
    made = training.make_init(Tiny(), OPTIMIZER, (8, 8, 1), ema=True)(jax.random.key(0))
    return jax.tree.map(np.asarray, made)


@pytest.fixture(scope="module")
def batches():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 8, 8, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def one_device(state, batches):
    """Returns the states and metrics of single steps of the library on one device."""
    step = compiled_quickly(functools.partial(training.train_step, **OPTIONS), state, batches[0], 7)
    states, metrics = [state], []
    for images in batches:
        following, measured = step(states[-1], images, 7)
        states.append(following)
        metrics.append(measured)
    return states, metrics


def assert_same(a, b):
    """Asserts equality up to float32 rounding: Adam's first steps have size 1e-2 for any gradient."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6), a, b)


def assert_replicated(tree):
    for array in jax.tree.leaves(tree):
        np.testing.assert_array_equal(array, np.broadcast_to(array[:1], array.shape))


def test_steps_on_eight_devices_equal_steps_on_one_and_are_traced_once(state, batches, one_device):
    states, metrics = one_device
    traces = []

    def loss(*arguments):
        traces.append(None)
        return losses.denoising_score_matching(*arguments)

    options = OPTIONS | {"objective": objectives.ladder(Tiny(), LADDER, loss)}
    steps = functools.partial(training.train_steps, **options)
    assert jax.local_device_count() == 8
    p_steps = devices.TrainSteps(steps, state, devices.shard_batch(batches[:1]), SEED)
    on_devices = p_steps.to_devices(state)
    placed = jax.tree.map(lambda a: (a.shape, a.sharding), on_devices)
    for k in range(2):
        batch = devices.shard_batch(batches[k : k + 1])
        on_devices, measured, stop_signals = p_steps(on_devices, batch, 15 * k)
        assert set(np.asarray(stop_signals)) == {15 * k}
        assert_replicated(on_devices)
        assert_same(p_steps.to_host(on_devices), states[k + 1])
        assert jax.tree.map(lambda a: (a.shape, a.sharding), on_devices) == placed
        assert_same(devices.to_host(measured), jax.tree.map(lambda a: a[None], metrics[k]))
    assert len(traces) == 1


class TinyDenoiser(nn.Module):
    @nn.compact
    def __call__(self, x, label, augment=None):
        augment = jnp.zeros((len(x), 9)) if augment is None else augment
        h = nn.Dense(6)(jnp.concatenate([label.astype(jnp.float32)[:, None], augment], axis=1))
        return nn.Conv(x.shape[-1], (3, 3))(nn.elu(nn.Conv(6, (3, 3))(x) + h[:, None, None, :]))


def test_a_denoiser_of_augmented_images_takes_the_same_step_on_eight_devices(batches):
    optimizer = training.make_optimizer(1e-2)
    objective = objectives.edm(TinyDenoiser(), preconditioning.edm(), preconditioning.edm_noise())
    options = OPTIONS | {"objective": objective, "optimizer": optimizer, "random_flip": False}
    options |= {"ema_decay": training.make_ema_decay(40, 16, 0.5), "augment": 0.5}
    init = training.make_init(TinyDenoiser(), optimizer, (8, 8, 1), ema=True)
    state = jax.tree.map(np.asarray, init(jax.random.key(0))._replace(step=jnp.int32(3)))
    step = functools.partial(training.train_step, **options)
    one, one_measured = compiled_quickly(step, state, batches[0], 7)(state, batches[0], 7)
    steps = functools.partial(training.train_steps, **options)
    images = devices.shard_batch(batches[:1])
    p_steps = devices.TrainSteps(steps, state, images, SEED)
    found, measured, _ = p_steps(p_steps.to_devices(state), images)
    found = p_steps.to_host(found)
    assert_same(found, one)
    assert_same(devices.to_host(measured), jax.tree.map(lambda a: a[None], one_measured))
    # Of 48 images seen, half is the half-life: 24.
    decay = 2 ** (-16 / 24)
    expected = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, state.params, found.params)
    assert_same(found.ema_params, expected)


def test_microbatches_with_remat_on_eight_devices_give_the_same_steps(state, batches, one_device):
    states, metrics = one_device
    steps = functools.partial(training.train_steps, microbatches=2, **OPTIONS)
    images = devices.shard_batch(batches[:2])
    p_steps = devices.TrainSteps(steps, state, images, SEED, remat=True)
    assert p_steps.memory.temp_size_in_bytes > 0
    found, measured, _ = p_steps(p_steps.to_devices(state), images)
    assert_same(p_steps.to_host(found), states[2])
    assert_same(devices.to_host(measured), jax.tree.map(lambda *a: np.stack(a), *metrics[:2]))


def test_muon_and_averages_on_eight_devices_take_the_steps_of_one(batches):
    """Muon needs the kernels' shapes, so its parameters are not packed."""
    optimizer = training.make_optimizer(1e-2, name="muon")
    init = training.make_init(Tiny(), optimizer, (8, 8, 1), ema=True, averages=2)
    state = jax.tree.map(np.asarray, init(jax.random.key(0)))
    options = OPTIONS | {"optimizer": optimizer, "gammas": (6.94, 16.97)}
    steps = functools.partial(training.train_steps, **options)
    expected, _ = compiled_quickly(steps, state, batches[:2], 7)(state, batches[:2], 7)
    images = devices.shard_batch(batches[:2])
    p_steps = devices.TrainSteps(steps, state, images, SEED, packed=False)
    found, _, _ = p_steps(p_steps.to_devices(state), images)
    assert_replicated(found)
    assert_same(p_steps.to_host(found), expected)


def test_an_example_loses_its_class_by_its_own_key():
    """The gradient of a table, from which each example takes the row of its class, counts the examples."""
    examples, num_classes, rate = 64, 3, 0.5
    objective = objectives.Objective(
        np.ones(1),
        draw=lambda keys: jnp.ones(keys.shape[0]),
        bin=lambda noise: jnp.zeros(noise.shape, int),
        score_fn=lambda params, keys, classes: params["table"][classes],
        loss=lambda keys, taken, x, noise: taken,
        weight=None,
    )
    options = OPTIONS | {"objective": objective, "optimizer": optax.sgd(1.0), "ema_decay": 0.0}
    options |= {"num_classes": num_classes, "label_dropout": rate}
    params = {"table": np.zeros(num_classes + 1, np.float32)}
    state = training.TrainState(np.int32(5), params, {}, options["optimizer"].init(params))
    labels = (np.arange(2 * examples, dtype=np.int32) % num_classes).reshape(2, examples)
    images = np.zeros((2, examples, 8, 8, 1), np.uint8)

    counts = np.zeros(num_classes + 1)
    for step in range(2):
        key = jax.random.fold_in(stream_key(7, Stream.TRAINING), 5 + step)
        keys = jax.vmap(lambda k: jax.random.fold_in(k, 5))(example_keys(key, jnp.arange(examples)))
        dropped = np.asarray(jax.vmap(jax.random.uniform)(keys)) < rate
        counts += np.bincount(np.where(dropped, num_classes, labels[step]), minlength=4)
    assert 0.3 < counts[-1] / (2 * examples) < 0.7

    for parts in (1, 2):
        function = functools.partial(training.train_steps, **options, microbatches=parts)
        batch = devices.shard_batch((images, labels))
        steps = devices.TrainSteps(function, state, batch, SEED)
        after = steps.to_host(steps(steps.to_devices(state), batch)[0])
        np.testing.assert_allclose(after.params["table"], -counts / examples, rtol=1e-6)


def test_a_non_finite_step_is_skipped_on_all_devices(state, batches):
    """One example of 16 has an infinite loss in the second step; the other steps are unchanged."""

    def loss(key, score_fn, x, sigma):
        bad = (x.max(axis=(1, 2, 3)) > 1).astype(jnp.float32)
        return losses.denoising_score_matching(key, score_fn, x, sigma) / (1 - bad)

    objective = objectives.ladder(Tiny(), LADDER, loss)
    options = OPTIONS | {"objective": objective, "dequantize": False, "random_flip": False}
    steps = functools.partial(training.train_steps, skip_nonfinite=True, **options)
    images = batches.astype(np.float32) / 255
    images[1, 5] = 1.5
    p_steps = devices.TrainSteps(steps, state, devices.shard_batch(images[:1]), SEED)
    after = [p_steps.to_devices(state)]
    for k in range(3):
        given = jax.tree.map(jnp.copy, after[-1])
        following, measured, _ = p_steps(given, devices.shard_batch(images[k : k + 1]))
        after.append(following)
        assert np.isfinite(devices.to_host(measured).loss[0]) == (k != 1)
    assert_replicated(after[2])
    before, skipped, later = (p_steps.to_host(s) for s in after[1:])
    jax.tree.map(np.testing.assert_array_equal, skipped, before._replace(step=np.int32(2)))
    assert later.step == 3
    for old, new in zip(jax.tree.leaves(before[1:]), jax.tree.leaves(later[1:]), strict=True):
        assert np.isfinite(new).all() and not np.array_equal(old, new)


def test_the_state_is_not_packed_on_accelerators(state, batches, monkeypatch):
    """There every array is `[devices, ...]`; a CPU packs them into vectors, with the same steps (above)."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    steps = functools.partial(training.train_steps, **OPTIONS)
    images = devices.shard_batch(batches[:1])
    p_steps = devices.TrainSteps(steps, state, images, SEED)
    on_devices = p_steps.to_devices(state)
    shapes = lambda tree: jax.tree.map(np.shape, tree)
    assert shapes(on_devices) == jax.tree.map(lambda a: (8, *a.shape), state)
    jax.tree.map(np.testing.assert_array_equal, p_steps.to_host(on_devices), state)
    assert shapes(p_steps(on_devices, images)[0]) == jax.tree.map(lambda a: (8, *a.shape), state)


def test_example_indices_continue_across_devices_and_hosts(monkeypatch):
    batch = np.zeros((8, 3, 2, 4, 4, 1), np.uint8)  # [devices, steps, examples, ...]
    np.testing.assert_array_equal(devices.first_examples(batch), np.arange(0, 16, 2))
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    np.testing.assert_array_equal(devices.first_examples(batch), np.arange(32, 48, 2))


def test_adjacent_examples_go_to_one_device():
    batch = np.arange(2 * 16 * 3).reshape(2, 16, 3)
    sharded = devices.shard_batch(batch)
    assert sharded.shape == (8, 2, 2, 3)
    for device in range(8):
        np.testing.assert_array_equal(sharded[device], batch[:, 2 * device : 2 * device + 2])


def test_arrays_read_back_from_the_devices_share_no_memory():
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32(4)}
    on_devices = devices.replicate(tree)
    assert on_devices["a"].shape == (8, 2, 3) and on_devices["b"].shape == (8,)
    assert_replicated(on_devices)
    found = devices.to_host(on_devices)
    found["a"][:] = -1
    jax.tree.map(np.testing.assert_array_equal, devices.to_host(on_devices), tree)


def test_examples_are_mapped_with_replicated_parameters():
    """Computes x p + seed + index for every example on its device."""
    mapped = devices.map_examples(lambda p, seed, indices, x: x * p + seed + indices)
    x, indices = np.arange(16.0).reshape(8, 2), np.arange(16, dtype=np.float32).reshape(8, 2)
    found = mapped(devices.replicate(np.float32(3)), np.float32(100), indices, x)
    np.testing.assert_array_equal(found, 3 * x + 100 + indices)


def test_chains_advance_on_all_devices_and_all_learn_of_a_diverging_one():
    """Each chain adds its index once per step; the bad one is on the sixth device."""

    def advance(p, seed, indices, x, start, stop, rest):
        x = x + (stop - start) * indices * p + seed
        return x, jnp.all(rest < 1), 2 * rest

    chains = devices.map_chains(advance, lambda: pytest.fail("there is one process"))
    indices = np.arange(16, dtype=np.float32).reshape(8, 2)
    for bad in (0.0, 1.0):
        rest = np.zeros((8, 2), np.float32)
        rest[5, 1] = bad
        x, finite, more = chains(
            devices.replicate(np.float32(2)),
            np.float32(10),
            indices,
            np.ones((8, 2), np.float32),
            np.int32(3),
            np.int32(7),
            rest,
        )
        np.testing.assert_array_equal(x, 1 + 4 * indices * 2 + 10)
        assert set(np.asarray(finite).ravel()) == {int(bad == 0)}
        np.testing.assert_array_equal(more, 2 * rest)


def test_barriers_of_a_rematerialized_network_are_kept(state, batches, monkeypatch):
    asked, compile_ = [], jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered,
        "compile",
        lambda self, options=None: asked.append(options) or compile_(self, options),
    )
    steps = functools.partial(training.train_steps, **OPTIONS)
    devices.TrainSteps(steps, state, devices.shard_batch(batches[:1]), SEED, remat=True)
    assert devices.KEEP_BARRIERS.items() <= asked[0].items()


def test_the_operation_count_does_not_grow_with_the_steps_per_call(state, batches):
    steps = functools.partial(training.train_steps, **OPTIONS)
    one, three = (
        devices.TrainSteps(steps, state, devices.shard_batch(batches[:k]), SEED).operations
        for k in (1, 3)
    )
    # XLA counts the body of a loop once, and fuses it a little otherwise.
    assert 0.5 * one < three < 1.5 * one


def test_compiled_programs_are_cached_unless_the_environment_sets_the_cache(tmp_path, monkeypatch):
    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path / "cache"))
    devices.keep_compiled()
    assert settings == {}  # the tests' environment has both
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name)
    devices.keep_compiled()
    assert settings.pop("jax_persistent_cache_min_compile_time_secs") == 0.0
    directory, name = os.path.split(settings.pop("jax_compilation_cache_dir"))
    assert directory == str(tmp_path / "cache") and name.startswith("compiled-")
    assert settings == {}
