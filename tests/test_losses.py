import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import losses, scores, sde, sigmas
from ncsn_jax._random import normal_like


def test_denoising_loss_matches_the_original(golden, stored_noise):
    """Uses the original's toy score and its stored noise."""
    g = golden("losses")
    ladder = jnp.asarray(g["in/sigmas"])
    stored_noise([g["in/toy/noise"]])

    def score_fn(x, sigma):
        toy = -(x @ g["in/toy/W"].T + 0.5 * jnp.sin(x @ g["in/toy/V"].T))
        return toy / jnp.square(sigma)[:, None]

    sigma = ladder[g["in/toy/labels"]]
    loss = losses.denoising_score_matching(jax.random.key(0), score_fn, g["in/toy/x"], sigma)
    assert loss.shape == (5,)
    assert float(loss.mean()) == pytest.approx(float(g["out/toy/anneal_dsm"]), rel=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_sliced_loss_matches_the_original(golden, stored_noise, count):
    """Uses the original's stored noise and projections, which are stacked by projection."""
    g = golden("losses")
    ladder = jnp.asarray(g["in/sigmas"])
    stored_noise([g["in/toy/noise"], *g[f"in/toy/vectors_{count}"].reshape(count, 5, 6)])

    def score_fn(x, sigma):
        toy = -(x @ g["in/toy/W"].T + 0.5 * jnp.sin(x @ g["in/toy/V"].T))
        return toy / jnp.square(sigma)[:, None]

    sigma, x = ladder[g["in/toy/labels"]], jnp.asarray(g["in/toy/x"])
    loss = losses.sliced_score_matching(jax.random.key(0), score_fn, x, sigma, count)
    expected = float(g[f"out/toy/anneal_sliced_vr_{count}"])
    assert float(loss.mean()) == pytest.approx(expected, rel=1e-5)


def test_exact_loss_is_the_mean_of_the_sliced_loss_and_has_the_known_trace():
    """The trace of s(x) = -x A^T is -tr A; the sliced loss agrees within four standard errors."""
    key_a, key_x, key = jax.random.split(jax.random.key(0), 3)
    a = jax.random.normal(key_a, (4, 4))
    n, sigma = 20_000, 0.7
    x, levels = jax.random.normal(key_x, (n, 4)), jnp.full((n,), sigma)
    score = lambda x, s: -x @ a.T
    exact = losses.score_matching(score, x[:100], levels[:100])
    by_hand = sigma**2 * (0.5 * jnp.sum(jnp.square(x[:100] @ a.T), axis=1) - jnp.trace(a))
    np.testing.assert_allclose(exact, by_hand, rtol=1e-4, atol=1e-4)
    square = x[:100].reshape(100, 2, 2)
    shaped = lambda x, s: score(x.reshape(-1, 4), s).reshape(x.shape)
    np.testing.assert_allclose(
        losses.score_matching(shaped, square, levels[:100]), exact, rtol=1e-5
    )

    sliced = np.asarray(losses.sliced_score_matching(key, score, x, levels))
    # E ||s||^2 = (1 + sigma^2) ||A||^2 for perturbed standard normal data.
    mean = sigma**2 * (0.5 * (1 + sigma**2) * float(jnp.sum(a**2)) - float(jnp.trace(a)))
    assert abs(sliced.mean() - mean) < 4 * sliced.std() / np.sqrt(n)


def test_all_three_losses_have_the_same_gradient_at_and_away_from_the_true_score():
    """Their derivatives along f * score agree at f = 0.5 and vanish at f = 1, the closed form."""
    mixture = scores.gaussian_mixture([[-1.0, 0.0], [1.0, 1.0]], [0.5, 1.0], [0.3, 0.7])
    n, sigma = 40_000, 0.8
    x, levels = mixture.sample(jax.random.key(0), n), jnp.full((n,), sigma)
    perturbed = x + sigma * normal_like(jax.random.key(1), x)
    key = jax.random.key(2)

    def slope(loss, factor):
        values = lambda f: loss(lambda x, s: f * mixture.score(x, s))
        derivative = np.asarray(jax.jvp(values, (factor,), (1.0,))[1])
        return derivative.mean(), derivative.std() / np.sqrt(n)

    found = [
        lambda s: losses.denoising_score_matching(key, s, x, levels),
        lambda s: losses.sliced_score_matching(key, s, x, levels, 2),
        lambda s: losses.score_matching(s, perturbed, levels),
    ]
    expected = (
        -0.5 * sigma**2 * float(jnp.mean(jnp.sum(jnp.square(mixture.score(perturbed, levels)), 1)))
    )
    for loss in found:
        mean, error = slope(loss, 1.0)
        assert abs(mean) < 4 * error
        mean, error = slope(loss, 0.5)
        assert abs(mean - expected) < 5 * error and abs(mean) > 10 * error


@pytest.mark.parametrize("sigma", [0.1, 1.0, 5.0])
def test_denoising_loss_is_smallest_at_the_true_score(sigma):
    """At the true score the loss has its known minimum, and any scaled or negated score is worse.

    For data N(0, I) the perturbed score is -x / v with v = 1 + sigma^2; the residual
    sigma s(x + sigma z) + z has variance 1 / v in each dimension, so the loss is D / (2 v).
    """
    n, dimension = 20_000, 3
    data = jax.random.normal(jax.random.key(0), (n, dimension))
    levels = jnp.full((n,), sigma)

    def loss(factor):
        score = lambda x, s: -factor * x / (1 + jnp.square(s))[:, None]
        return losses.denoising_score_matching(jax.random.key(1), score, data, levels)

    v = 1 + sigma**2
    exact = np.asarray(loss(1.0))
    assert abs(exact.mean() - dimension / (2 * v)) < 4 * exact.std() / np.sqrt(n)
    for factor, expected in ((0.0, 1.0), (-1.0, (1 + sigma**2 / v) ** 2 + sigma**2 / v**2)):
        other = np.asarray(loss(factor))
        assert abs(other.mean() - dimension / 2 * expected) < 4 * other.std() / np.sqrt(n)
        assert other.mean() > exact.mean()


def test_losses_with_a_key_per_example_do_not_depend_on_the_batch():
    mixture = scores.gaussian_mixture([[0.0, 1.0]], [1.0], [1.0])
    keys = jax.random.split(jax.random.key(0), 6)
    x = jax.random.normal(jax.random.key(1), (6, 2))
    sigma = jnp.linspace(0.5, 2.0, 6)
    whole = losses.denoising_score_matching(keys, mixture.score, x, sigma)
    part = losses.denoising_score_matching(keys[2:5], mixture.score, x[2:5], sigma[2:5])
    np.testing.assert_array_equal(whole[2:5], part)
    np.testing.assert_array_equal(
        losses.sample_levels(keys, sigma, 6)[2:5], losses.sample_levels(keys[2:5], sigma, 3)
    )


@pytest.mark.parametrize("per_example", [False, True])
def test_sample_levels_is_uniform_over_the_ladder(per_example):
    n, ladder = 10_000, sigmas.geometric(1.0, 0.01, 10)
    key = jax.random.key(3)
    drawn = losses.sample_levels(jax.random.split(key, n) if per_example else key, ladder, n)
    counts = np.array([(np.asarray(drawn) == s).sum() for s in np.asarray(ladder)])
    assert counts.sum() == n
    # Pearson's statistic with 9 degrees of freedom: above 27.9 with probability 0.001.
    assert np.sum((counts - n / 10) ** 2 / (n / 10)) < 27.9


def test_normal_like_draws_the_numbers_of_a_shaped_draw():
    x = jnp.zeros((3, 4, 5, 2))
    expected = jax.random.normal(jax.random.key(7), x.shape)
    np.testing.assert_array_equal(normal_like(jax.random.key(7), x), expected)


def test_wrong_shapes_and_keys_are_rejected():
    x, key = jnp.zeros((4, 2)), jax.random.key(0)
    loss = losses.denoising_score_matching
    with pytest.raises(ValueError, match=r"sigma must have shape \(4,\).*got \(1,\)"):
        loss(key, lambda x, s: x, x, jnp.ones(1))
    with pytest.raises(
        ValueError, match=r"score_fn must return the shape of x, \(4, 2\), got \(4,\)"
    ):
        loss(key, lambda x, s: x[:, 0], x, jnp.ones(4))
    with pytest.raises(ValueError, match=r"key must have shape \(\) or \(4,\), got \(3,\)"):
        loss(jax.random.split(key, 3), lambda x, s: x, x, jnp.ones(4))
    with pytest.raises(TypeError, match=r"key must be made by jax.random.key"):
        loss(np.zeros(3, np.uint32), lambda x, s: x, x, jnp.ones(4))


def test_error_messages_name_the_invalid_argument():
    key, x, sigma = jax.random.key(0), jnp.ones((2, 3)), jnp.ones(2)
    score = lambda x, sigma: -x
    for call, message in (
        (lambda: losses.sample_levels(key, jnp.ones(()), 2), "sigmas must have shape \\[L\\]"),
        (lambda: losses.sample_levels(key, jnp.ones(0), 2), "sigmas must have shape \\[L\\]"),
        (
            lambda: losses.sample_levels(key, jnp.ones(2), -1),
            "batch_size must be an integer from 1 to",
        ),
        (lambda: losses.sliced_score_matching(key, score, x, sigma, 0), "num_projections must be"),
        (lambda: losses.score_matching(score, jnp.ones((2, 0)), sigma), "x must not be empty"),
        (
            lambda: losses.score_matching(score, jnp.ones((2, 3), int), sigma),
            "x must be floating point, got int32",
        ),
        (
            lambda: losses.score_matching(score, 1.0, sigma),
            "x must be an array \\[B, ...\\], got 1.0",
        ),
        (
            lambda: losses.denoising_score_matching(key, score, x, 1.0),
            r"sigma must have shape \(2,\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_sliced_loss_of_half_precision_images_is_float32():
    """For s(x) = -x the loss is (||x + z||^2 / 2 - ||v||^2) sigma^2, with float32 noise."""
    x, key = jnp.ones((2, 3), jnp.float16), jax.random.key(0)
    loss = losses.sliced_score_matching(key, lambda x, s: -x, x, jnp.ones(2))
    z = normal_like(jax.random.fold_in(key, 0), jnp.zeros((2, 3)))
    v = normal_like(jax.random.fold_in(key, 1), jnp.zeros((2, 3)))
    expected = 0.5 * jnp.sum((1 + z) ** 2, 1) - jnp.sum(v**2, 1)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


SDES = {
    "ve": sde.VE(0.01, 50.0),
    "vp": sde.VP(0.1, 20.0),
    "subvp": sde.SubVP(0.1, 20.0),
}


def network(x, label):
    """The network behind the authors' stored SDE values."""
    label = label.reshape(-1, 1, 1, 1)
    return -0.7 * x + 0.2 * jnp.sin(3 * x) + 0.01 * label * jnp.cos(x)


@pytest.mark.parametrize("weighting", [False, True])
@pytest.mark.parametrize("name", list(SDES))
def test_sde_losses_match_the_authors(name, weighting, golden, stored_noise):
    """Uses their stored noise. Their `reduce_mean` is this loss times 2 / D."""
    g, process = golden("sde"), SDES[name]
    x, u = (jnp.asarray(g[f"in/{n}"]) for n in ("x", "u"))
    stored_noise([g["in/noise"]])

    def score(x, t):
        std = process.std(t)
        if name == "ve":
            return network(x, std)
        return -network(x, 999 * t) / std.reshape(-1, 1, 1, 1)

    loss = losses.denoising_diffusion(
        jax.random.key(0),
        process,
        score,
        x,
        u * (1 - 1e-5) + 1e-5,
        likelihood_weighting=weighting,
    )
    assert loss.shape == (3,)
    elements = x[0].size
    for mean, factor in ((0, 1), (1, 2 / elements)):
        expected = g[f"out/{name}/loss_sde_mean{mean}_lw{int(weighting)}"]
        assert float(loss.mean()) * factor == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("name", "label"), [("ve", "smld"), ("vp", "ddpm")])
def test_chain_losses_match_the_authors(name, label, golden, stored_noise):
    """SMLD counts levels from the largest sigma, DDPM from the smallest."""
    g, process = golden("sde"), SDES[name]
    x = jnp.asarray(g["in/x"])
    stored_noise([g["in/noise"]])
    level = g["in/labels"] if name == "vp" else 99 - g["in/labels"]

    def score(x, t):
        if name == "ve":
            return network(x, jnp.round((1 - t) * 99))
        std = process.chain(100)[1][jnp.round(99 * t).astype(int)]
        return -network(x, jnp.round(99 * t)) / std.reshape(-1, 1, 1, 1)

    loss = losses.denoising_diffusion(
        jax.random.key(0), process, score, x, jnp.asarray(level) / 99, num_levels=100
    )
    elements = x[0].size
    for mean, factor in ((0, 1), (1, 2 / elements)):
        expected = g[f"out/{name}/loss_{label}_mean{mean}"]
        assert float(loss.mean()) * factor == pytest.approx(float(expected), rel=1e-5)


def test_chain_loss_maps_each_time_to_its_own_level(stored_noise):
    """For data of 1 without noise, the score function sees alpha of each level."""
    stored_noise([np.zeros(1000)])
    alphas, stds = SDES["vp"].chain(1000)
    seen = []

    def score(x, t):
        seen.append(x[:, 0])
        return jnp.ones_like(x)

    t = jnp.arange(1000) / 999
    x = jnp.ones((1000, 1))
    loss = losses.denoising_diffusion(jax.random.key(0), SDES["vp"], score, x, t, num_levels=1000)
    np.testing.assert_array_equal(seen[0], alphas)
    np.testing.assert_allclose(loss, 0.5 * np.square(stds), rtol=3e-7)


@pytest.mark.parametrize("num_levels", [None, 100])
@pytest.mark.parametrize("name", ["ve", "vp"])
def test_sde_loss_at_the_true_score_has_its_known_value(name, num_levels):
    """For data N(0, I) x_t has variance v = alpha^2 + std^2: the loss is D alpha^2 / (2 v) at -x / v."""
    process, n = SDES[name], 20_000
    x, t = jax.random.normal(jax.random.key(0), (n, 3)), jnp.full(n, 20 / 99)
    if num_levels is None:
        alpha, std = float(process.alpha(t)[0]), float(process.std(t)[0])
    else:
        alpha, std = (float(table[20]) for table in process.chain(num_levels))
    variance = alpha**2 + std**2
    score = lambda x, t: -x / variance
    key = jax.random.key(1)
    loss = losses.denoising_diffusion(key, process, score, x, t, num_levels=num_levels)
    loss = np.asarray(loss)
    expected = 3 * alpha**2 / (2 * variance)
    assert abs(loss.mean() - expected) < 4 * loss.std() / np.sqrt(n)


@pytest.mark.parametrize("per_example", [False, True])
def test_sample_times_is_uniform(per_example):
    n = 10_000
    key = jax.random.key(3)
    key = jax.random.split(key, n) if per_example else key
    t = np.asarray(losses.sample_times(key, n, end=0.2))
    assert t.dtype == np.float32 and t.shape == (n,) and t.min() > 0.2 and t.max() <= 1
    # Pearson's statistic with 9 degrees of freedom: above 27.9 with probability 0.001.
    uniform = lambda counts: np.sum((counts - n / 10) ** 2 / (n / 10)) < 27.9
    assert uniform(np.histogram(t, bins=10, range=(0.2, 1.0))[0])
    levels = np.asarray(losses.sample_times(key, n, num_levels=10)) * 9
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-6)
    assert uniform(np.bincount(np.round(levels).astype(int), minlength=10))
    if per_example:
        part = losses.sample_times(key[5:8], 3, end=0.2)
        np.testing.assert_array_equal(part, t[5:8])


def test_sde_losses_reject_invalid_arguments():
    key, x, t = jax.random.key(0), jnp.ones((2, 3)), jnp.ones(2)
    score = lambda x, t: -x
    loss = lambda name, t=t, score=score, **options: losses.denoising_diffusion(
        key, SDES[name], score, x, t, **options
    )
    for call, message in (
        (lambda: loss("subvp", num_levels=10), "num_levels: SubVP has no discrete chain, got 10"),
        (
            lambda: loss("ve", num_levels=10, likelihood_weighting=True),
            "likelihood_weighting must be False with num_levels, got True",
        ),
        (lambda: loss("vp", num_levels=20), "num_levels must be an integer from 21 to .* got 20"),
        (lambda: loss("ve", num_levels=0), "num_levels must be an integer from 1 to .* got 0"),
        (lambda: loss("ve", t=jnp.ones(3)), r"t must have shape \(2,\), got \(3,\)"),
        (lambda: loss("ve", score=lambda x, t: t), "score_fn must return the shape of x"),
        (lambda: losses.sample_times(key, 2, end=1.0), r"end must be in \(0, 1\), got 1.0"),
        (lambda: losses.sample_times(key, 0), "batch_size must be an integer from 1 to"),
        (
            lambda: losses.sample_times(key, 2, num_levels=1),
            "num_levels must be an integer from 2 to .* got 1",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
