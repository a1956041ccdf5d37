"""The classifier's loss and likelihood against closed forms, and its network at all sigmas and sizes."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ncsn_jax import classifier, scores, sde, training
from ncsn_jax.models import NoisyClassifier

SDES = {
    "ve": sde.VE(0.01, 50.0),
    "vp": sde.VP(0.1, 20.0),
    "subvp": sde.SubVP(0.1, 20.0),
}
MEANS = np.array([[-1.0, 0.5], [2.0, 1.0], [0.0, -1.0]])
STDS = np.array([0.3, 0.5, 0.4])
WEIGHTS = np.array([0.2, 0.5, 0.3])


@pytest.fixture(params=list(SDES))
def process(request):
    return SDES[request.param]


def bayes(params, x, sigma):
    """Returns exact logits of a Gaussian mixture's components, taken as classes, for x_0 + sigma z."""
    del params
    variance = jnp.asarray(STDS, jnp.float32)[None] ** 2 + sigma[:, None] ** 2
    square = jnp.sum((x[:, None] - jnp.asarray(MEANS, jnp.float32)[None]) ** 2, axis=2)
    return (
        jnp.log(jnp.asarray(WEIGHTS, jnp.float32))[None] - jnp.log(variance) - square / variance / 2
    )


BAYES = types.SimpleNamespace(apply=bayes)


def test_guidance_by_the_likelihood_gives_the_class_conditional_score(process):
    """grad log p(x_t) + grad log p(y | x_t) = grad log p(x_t | y), all three in closed form."""
    t = jnp.linspace(0.2, 1.0, 60)
    x = jax.random.normal(jax.random.key(0), (60, 2)) * process.std(t)[:, None]
    y = jnp.arange(60) % 3
    likelihood = classifier.log_likelihood(BAYES, None, process, y)
    score = sde.from_sigma_score(process, scores.gaussian_mixture(MEANS, STDS, WEIGHTS).score)
    found = jax.jit(lambda x: score(x, t) + jax.grad(lambda x: likelihood(x, t).sum())(x))(x)

    alpha, std = (np.asarray(f(t), np.float64)[:, None] for f in (process.alpha, process.std))
    variance = (alpha * STDS[y][:, None]) ** 2 + std**2
    expected = (alpha * MEANS[y] - x) / variance
    # float32 rounding of the terms that are added, each up to |x| / variance.
    scale = np.abs(np.asarray(x)).max(axis=1, keepdims=True) + 3
    assert np.all(np.abs(found - expected) < 1e-5 * scale / variance)


def test_class_probabilities_sum_to_one(process):
    t = jnp.linspace(0.01, 1.0, 20)
    x = jax.random.normal(jax.random.key(0), (20, 2))
    likelihood = jax.jit(lambda y: classifier.log_likelihood(BAYES, None, process, y)(x, t))
    each = np.stack([likelihood(y) for y in range(3)])
    np.testing.assert_allclose(np.exp(each).sum(axis=0), 1.0, rtol=1e-6)
    y = np.arange(20) % 3
    np.testing.assert_allclose(likelihood(y), each[y, np.arange(20)], rtol=1e-6)


@pytest.mark.parametrize("several", [False, True])
def test_loss_is_the_cross_entropy_at_x_t(process, several):
    """Compares with numpy in double precision, for logits linear in x_t that depend on the time."""
    key = jax.random.key(3)
    key = jax.random.split(key, 5) if several else key
    x, weights = (jax.random.normal(jax.random.key(i), s) for i, s in ((1, (5, 4)), (2, (4, 3))))
    t, y = jnp.linspace(0.1, 1.0, 5), np.array([0, 1, 2, 2, 1])
    linear = lambda x, t: x @ weights + t[:, None]
    cross_entropy, correct = classifier.loss(key, process, linear, x, y, t)

    if several:
        z = np.stack([jax.random.normal(k, (4,)) for k in key]).astype(np.float64)
    else:
        z = np.asarray(jax.random.normal(key, (20,)).reshape(5, 4), np.float64)
    alpha, std = np.asarray(process.alpha(t))[:, None], np.asarray(process.std(t))[:, None]
    logits = (alpha * np.asarray(x) + std * z) @ np.asarray(weights, np.float64)
    expected = np.log(np.exp(logits - logits[np.arange(5), y][:, None]).sum(axis=1))
    # float32 rounding of the logits.
    np.testing.assert_allclose(cross_entropy, expected, rtol=1e-5, atol=2e-6 * np.abs(logits).max())
    np.testing.assert_array_equal(correct, logits.argmax(axis=1) == y)


def test_loss_with_a_key_per_example_does_not_depend_on_the_batch():
    keys = jax.random.split(jax.random.key(1), 4)
    x, y = np.ones((4, 3), np.float32), np.array([0, 1, 2, 0])
    t = jnp.linspace(0.1, 1.0, 4)
    identity = lambda x, t: x
    whole, _ = classifier.loss(keys, SDES["vp"], identity, x, y, t)
    part, _ = classifier.loss(keys[1:3], SDES["vp"], identity, x[1:3], y[1:3], t[1:3])
    np.testing.assert_allclose(whole[1:3], part, rtol=1e-6)


def weights(model, shape, scale):
    """Returns random parameters of a network."""
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    sigma = jax.ShapeDtypeStruct((1,), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image, sigma)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: scale * rng.standard_normal(a.shape, np.float32), params)


def test_network_accepts_any_sigma_and_odd_sides():
    """Logits and gradients are finite, logits depend on sigma, and examples do not affect each other."""
    model = NoisyClassifier(4, 4, (1, 1))
    params = weights(model, (5, 3, 2), 0.3)
    sigma = np.array([0.01, 0.1, 1.0, 10.0, 100.0, 500.0], np.float32)
    z = np.random.default_rng(1).standard_normal((6, 5, 3, 2), np.float32)
    x = 0.5 + sigma[:, None, None, None] * z

    @jax.jit
    def both(x, sigma):
        logits, pull = jax.vjp(lambda x: model.apply(params, x, sigma), x)
        return logits, pull(jnp.ones_like(logits))[0]

    logits, gradient = both(x, sigma)
    assert logits.shape == (6, 4) and np.abs(logits).max() < 100
    assert np.isfinite(gradient).all() and all(np.any(g != 0) for g in gradient)
    changed, _ = both(np.concatenate([x[:2], -x[2:]]), sigma)
    np.testing.assert_array_equal(changed[:2], logits[:2])
    assert np.all(np.any(changed[2:] != logits[2:], axis=1))
    flat, _ = both(np.zeros_like(x), sigma)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.pairwise(flat))


def test_network_accepts_single_pixels():
    model = NoisyClassifier(5, 4, (1, 1))
    params = weights(model, (1, 1, 1), 0.3)
    logits = jax.jit(model.apply)(params, np.ones((2, 1, 1, 1)), np.array([0.01, 100.0]))
    assert logits.shape == (2, 5) and np.isfinite(logits).all()


class Brightness:
    """A stand-in for a network that tells bright images from dark ones by two parameters."""

    def lazy_init(self, key, x, sigma):
        return {"scale": jnp.zeros(()), "shift": jnp.zeros(())}

    def apply(self, params, x, sigma):
        logit = params["scale"] * jnp.mean(x, axis=(1, 2, 3)) + params["shift"]
        return jnp.stack([jnp.zeros_like(logit), logit], axis=1)


def test_training_steps_learn_and_depend_only_on_seed_and_step():
    """The classes are bright and dark images; noise of at most 0.1 is far below their difference."""
    images = np.full((8, 4, 4, 1), 25, np.uint8)
    images[4:] = 230
    labels = np.arange(8) // 4
    optimizer = optax.sgd(10.0)
    options = dict(model=Brightness(), sde=sde.VE(0.01, 0.1), optimizer=optimizer, centered=True)
    step = jax.jit(functools.partial(classifier.train_step, **options))
    start = training.make_init(Brightness(), optimizer, (4, 4, 1), ema=False)(jax.random.key(0))
    state, first = step(start, images, labels, 7)
    assert float(first.loss) == pytest.approx(np.log(2)) and float(first.accuracy) == 0.5
    # At zero logits, the gradient of the scale is the mean of (1/2 - y) m, where m is the mean of an
    # image in [-1, 1], with noise of at most 0.1 on 16 pixels.
    expected = 10 * 0.25 * (230 - 25) / 127.5
    assert abs(float(state.params["scale"]) - expected) < 4 * 10 * 0.5 * 0.1 / np.sqrt(8 * 16)
    again, _ = step(start, images, labels, 7)
    other, _ = step(start, images, labels, 8)
    later, _ = step(start._replace(step=jnp.int32(1)), images, labels, 7)
    scales = [float(s.params["scale"]) for s in (state, again, other, later)]
    assert scales[0] == scales[1] and len(set(scales)) == 3
    for _ in range(20):
        state, metrics = step(state, images, labels, 7)
    assert int(state.step) == 21 and float(metrics.accuracy) == 1.0 and float(metrics.loss) < 0.01


def test_invalid_arguments_are_rejected():
    key, x, t = jax.random.key(0), jnp.zeros((3, 2)), jnp.ones(3) / 2
    vp, y = SDES["vp"], np.array([0, 1, 2])
    exact = classifier.logits_fn(BAYES, None, vp)
    likelihood = functools.partial(classifier.log_likelihood, BAYES, None, vp)
    for call, message in [
        (lambda: likelihood(0.5), r"y must be integers, got 0.5"),
        (lambda: likelihood(3)(x, t), r"y must be in \[0, 3\), got 3"),
        (lambda: likelihood(np.array([0, -1, 1]))(x, t), r"y must be in \[0, 3\), got -1"),
        (lambda: likelihood(y[:2])(x, t), r"y must have shape \(\) or \(3,\), got \(2,\)"),
        (lambda: classifier.loss(key, vp, exact, x, y + 1, t), r"y must be in \[0, 3\), got 3"),
        (lambda: classifier.loss(key, vp, exact, x, y[:2], t), r"y must have shape \(3,\)"),
        (
            lambda: classifier.loss(key, vp, exact, x, y, t[:2]),
            r"t must have shape \(3,\), got \(2,\)",
        ),
        (lambda: classifier.loss(key, vp, exact, x.astype(int), y, t), "x must be floating point"),
        (lambda: classifier.loss(jax.random.split(key), vp, exact, x, y, t), "key must have shape"),
        (lambda: NoisyClassifier(1).init(key, jnp.zeros((1, 4, 4, 1)), t[:1]), "num_classes must"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    traced = jax.jit(lambda y: likelihood(y)(x, t))(np.array([-1, 0, 3]))
    np.testing.assert_array_equal(np.isnan(traced), [True, False, True])
