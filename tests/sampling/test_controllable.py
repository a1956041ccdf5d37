"""Guidance, inpainting and colorization with known answers, and the known bias of inpainting."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ncsn_jax import sampling, scores, sde
from ncsn_jax._random import expand, normal_like
from ncsn_jax.sampling import guided, known_grey, known_pixels, predictor_corrector

SDES = {
    "ve": sde.VE(0.01, 50.0),
    "vp": sde.VP(0.1, 20.0),
    "subvp": sde.SubVP(0.1, 20.0),
}
END = 1e-3


@pytest.mark.parametrize("name", list(SDES))
def test_guidance_by_a_gaussian_likelihood_gives_the_posterior_score(name):
    """For x_0 ~ N(m, v) and y ~ N(x_0, r^2), x_0 given y is Gaussian, and so is x_t given y."""
    process, m, v, r, y = SDES[name], 0.4, 0.5, 0.3, 1.2
    posterior_m, posterior_v = (r**2 * m + v * y) / (r**2 + v), v * r**2 / (r**2 + v)

    def both(x, t):
        alpha, std = (expand(f(t), x) for f in (process.alpha, process.std))
        prior = lambda x, t: (alpha * m - x) / (alpha**2 * v + std**2)

        def log_likelihood(x, t):
            gain = alpha * v / (alpha**2 * v + std**2)
            variance = r**2 + v * (1 - alpha * gain)
            return jnp.sum(-0.5 * (y - m - gain * (x - alpha * m)) ** 2 / variance, axis=1)

        found = [guided(prior, log_likelihood, scale)(x, t) for scale in (0.0, 1.0, 2.0)]
        return found, prior(x, t), (alpha * posterior_m - x) / (alpha**2 * posterior_v + std**2)

    x = jax.random.normal(jax.random.key(0), (50, 3))
    (none, once, twice), prior, posterior = jax.jit(both)(x, jnp.linspace(0.05, 1.0, 50))
    np.testing.assert_array_equal(none, prior)
    # Scores are at most about 10, with some ten roundings.
    np.testing.assert_allclose(once, posterior, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(twice - prior, 2 * (posterior - prior), rtol=1e-6, atol=2e-5)


def independent(process):
    """Returns the score of independent elements from N(0.6, 0.25^2), of any shape."""

    def score(x, t):
        alpha, std = expand(process.alpha(t), x), expand(process.std(t), x)
        return (0.6 * alpha - x) / ((0.25 * alpha) ** 2 + std**2)

    return score


def sample(process, score, shape, constrain=None, num_steps=60):
    start = process.prior_sample(jax.random.key(0), shape)
    return predictor_corrector(
        jax.random.key(1), process, score, start, num_steps=num_steps, end=END, constrain=constrain
    )[0]


@pytest.mark.parametrize("name", ["ve", "vp"])
def test_known_pixels_end_exact_and_leave_independent_pixels_alone(name):
    """Known pixels end as alpha_end times the observed values; hidden ones match an unconstrained run."""
    process, shape = SDES[name], (5, 4)
    observed = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)
    mask = np.array([[1, 0, 0, 1]])
    known = np.broadcast_to(mask == 1, shape)

    @jax.jit
    def run(observed, mask):
        constrain = known_pixels(process, observed, mask)
        return sample(process, independent(process), shape, constrain)

    found = np.asarray(run(observed, mask))
    np.testing.assert_array_equal(run(np.where(mask, observed, np.nan), mask), found)
    free = np.asarray(run(observed, 0 * mask))
    np.testing.assert_array_equal(found[~known], free[~known])
    alpha = float(process.alpha(jnp.asarray([END]))[0])
    np.testing.assert_allclose(
        found[known], np.broadcast_to(alpha * observed, shape)[known], rtol=3e-7
    )
    if name == "vp":
        # The two programs round differently, 60 times.
        plain = jax.jit(lambda: sample(process, independent(process), shape))()
        np.testing.assert_allclose(free, plain, atol=60 * 1.2e-7)


def test_known_pixels_have_the_noise_of_their_time():
    """Uses a different time and key for each example; the mean has no noise."""
    process, n = SDES["vp"], 3000
    t = jnp.asarray([0.01, 0.3, 1.0])
    x = jnp.full((3, n), 7.0)
    constrain = known_pixels(process, jnp.full((1, 1), 2.0), jnp.ones((1, 1), bool))
    keys = jax.random.split(jax.random.key(0), 3)
    found, mean = jax.jit(constrain)(keys, x, x, t)
    alpha, std = (np.asarray(f(t)) for f in (process.alpha, process.std))
    np.testing.assert_allclose(mean, np.broadcast_to(2 * alpha[:, None], mean.shape), rtol=1e-6)
    noise = (np.asarray(found) - np.asarray(mean)) / std[:, None]
    assert np.abs(noise.mean(axis=1)).max() < 4 / np.sqrt(n)
    assert np.abs(noise.std(axis=1) - 1).max() < 4 / np.sqrt(2 * n)
    swapped, _ = jax.jit(constrain)(keys[::-1], x, x, t[::-1])
    np.testing.assert_array_equal(swapped[::-1], found)


def test_known_pixels_leave_the_sample_and_mean_of_hidden_pixels():
    x, mean = jnp.full((2, 3), 7.0), jnp.full((2, 3), 5.0)
    constrain = known_pixels(SDES["ve"], jnp.zeros((1, 3)), jnp.asarray([[1, 0, 0]]))
    found = constrain(jax.random.key(0), x, mean, jnp.ones(2))
    for value, before in zip(found, (x, mean), strict=True):
        np.testing.assert_array_equal(value[:, 1:], before[:, 1:])
        assert (value[:, 0] != before[:, 0]).all()


RHO, VALUE = 0.8, 1.5


def correlated(process):
    """Returns the score of two normal numbers of variance 1 with correlation RHO, under VE."""

    def score(x, t):
        a = expand(1 + process.std(t) ** 2, x)
        return -(a * x - RHO * x[:, ::-1]) / (a**2 - RHO**2)

    return score


def hidden_given_known(corrector_steps, n=2000, num_steps=100):
    process = sde.VE(0.05, 10.0)
    constrain = known_pixels(process, jnp.asarray([[VALUE, 0.0]]), jnp.asarray([[1, 0]]))
    options = (
        {"corrector": "annealed_langevin", "snr": 0.3, "corrector_steps": corrector_steps}
        if corrector_steps
        else {}
    )
    start = process.prior_sample(jax.random.key(0), (n, 2))
    run = jax.jit(
        lambda x: predictor_corrector(
            jax.random.key(1),
            process,
            correlated(process),
            x,
            constrain=constrain,
            num_steps=num_steps,
            **options,
        )
    )
    return np.asarray(run(start)[0])[:, 1]


def recursion(corrector_steps, num_steps=100):
    """Returns the exact mean and standard deviation of `hidden_given_known`.

    The known number has new noise in every update. An update x + c s + b z with the score
    s = (rho known - a x) / (a^2 - rho^2) is affine in x, the known number and z, which are independent.
    """
    times = np.linspace(1, 1e-5, num_steps)
    stds = 0.05 * 200**times
    ladder = np.append(0.0, np.geomspace(0.05, 10.0, num_steps))
    # First for the hidden number, then for the known one, which keeps its start until the first update.
    mean, variance, given, spread = 0.0, 10.0**2, 0.0, 10.0
    for i in range(num_steps):
        level = num_steps - i
        change = ladder[level] ** 2 - ladder[level - 1] ** 2
        step = 2 * (0.3 * stds[i]) ** 2
        updates = [(step, 2 * step, stds[i])] * corrector_steps
        last = i == num_steps - 1  # it returns the mean
        updates += [(change, 0.0 if last else change, stds[min(i + 1, num_steps - 1)])]
        a = 1 + stds[i] ** 2
        for c, noise, after in updates:
            kept, taken = 1 - c * a / (a**2 - RHO**2), c * RHO / (a**2 - RHO**2)
            mean = kept * mean + taken * given
            variance = kept**2 * variance + (taken * spread) ** 2 + noise
            given, spread = VALUE, after
    return mean, np.sqrt(variance)


@pytest.mark.parametrize("corrector_steps", [0, 10])
def test_completions_have_the_moments_of_the_exact_recursion(corrector_steps):
    """These differ from the conditional distribution's, N(rho v, 1 - rho^2); see the next test."""
    hidden, (mean, std) = hidden_given_known(corrector_steps), recursion(corrector_steps)
    assert abs(hidden.mean() - mean) < 4 * std / np.sqrt(len(hidden))
    assert abs(hidden.std() / std - 1) < 4 / np.sqrt(2 * len(hidden))


def test_correctors_remove_the_bias_of_completions_and_finer_steps_do_not():
    """Replacement is biased for any number of steps; Langevin steps at each sigma remove the bias.

    The exact mean is 1.2 and the standard deviation 0.6. Langevin steps shrink like sigma^2, so they have
    little effect at the smallest levels.
    """
    exact = np.array([RHO * VALUE, np.sqrt(1 - RHO**2)])
    error = lambda *arguments: np.abs(np.array(recursion(*arguments)) - exact)
    assert (error(0, 100) > 0.1).all() and (error(0, 10_000) > 0.1).all()
    errors = [error(count) for count in (0, 1, 3, 10, 100)]
    assert (np.diff(errors, axis=0) < 0).all() and (errors[-1] < 0.015).all()


def test_known_grey_matches_the_orthogonal_transform_of_the_paper():
    """Follows appendix I.3 literally: transform, replace the first channel, transform back."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(np.column_stack([np.ones(3), rng.normal(size=(3, 2))]))[0]
    basis[:, 0] = np.abs(basis[:, 0])
    process, t = SDES["vp"], jnp.asarray([0.1, 0.6])
    x, mean = (jnp.asarray(rng.normal(size=(2, 4, 5, 3)), jnp.float32) for _ in range(2))
    grey = jnp.asarray(rng.random((2, 4, 5, 1)), jnp.float32)
    key = jax.random.key(2)
    noise = np.asarray(normal_like(key, grey))
    found = known_grey(process, grey)(key, x, mean, t)
    # This is the first coordinate of grey repeated three times.
    alpha, std = (np.asarray(f(t)).reshape(2, 1, 1, 1) for f in (process.alpha, process.std))
    there = alpha * np.sqrt(3) * np.asarray(grey)
    for value, before, imposed in ((found[0], x, there + std * noise), (found[1], mean, there)):
        coordinates = np.asarray(before) @ basis
        coordinates[..., :1] = imposed
        np.testing.assert_allclose(value, coordinates @ basis.T, atol=2e-6)


def test_colorized_images_have_the_given_grey_and_independent_colours():
    """Elements are independent with equal variances, so grey and colours are independent."""
    process = SDES["vp"]
    greys = np.random.default_rng(1).random((2, 1, 8, 8, 1)).astype(np.float32)
    run = jax.jit(
        lambda grey: sample(process, independent(process), (3, 8, 8, 3), known_grey(process, grey))
    )
    found = [np.asarray(run(grey)) for grey in greys]
    alpha = float(process.alpha(jnp.asarray([END]))[0])
    for image, grey in zip(found, greys, strict=True):
        given = np.broadcast_to(alpha * grey, (3, 8, 8, 1))
        np.testing.assert_allclose(image.mean(axis=-1, keepdims=True), given, atol=3e-7)
    one, other = (image - image.mean(axis=-1, keepdims=True) for image in found)
    # Each of 60 updates rounds numbers of about 4.
    np.testing.assert_allclose(one, other, atol=60 * 4 * 1.2e-7)
    # The deviation of three independent numbers from their mean.
    assert abs(one.std() / (0.25 * np.sqrt(2 / 3)) - 1) < 4 / np.sqrt(2 * one.size) + 0.02


def test_guided_samples_follow_the_posterior():
    """For a mixture of two points with noise, the likelihood of one mode's label leaves only that mode."""
    process, n = SDES["vp"], 1000
    modes, weights = np.array([-1.0, 1.0]), np.array([0.5, 0.5])
    mixture = scores.gaussian_mixture(modes[:, None], [0.3, 0.3], weights)
    prior = sde.from_sigma_score(process, mixture.score)

    def log_likelihood(x, t):
        """Returns the log-probability of the second mode's label, its responsibility."""
        alpha, std = process.alpha(t), process.std(t)
        variance = (0.3 * alpha) ** 2 + std**2
        return jax.nn.log_sigmoid(2 * alpha * x[:, 0] / variance)

    x = jax.jit(lambda: sample(process, guided(prior, log_likelihood), (n, 1), num_steps=300))()
    expected = stats.norm(1.0, 0.3).cdf
    # Kolmogorov's statistic exceeds this with probability 0.001.
    assert stats.kstest(np.asarray(x)[:, 0], expected).statistic < 1.95 / np.sqrt(n)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x, t: known_pixels(SDES["ve"], x, jnp.full((2, 3), 0.5)),
            "mask must contain only 1 or True",
        ),
        (
            lambda x, t: known_pixels(SDES["ve"], x, jnp.ones(3))(None, x, x, t),
            r"mask must .* broadcast to its shape, \(2, 3\), got \(3,\)",
        ),
        (
            lambda x, t: known_pixels(SDES["ve"], x[:, :2], jnp.ones((2, 3)))(None, x, x, t),
            r"observed must .* broadcast to its shape, .* got \(2, 2\)",
        ),
        (lambda x, t: known_grey(SDES["ve"], x), r"grey must have shape \[B, H, W, 1\], got"),
        (
            lambda x, t: known_grey(SDES["ve"], jnp.ones((1, 1, 1, 1)))(None, x, x, t),
            r"x must have shape \[B, H, W, 3\] for known_grey, got \(2, 3\)",
        ),
        (
            lambda x, t: guided(lambda x, t: x, lambda x, t: x)(x, t),
            r"log_likelihood must return shape \(2,\) for x \(2, 3\), got \(2, 3\)",
        ),
    ],
)
def test_invalid_arguments_are_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 3)), jnp.ones(2))


def test_code_in_conditioning_md_samples_the_stated_posteriors():
    page = pathlib.Path(__file__).parents[2] / "docs" / "conditioning.md"
    names = {}
    exec(page.read_text().split("```python")[1].split("```")[0], names)
    for x in (names["flow"], names["walk"]):
        for part, mean in ((x[:500], -1.6), (x[500:], 0.8)):
            assert abs(float(part.mean()) - mean) < 5 * np.sqrt(0.2 / 500)
            assert abs(float(part.var()) / 0.2 - 1) < 5 * np.sqrt(2 / 500)


def test_batch_of_conditions_in_the_probability_flow_is_rejected_with_a_remedy():
    y = jnp.ones((2, 3))
    score_fn = guided(lambda x, t: -x, lambda x, t: -jnp.sum((x - y) ** 2, axis=1))
    with pytest.raises(ValueError, match=r"for x \(1, 3\), got \(2,\) .*docs/conditioning.md"):
        sampling.probability_flow(SDES["ve"], score_fn, y)
