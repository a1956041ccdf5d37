"""The training step, one and several at a time; tests/app/test_devices.py tests it on eight devices.

The network is tiny, because the step is what is tested here.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncsn_jax import augmentation, losses, models, objectives, sigmas, training
from ncsn_jax._random import Stream, example_keys, fold_in, split_each, stream_key
from ncsn_jax.images import prepare
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
    """Returns a compiled step."""
    return compiled_quickly(functools.partial(training.train_step, **OPTIONS), state, batches[0], 7)


@pytest.fixture(scope="module")
def one_device(state, batches, step):
    """Returns the states and metrics of five single steps on one device."""
    states, metrics = [state], []
    for images in batches:
        following, measured = step(states[-1], images, 7)
        states.append(following)
        metrics.append(measured)
    return states, metrics


def assert_same(a, b):
    """Compares to float32 rounding; Adam's first steps have size 1e-2 for any gradient."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6), a, b)


def test_two_half_batches_give_the_metrics_of_the_whole_batch(state, batches, one_device):
    """An example's random numbers depend on its index in the global batch."""
    one = functools.partial(training.train_step, **OPTIONS)
    half = compiled_quickly(one, state, batches[0][:8], 7, np.int32(0))
    halves = [half(state, batches[0][i : i + 8], 7, np.int32(i))[1] for i in (0, 8)]
    whole = one_device[1][0]
    assert np.mean([h.loss for h in halves]) == pytest.approx(float(whole.loss), rel=1e-5)
    np.testing.assert_array_equal(sum(h.level_count for h in halves), whole.level_count)
    np.testing.assert_allclose(sum(h.level_loss for h in halves), whole.level_loss, rtol=1e-5)


def test_train_steps_matches_single_steps(state, batches, one_device):
    states, metrics = one_device
    final, measured = run(functools.partial(training.train_steps, **OPTIONS), state, batches, 7)
    assert int(final.step) == 5
    assert_same(final, states[-1])
    assert_same(measured, jax.tree.map(lambda *a: np.stack(a), *metrics))


@pytest.mark.parametrize("loss", ["sm"])
def test_microbatches_give_the_same_step_in_less_memory(state, loss):
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


def test_initial_state_has_the_parameters_and_a_copy_as_ema():
    key, (image, level) = jax.random.key(3), (jnp.ones((1, 8, 8, 1)), jnp.zeros(1, int))
    params = Tiny().init(key, image, level)
    made = training.make_init(Tiny(), OPTIMIZER, (8, 8, 1), ema=True)(key)
    jax.tree.map(np.testing.assert_array_equal, made.params, params)
    jax.tree.map(np.testing.assert_array_equal, made.ema_params, params)
    jax.tree.map(np.testing.assert_array_equal, made.opt_state, OPTIMIZER.init(params))
    assert made.step == 0 and made.step.dtype == jnp.int32
    pointers = [a.unsafe_buffer_pointer() for a in jax.tree.leaves(made)]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("centered", [False, True])
def test_step_matches_its_parts_called_one_by_one(state, batches, centered):
    """Images, levels and noise each have their own keys."""
    states = [state, state._replace(step=jnp.int32(2))]
    options = OPTIONS | {"centered": centered}
    step = compiled_quickly(functools.partial(training.train_step, **options), state, batches[0], 7)

    def loss(params, noise_keys, x, sigma):
        score_fn = models.score_fn(Tiny(), params, LADDER)
        each = losses.denoising_score_matching(noise_keys, score_fn, x, sigma)
        return each.mean(), each

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    update = jax.jit(OPTIMIZER.update)
    for before in states:
        after, metrics = step(before, batches[0], 7)
        step_key = jax.random.fold_in(stream_key(7, Stream.TRAINING), before.step)
        keys = example_keys(step_key, jnp.arange(16))
        image_keys, level_keys, noise_keys = split_each(keys, 3)
        x = prepare(image_keys, batches[0], random_flip=True, dequantize=True, centered=centered)
        sigma = losses.sample_levels(level_keys, LADDER, 16)
        (mean, each), grads = gradient(before.params, noise_keys, x, sigma)
        level = np.searchsorted(-np.asarray(LADDER), -np.asarray(sigma))
        assert float(metrics.loss) == pytest.approx(float(mean), rel=1e-5)
        assert float(metrics.grad_norm) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4)
        np.testing.assert_array_equal(metrics.level_count, np.bincount(level, minlength=4))
        expected = np.bincount(level, np.asarray(each), minlength=4)
        np.testing.assert_allclose(metrics.level_loss, expected, rtol=1e-5)
        updates, opt_state = update(grads, before.opt_state, before.params)
        assert_same(after.params, optax.apply_updates(before.params, updates))
        assert_same(after.opt_state, opt_state)


def test_the_network_is_given_the_labels_of_the_augmented_images(batches):
    """The loss of an example is its label times weights, plus the sum of its pixels squared."""
    weights = jnp.arange(1.0, 10.0)

    def score_fn(params, keys, augment):
        return lambda x: params * augment @ weights + jnp.sum(x**2, axis=(1, 2, 3))

    loss = lambda keys, score_fn, x, noise: score_fn(x)
    example = lambda keys: jnp.arange(16)
    objective = objectives.Objective(np.ones(16), example, example, score_fn, loss, None)
    params = jnp.ones(())
    state = training.TrainState(jnp.int32(2), params, {}, OPTIMIZER.init(params))
    options = OPTIONS | {"objective": objective, "ema_decay": 0.0, "random_flip": False}
    step = functools.partial(training.train_step, augment=0.5, **options)
    _, metrics = run(step, state, batches[0], 7)
    step_key = jax.random.fold_in(stream_key(7, Stream.TRAINING), 2)
    keys = example_keys(step_key, jnp.arange(16))

    def expected(keys):
        x = prepare(split_each(keys, 3)[0], batches[0], random_flip=False, dequantize=True)
        x, labels = augmentation.augment(fold_in(keys, 4), x, probability=0.5)
        return labels @ weights + jnp.sum(x**2, axis=(1, 2, 3))

    np.testing.assert_allclose(metrics.level_loss, run(expected, keys), rtol=1e-5, atol=1e-5)


def test_microbatches_that_do_not_divide_the_batch_are_rejected(state, batches):
    with pytest.raises(
        ValueError, match="microbatches must divide the 16 examples on a device, got 3"
    ):
        training.train_step(state, batches[0], 7, microbatches=3, **OPTIONS)


def test_ema_optimizer_and_metrics_follow_the_documentation(batches, one_device):
    states, metrics = one_device
    averaged = states[0].params
    for later in states[1:]:
        averaged = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, averaged, later.params)
    assert_same(states[-1].ema_params, averaged)
    # With a linear warm-up from zero, the first step does not change the parameters.
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


def test_without_ema_decay_no_ema_is_kept(batches):
    state = training.make_init(Tiny(), OPTIMIZER, (8, 8, 1), ema=False)(jax.random.key(0))
    step = functools.partial(training.train_step, **OPTIONS | {"ema_decay": 0.0})
    after, _ = jax.eval_shape(step, state, batches[0], 0)
    assert state.ema_params == after.ema_params == {}


def test_optimizer_matches_adam_in_pytorch():
    """Takes two steps by hand: clipped gradient, coupled decay, eps outside the root, warm-up from zero."""
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


def test_the_learning_rate_warms_up_and_decays_along_a_cosine():
    """A constant gradient moves a parameter by Adam's step, the learning rate."""
    optimizer = training.make_optimizer(0.1, eps=1e-12, warmup_steps=3, decay_steps=8)
    state, rates = optimizer.init(jnp.zeros(1)), []
    for _ in range(10):
        update, state = optimizer.update(jnp.full(1, 2.0), state)
        rates.append(-float(update[0]))
    k = np.arange(10)
    decay = (1 + np.cos(np.pi * np.minimum(k / 8, 1))) / 2
    np.testing.assert_allclose(rates, 0.1 * np.minimum(k / 3, 1) * decay, rtol=1e-4, atol=1e-8)


def test_anneal_power_weights_the_loss_and_gradient_but_not_the_metrics_by_level(state, batches):
    """For a ladder of one value c, weight sigma^p multiplies the loss of weight sigma^2 by c^(p - 2)."""
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
def test_step_with_another_loss_has_the_known_loss_and_gradient(name):
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


def test_reduce_mean_multiplies_the_loss_and_gradient_by_two_over_d(state, batches):
    def measured(reduce_mean):
        step = functools.partial(training.train_step, **OPTIONS | {"reduce_mean": reduce_mean})
        return run(step, state, batches[0], 7)[1]

    total, mean = measured(False), measured(True)
    for name in ("loss", "grad_norm"):
        ratio = float(getattr(mean, name) / getattr(total, name))
        assert ratio == pytest.approx(2 / 64, rel=1e-4)
    np.testing.assert_allclose(mean.level_loss, total.level_loss, rtol=1e-6)


def run_optimizer(gradients, params, **options):
    """Returns the parameters and the states of an optimizer after each gradient."""
    optimizer = training.make_optimizer(**options)
    states, update = [(params, optimizer.init(params))], jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, states[-1][1], states[-1][0])
        states.append((optax.apply_updates(states[-1][0], updates), state))
    return states[1:]


def test_adamw_decays_apart_from_the_gradient():
    """For constant gradients Adam's step is the learning rate, so each step has a closed form."""
    g, p = jnp.array([3.0, -4.0]), np.array([1.0, -2.0])
    options = dict(learning_rate=0.1, name="adamw", weight_decay=0.5)
    for found, _ in run_optimizer([g, g], jnp.asarray(p), **options):
        p = p - 0.1 * (np.sign(g) + 0.5 * p)
        np.testing.assert_allclose(found, p, rtol=1e-5)


def test_muon_takes_an_orthogonal_step_for_kernels_and_adams_for_the_rest():
    """Newton-Schulz keeps the singular vectors, and maps the singular values by its polynomial."""
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 4, 6), "dense": (5, 7)}
    grads = {name: {"kernel": rng.standard_normal(shape)} for name, shape in shapes.items()}
    grads["table"] = {"embedding": rng.standard_normal((3, 4))}
    grads = jax.tree.map(np.float32, grads)
    params = jax.tree.map(np.ones_like, grads)
    options = dict(learning_rate=0.1, name="muon", weight_decay=0.5)
    ((after, _),) = run_optimizer([grads], params, **options)
    for name, shape in shapes.items():
        matrix = np.asarray(grads[name]["kernel"], np.float64).reshape(-1, shape[-1])
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        s = s / np.linalg.norm(s)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        assert np.all((s > 0.6) & (s < 1.3))
        step = 0.2 * np.sqrt(max(matrix.shape)) * (u * s) @ vt
        expected = 1 - 0.1 * (step.reshape(shape) + 0.5)
        np.testing.assert_allclose(after[name]["kernel"], expected, atol=1e-4)
    nesterov = (1 + 0.9 / 1.9) * np.sign(grads["table"]["embedding"])
    np.testing.assert_allclose(after["table"]["embedding"], 0.95 - 0.1 * nesterov, atol=1e-5)


def test_schedule_free_parameters_are_the_mean_of_the_iterates():
    """On a quadratic, with a constant rate; gradients are taken between the mean and the last iterate."""
    optimizer = training.make_optimizer(0.1, name="schedule_free", beta1=0.8)
    params = jnp.array([3.0, -1.0])
    state, iterates = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for _ in range(4):
        updates, state = update(2 * params, state, params)
        params = optax.apply_updates(params, updates)
        iterates.append(np.asarray(state.z))
        mean = np.mean(iterates, axis=0)
        found = training.sampling_params(training.TrainState(0, params, {}, state))
        np.testing.assert_allclose(found, mean, rtol=1e-5)
        np.testing.assert_allclose(params, 0.2 * iterates[-1] + 0.8 * mean, rtol=1e-5)
    # Adam's first step, without momentum, has the size of the learning rate.
    np.testing.assert_allclose(iterates[0], [2.9, -0.9], rtol=1e-5)


def test_the_rate_decays_by_the_root_after_a_step():
    rate = training.make_schedule(0.5, warmup_steps=4, decay_after=100)
    found = [rate(k) for k in (2, 4, 100, 400, 2500)]
    np.testing.assert_allclose(found, [0.25, 0.5, 0.5, 0.25, 0.1], rtol=1e-6)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="name must be one of adam, adamw, .* got 'sgd'"):
        training.make_optimizer(0.1, name="sgd")


def test_averages_follow_the_parameters_and_count_skipped_steps(batches):
    gammas = (6.94, 0.0)
    state = training.make_init(Tiny(), OPTIMIZER, (8, 8, 1), ema=False, averages=2)(
        jax.random.key(0)
    )
    pointers = [a.unsafe_buffer_pointer() for a in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    options = OPTIONS | dict(ema_decay=0.0, gammas=gammas, skip_nonfinite=True, dequantize=False)
    images = batches.astype(np.float32) / 255
    images[2] = np.nan
    step = compiled_quickly(functools.partial(training.train_step, **options), state, images[0], 7)
    params = []
    for batch in images:
        state, _ = step(state, batch, 7)
        params.append(state.params)
    jax.tree.map(np.testing.assert_array_equal, params[2], params[1])
    for average, gamma in zip(state.averages, gammas, strict=True):
        shares = np.diff((np.arange(6) / 5) ** (gamma + 1))
        expected = jax.tree.map(lambda *a, s=shares: np.tensordot(s, np.stack(a), 1), *params)
        assert_same(average, expected)
