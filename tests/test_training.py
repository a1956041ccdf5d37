"""The training step on one device, on eight, and several at a time.

The network is a single convolution over the level's embedding: what is tested here is the step.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncsn_jax import losses, objectives, sigmas, training
from ncsn_jax.app import cpu, devices
from tests.models.comparison import compiled_quickly, run

LADDER = sigmas.geometric(1.0, 0.1, 4)


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
    return training.make_init(Tiny(), OPTIMIZER, (8, 8, 1), ema=True)(jax.random.key(0))


@pytest.fixture(scope="module")
def batches():
    return np.random.default_rng(0).integers(0, 256, (5, 16, 8, 8, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def step(state, batches):
    """A compiled step."""
    return compiled_quickly(functools.partial(training.train_step, **OPTIONS), state, batches[0], 7)


@pytest.fixture(scope="module")
def one_device(state, batches, step):
    """The states and metrics of five single steps on one device."""
    states, metrics = [state], []
    for images in batches:
        following, measured = step(states[-1], images, 7)
        states.append(following)
        metrics.append(measured)
    return states, metrics


def assert_same(a, b):
    """Equal to float32 rounding: Adam's first steps have size 1e-2, whatever the gradient's."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6), a, b)


@pytest.fixture
def options_of_programs(monkeypatch):
    """The options with which `parallel` has compiled."""
    options, compile_ = [], devices._compile

    def note(lowered, these):
        options.append(these)
        return compile_(lowered, these)

    monkeypatch.setattr(devices, "_compile", note)
    return options


@pytest.mark.parametrize(("largest_small", "cores"), [(0, 8), (10, 8), (None, 15), (None, 16)])
def test_eight_devices_equal_one(
    state, batches, one_device, monkeypatch, largest_small, cores, options_of_programs
):
    monkeypatch.setattr(cpu, "cores", lambda: cores)
    states, metrics = one_device
    traces = []

    def loss(*arguments):
        traces.append(None)
        return losses.denoising_score_matching(*arguments)

    options = OPTIONS | {"objective": objectives.ladder(Tiny(), LADDER, loss)}
    run = functools.partial(training.train_steps, **options)
    assert jax.local_device_count() == 8
    p_steps = devices.TrainSteps(
        run, state, devices.shard_batch(batches[:1]), np.uint32(7), largest_small=largest_small
    )
    p_steps.compile()
    on_devices = p_steps.to_devices(state)
    first = functools.partial(training.first_state, optimizer=OPTIMIZER, ema=True)
    made = p_steps.make_state(first, state.params)
    jax.tree.map(np.testing.assert_array_equal, p_steps.to_host(made), p_steps.to_host(on_devices))
    placed = jax.tree.map(lambda a: (a.shape, a.sharding), on_devices)
    for k in range(2):
        batch = devices.shard_batch(batches[k : k + 1])
        on_devices, measured, heard = p_steps(on_devices, batch, np.uint32(7), 15 * k)
        assert set(np.asarray(heard)) == {15 * k}
        assert_same(p_steps.to_host(on_devices), states[k + 1])
        assert_same(devices.to_host(p_steps.weights(on_devices)), states[k + 1].ema_params)
        assert jax.tree.map(lambda a: (a.shape, a.sharding), on_devices) == placed
        assert_same(devices.to_host(measured), jax.tree.map(lambda a: a[None], metrics[k]))
    for replica in jax.tree.leaves(on_devices):
        np.testing.assert_array_equal(replica, np.broadcast_to(replica[:1], replica.shape))
    assert len(traces) == 1
    library = devices._REDUCTIONS if cores == 16 else devices._REDUCTIONS_AND_CONVOLUTIONS
    assert options_of_programs == [library | devices._SAVE_MEMORY]


def test_a_batch_in_two_halves_is_the_whole_batch(state, batches, one_device):
    """The place of the first example makes the random numbers, wherever the half is computed."""
    one = functools.partial(training.train_step, **OPTIONS)
    half = compiled_quickly(one, state, batches[0][:8], 7, np.int32(0))
    halves = [half(state, batches[0][i : i + 8], 7, np.int32(i))[1] for i in (0, 8)]
    whole = one_device[1][0]
    assert np.mean([h.loss for h in halves]) == pytest.approx(float(whole.loss), rel=1e-5)
    np.testing.assert_array_equal(sum(h.level_count for h in halves), whole.level_count)
    np.testing.assert_allclose(sum(h.level_loss for h in halves), whole.level_loss, rtol=1e-5)


def test_examples_are_counted_on_through_devices_and_hosts(monkeypatch):
    batch = np.zeros((8, 3, 2, 4, 4, 1), np.uint8)  # [devices, steps, examples, ...]
    np.testing.assert_array_equal(devices.first_examples(batch), np.arange(0, 16, 2))
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    np.testing.assert_array_equal(devices.first_examples(batch), np.arange(32, 48, 2))


def test_several_steps_per_call_equal_single_steps(state, batches, one_device):
    states, metrics = one_device
    final, measured = run(functools.partial(training.train_steps, **OPTIONS), state, batches, 7)
    assert int(final.step) == 5
    assert_same(final, states[-1])
    assert_same(measured, jax.tree.map(lambda *a: np.stack(a), *metrics))


@pytest.mark.parametrize("loss", ["sm"])
def test_microbatches_make_the_same_step_in_less_memory(state, loss):
    options = OPTIONS | {"objective": objectives.ladder(Tiny(), LADDER, objectives.LOSSES[loss])}
    images = np.random.default_rng(1).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    whole, parts = (
        compiled_quickly(
            functools.partial(training.train_step, microbatches=m, **options), state, images, 7
        )
        for m in (1, 8)
    )
    memory = [c.memory_analysis().temp_size_in_bytes for c in (whole, parts)]
    assert memory[1] < memory[0] / 3
    whole, parts = whole(state, images, 7), parts(state, images, 7)
    assert_same(parts, whole)
    np.testing.assert_array_equal(parts[1].level_count, whole[1].level_count)


def test_microbatches_on_eight_devices_make_the_same_steps(state, batches, one_device):
    states, metrics = one_device
    run = functools.partial(training.train_steps, microbatches=2, **OPTIONS)
    arguments = devices.shard_batch(batches[:2]), np.uint32(7)
    p_steps = devices.TrainSteps(run, state, *arguments, remat=True)
    assert p_steps.compile().temp_size_in_bytes > 0
    found, measured, _ = p_steps(p_steps.to_devices(state), *arguments)
    assert_same(p_steps.to_host(found), states[2])
    assert_same(devices.to_host(measured), jax.tree.map(lambda *a: np.stack(a), *metrics[:2]))


def test_options_that_xla_does_not_know_are_left_out():
    lowered = jax.jit(lambda x: 2 * x).lower(np.float32(1))
    known = {"xla_backend_optimization_level": "0"}
    unknown = {"xla_of_another_time": "1", "xla_cpu_scheduler_type": "OF_ANOTHER_TIME"}
    assert devices._compile(lowered, unknown | known)(np.float32(3)) == 6
    # These are known.
    lowered.compile(devices._SAVE_MEMORY | devices.KEEP_BARRIERS | devices._REDUCTIONS)
    lowered.compile(devices._REDUCTIONS_AND_CONVOLUTIONS)


def test_mapped_functions_are_the_same_where_cores_are_to_spare(monkeypatch, options_of_programs):
    """They are compiled with other options then, once for each shape."""

    def convolve(params, seed, indices, x):
        return jax.lax.conv(x, params, (1, 1), "SAME") + seed * indices[:, None, None, None]

    draw = np.random.default_rng(0).normal
    params = devices.replicate(draw(size=(5, 3, 3, 3)).astype(np.float32))
    mapped = {}
    for cores in (8, 16):
        monkeypatch.setattr(cpu, "cores", lambda n=cores: n)
        mapped[cores] = devices.map_examples(convolve)
    for size in (2, 1, 2):
        x = draw(size=(8, size, 3, 6, 6)).astype(np.float32)
        indices = np.arange(8 * size, dtype=np.uint32).reshape(8, size)
        one, other = (f(params, np.uint32(3), indices, x) for f in mapped.values())
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert options_of_programs == [{}, devices._REDUCTIONS] * 2


def test_a_network_is_traced_once_for_its_shapes_and_its_weights():
    traces = []

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, level):
            traces.append(None)
            return nn.Dense(3)(x)

    init, key = training.make_init(Network(), OPTIMIZER, (4, 4, 1), ema=False), jax.random.key(0)
    shapes = jax.eval_shape(init, key).params
    jax.tree.map(lambda a, b: a.shape == b.shape or pytest.fail(), shapes, init.draw(key))
    assert len(traces) == 1


def test_initial_parameters_are_those_of_the_network_alone():
    """None of the network's own operations is left; a parameter made of the image is refused."""

    class Network(nn.Module):
        from_image: bool = False

        @nn.compact
        def __call__(self, x, level):
            h = nn.Conv(3, (3, 3))(x) * nn.Embed(4, 3)(level)[:, None, None]
            init = lambda key: jax.random.normal(key, (3,)) + (x.sum() if self.from_image else 0)
            return h + self.param("shift", init)[None, None, None]

    key, (image, level) = jax.random.key(3), (jnp.ones((1, 4, 4, 1)), jnp.zeros(1, int))
    draw = functools.partial(training.draw_params, model=Network(), image_shape=(4, 4, 1))
    jax.tree.map(np.testing.assert_array_equal, draw(key), Network().init(key, image, level))
    assert "conv_general" in str(jax.make_jaxpr(Network().init)(key, image, level))
    assert "conv_general" not in str(jax.make_jaxpr(draw)(key))
    with pytest.raises(ValueError, match="depend on the image"):
        training.draw_params(key, Network(from_image=True), (4, 4, 1))


def test_a_step_that_is_not_finite_is_skipped_on_all_devices(state, batches, one_device):
    """One example of 128 has a loss of infinity in the second step; the others make the usual steps."""

    def loss(key, score_fn, x, sigma):
        bad = (x.max(axis=(1, 2, 3)) > 1).astype(jnp.float32)
        return losses.denoising_score_matching(key, score_fn, x, sigma) / (1 - bad)

    objective = objectives.ladder(Tiny(), LADDER, loss)
    options = OPTIONS | {"objective": objective, "dequantize": False, "random_flip": False}
    run = functools.partial(training.train_steps, skip_nonfinite=True, **options)
    # Images of 8 bits are at most 1, others are not.
    images = batches[:3].astype(np.float32)
    images[1, 5] = 300.0
    p_steps = devices.TrainSteps(run, state, devices.shard_batch(images[:1]), np.uint32(7))
    p_steps.compile()
    after = [p_steps.to_devices(state)]
    for k in range(3):
        given = jax.tree.map(jnp.copy, after[-1])
        following, measured, _ = p_steps(
            given, devices.shard_batch(images[k : k + 1]), np.uint32(7)
        )
        after.append(following)
        assert np.isfinite(devices.to_host(measured).loss[0]) == (k != 1)
    for replica in jax.tree.leaves(after[2]):
        np.testing.assert_array_equal(replica, np.broadcast_to(replica[:1], replica.shape))
    before, skipped, later = (p_steps.to_host(s) for s in after[1:])
    jax.tree.map(np.testing.assert_array_equal, skipped, before._replace(step=np.int32(2)))
    assert later.step == 3
    for old, new in zip(jax.tree.leaves(before[1:]), jax.tree.leaves(later[1:]), strict=True):
        assert np.isfinite(new).all() and not np.array_equal(old, new)


def test_refuses_parts_of_examples(state, batches):
    with pytest.raises(
        ValueError, match="16 examples on a device are no multiple of 3 microbatches"
    ):
        training.train_step(state, batches[0], 7, microbatches=3, **OPTIONS)


def test_average_optimizer_and_metrics_are_as_documented(batches, one_device):
    states, metrics = one_device
    averaged = states[0].params
    for later in states[1:]:
        averaged = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, averaged, later.params)
    assert_same(states[-1].ema_params, averaged)
    # With a linear warm-up from zero the first step leaves the parameters as they are.
    jax.tree.map(np.testing.assert_array_equal, states[0].params, states[1].params)
    counts = np.asarray(metrics[0].level_count)
    assert counts.sum() == 16
    total = np.asarray(metrics[0].level_loss).sum()
    assert total / 16 == pytest.approx(float(metrics[0].loss), rel=1e-5)


def test_noise_depends_on_seed_and_step(state, batches, step):
    losses_of = lambda s, seed: float(step(s, batches[0], seed)[1].loss)
    assert losses_of(state, 7) == losses_of(state, 7)
    assert losses_of(state, 7) != losses_of(state, 8)
    assert losses_of(state, 7) != losses_of(state._replace(step=jnp.int32(1)), 7)


def test_without_an_average_none_is_kept(batches):
    state = training.make_init(Tiny(), OPTIMIZER, (8, 8, 1), ema=False)(jax.random.key(0))
    step = functools.partial(training.train_step, **OPTIONS | {"ema_decay": 0.0})
    after, _ = jax.eval_shape(step, state, batches[0], 0)
    assert state.ema_params == after.ema_params == {}


def test_optimizer_is_adam_as_pytorch_has_it():
    """Two steps by hand: clipped gradient, coupled decay, eps outside the root, warm-up from zero."""
    optimizer = training.make_optimizer(
        0.1, beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.5, grad_clip=2.0
    )
    p, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    params = jnp.asarray(p)
    opt_state = optimizer.init(params)
    for t, g in enumerate((np.array([3.0, 4.0]), np.array([0.3, 0.1])), start=1):
        updates, opt_state = optimizer.update(jnp.asarray(g), opt_state, params)
        params = optax.apply_updates(params, updates)
        g = g * min(1.0, 2.0 / np.linalg.norm(g)) + 0.5 * p
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        p = p - 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-3)
        np.testing.assert_allclose(params, p, rtol=1e-5)


def test_weight_of_the_levels_enters_the_loss_and_its_gradient_but_not_the_metrics(state, batches):
    """With a ladder of one value c the loss of weight sigma^p is c^(p - 2) times that of sigma^2."""
    ladder = jnp.asarray([0.5, 0.5, 0.5, 0.5])

    def measured(power):
        options = OPTIONS | {"objective": objectives.ladder(Tiny(), ladder, anneal_power=power)}
        return run(functools.partial(training.train_step, **options), state, batches[0], 7)[1]

    usual, other = measured(2.0), measured(-1.0)
    for name in ("loss", "grad_norm"):
        ratio = getattr(other, name) / getattr(usual, name)
        assert float(ratio) == pytest.approx(0.5**-3, rel=1e-5)
    np.testing.assert_allclose(other.level_loss, usual.level_loss, rtol=1e-6)


@pytest.mark.parametrize("name", ["ssm", "sm"])
def test_step_with_another_loss_has_its_known_loss_and_gradient(name):
    """For black images the perturbed data is N(0, sigma^2), whose score is -x / sigma^2.

    For the network f x / sigma^2, one number, the loss is D (f^2 / 2 + f) and its derivative D (f + 1).
    """

    class Scale(nn.Module):
        @nn.compact
        def __call__(self, x, level):
            f = self.param("f", nn.initializers.constant(0.5), ())
            return f * x / jnp.square(LADDER[level])[:, None, None, None]

    objective = objectives.ladder(Scale(), LADDER, objectives.LOSSES[name])
    options = OPTIONS | {"objective": objective, "dequantize": False}
    step = jax.jit(functools.partial(training.train_step, **options))
    state = training.make_init(Scale(), OPTIMIZER, (4, 4, 1), ema=True)(jax.random.key(0))
    count, d, f = 4096, 16, 0.5
    _, metrics = step(state, jnp.zeros((count, 4, 4, 1), jnp.uint8), 7)
    # ||z||^2 and, in the sliced loss, ||v||^2 of one projection have variance 2 D.
    sliced = 2 * d if name == "ssm" else 0
    error = np.sqrt((2 * d * (f**2 / 2) ** 2 + sliced * f**2) / count)
    assert abs(float(metrics.loss) - d * (f**2 / 2 + f)) < 4 * error
    error = np.sqrt((2 * d * f**2 + sliced) / count)
    assert abs(float(metrics.grad_norm) - d * (f + 1)) < 4 * error
