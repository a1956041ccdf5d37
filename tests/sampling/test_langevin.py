import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import scores, sigmas
from ncsn_jax.sampling import annealed_langevin, initial_samples, langevin

MIXTURE = scores.gaussian_mixture([[-5.0, -5.0], [5.0, 5.0]], [1.0, 1.0], [0.2, 0.8])
N = 10_000


def uniform_start(key, n=N):
    return jax.random.uniform(key, (n, 2), minval=-8.0, maxval=8.0)


def share_of_small_mode(x):
    return float((np.asarray(x)[:, 0] < 0).mean())


@pytest.mark.parametrize(("num_levels", "low", "high"), [(10, 0.19, 0.23), (30, 0.188, 0.212)])
def test_annealed_langevin_finds_the_weights_of_the_modes(num_levels, low, high):
    """See NCSN, section 4.3. Three standard errors of a share of 1/5 among 10,000 are 0.012."""
    ladder = sigmas.geometric(10.0, 0.1, num_levels)
    sampler = jax.jit(lambda k, x: annealed_langevin(k, MIXTURE.score, x, ladder, epsilon=2e-3))
    x = sampler(jax.random.key(0), uniform_start(jax.random.key(1)))
    assert low < share_of_small_mode(x) < high
    # Within each mode the samples have the component's spread: the last level almost reaches it, and
    # the discrete chain is less than a fifth wider.
    for sign in (-1, 1):
        mode = np.asarray(x)[np.sign(np.asarray(x)[:, 0]) == sign]
        assert np.all(np.abs(mode.mean(0) - 5 * sign) < 0.3)


def test_plain_langevin_gives_each_mode_half_of_the_samples():
    """The score does not depend on the weights of distant modes (NCSN, section 3.2.2)."""
    sampler = jax.jit(
        lambda k, x: langevin(k, lambda x: MIXTURE.score(x, 0.0), x, step_size=0.1, num_steps=1000)
    )
    x = sampler(jax.random.key(0), uniform_start(jax.random.key(1)))
    assert 0.45 < share_of_small_mode(x) < 0.55


def gaussian_recursion(mean, variance, drift, noise, precision):
    """Applies a step x + drift * (-x * precision) + noise z to a mean and a variance."""
    factor = 1 - drift * precision
    return factor * mean, factor**2 * variance + noise**2


def test_plain_langevin_follows_the_exact_recursion():
    n, steps, step_size = 20_000, 30, 0.3
    x = 3.0 + jnp.zeros((n, 1))
    x = langevin(jax.random.key(2), lambda x: -x / 4, x, step_size=step_size, num_steps=steps)
    mean, variance = 3.0, 0.0
    for _ in range(steps):
        mean, variance = gaussian_recursion(mean, variance, step_size / 2, step_size**0.5, 1 / 4)
    x = np.asarray(x)[:, 0]
    assert abs(x.mean() - mean) < 4 * np.sqrt(variance / n)
    assert abs(x.var() / variance - 1) < 4 * np.sqrt(2 / n)


@pytest.mark.parametrize("denoise", [False, True])
def test_annealed_langevin_follows_the_exact_recursion(denoise):
    """For data N(0, 1) every step is linear, so the mean and variance are known exactly."""
    n, steps, epsilon = 20_000, 7, 0.02
    ladder = sigmas.geometric(5.0, 0.2, 4)
    start = jnp.full((n, 1), 2.0)
    score = lambda x, s: -x / (1 + jnp.square(s))[:, None]
    x, info = annealed_langevin(
        jax.random.key(3),
        score,
        start,
        ladder,
        epsilon=epsilon,
        steps_per_level=steps,
        denoise=denoise,
        return_info=True,
    )
    mean, variance, last = 2.0, 0.0, float(ladder[-1])
    for level, sigma in enumerate(np.asarray(ladder, np.float64)):
        alpha = epsilon * sigma**2 / last**2
        for _ in range(steps):
            mean, variance = gaussian_recursion(
                mean, variance, alpha / 2, alpha**0.5, 1 / (1 + sigma**2)
            )
        at_end = np.asarray(info.samples[level])[:, 0]
        assert abs(at_end.mean() - mean) < 4 * np.sqrt(variance / n)
        assert abs(at_end.var() / variance - 1) < 4 * np.sqrt(2 / n)
    if denoise:
        np.testing.assert_allclose(x, info.samples[-1] * (1 - last**2 / (1 + last**2)), rtol=1e-5)
    else:
        np.testing.assert_array_equal(x, info.samples[-1])


@pytest.mark.parametrize("convention", ["paper", "ermongroup", "ncsnv2"])
def test_steps_match_the_original(golden, stored_noise, convention):
    """Compares every state of the original's chains with its noise, and the factor 2 between conventions."""
    g = golden("ald")
    noise = g["in/gmm/noise"].reshape(20, 6, 2)
    stored_noise([*noise, 0 * noise[0]])  # the denoising draws noise and multiplies it by 0
    # The original's convention takes the stored step_lr of 0.1; the paper's takes it as epsilon.
    epsilon = 0.1 if convention == "paper" else 0.2
    x, info = annealed_langevin(
        jax.random.key(0),
        MIXTURE.score,
        jnp.asarray(g["in/gmm/x0"]),
        jnp.asarray(g["in/gmm/sigmas"]),
        epsilon=epsilon,
        steps_per_level=5,
        denoise=convention == "ncsnv2",
        return_info=True,
        num_frames=20,
    )
    states = g[f"out/gmm/{convention}/x"][-20:]
    scale = np.abs(states).max()
    np.testing.assert_allclose(info.samples, states, atol=1e-5 * scale)
    if convention == "ncsnv2":
        np.testing.assert_allclose(x, g["out/gmm/ncsnv2/denoised"], atol=1e-5 * scale)


def test_info_reports_the_norms_of_score_and_noise():
    x = jax.random.normal(jax.random.key(0), (5, 3))
    _, info = langevin(
        jax.random.key(1), lambda x: -2 * x, x, step_size=0.5, num_steps=1, return_info=True
    )
    score_norm = np.linalg.norm(2 * np.asarray(x), axis=1)
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), 0), (15,)).reshape(5, 3)
    noise_norm = np.linalg.norm(np.asarray(noise), axis=1)
    np.testing.assert_allclose(info.score_norm, [[score_norm.mean()]], rtol=1e-6)
    np.testing.assert_allclose(info.noise_norm, [[noise_norm.mean()]], rtol=1e-6)
    ratio = (0.25 * score_norm / (0.5**0.5 * noise_norm)).mean()
    np.testing.assert_allclose(info.signal_to_noise, [[ratio]], rtol=1e-6)


def test_chains_with_a_key_per_example_do_not_depend_on_the_batch():
    keys = jax.random.split(jax.random.key(0), 6)
    ladder = sigmas.geometric(1.0, 0.1, 3)

    def sample(keys):
        x = initial_samples(keys, (len(keys), 2))
        return annealed_langevin(keys, MIXTURE.score, x, ladder, epsilon=1e-2, steps_per_level=5)

    np.testing.assert_allclose(sample(keys)[2:5], sample(keys[2:5]), rtol=1e-6)


def test_program_contains_the_network_once():
    calls = []

    def score(x, sigma):
        calls.append(x.shape)
        return jnp.cbrt(x)

    ladder = sigmas.geometric(1.0, 0.1, 7)
    jaxpr = jax.make_jaxpr(
        lambda k, x: annealed_langevin(k, score, x, ladder, steps_per_level=9, denoise=True)
    )(jax.random.key(0), jnp.zeros((2, 3)))
    assert str(jaxpr).count("cbrt") == 1 and len(calls) == 1


def test_clip_applies_after_every_step_and_x_keeps_its_type():
    x = jnp.zeros((100, 4, 4, 1), jnp.bfloat16)
    y, info = annealed_langevin(
        jax.random.key(0),
        lambda x, s: -x,
        x,
        sigmas.geometric(1.0, 0.1, 3),
        epsilon=0.5,
        steps_per_level=3,
        clip=(-0.5, 0.25),
        return_info=True,
    )
    assert y.dtype == jnp.bfloat16 and y.shape == x.shape
    assert float(info.samples.max()) == 0.25 and float(info.samples.min()) == -0.5


def test_derivatives_in_the_step_size_are_the_same_under_vmap():
    ladder = sigmas.geometric(1.0, 0.1, 3)

    def run(key, epsilon):
        x = jnp.ones((2, 2))
        return annealed_langevin(
            key, MIXTURE.score, x, ladder, epsilon=epsilon, steps_per_level=2
        ).sum()

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(jax.grad(run, argnums=1), in_axes=(0, None))(keys, 1e-2)
    alone = jax.grad(run, argnums=1)(keys[1], 1e-2)
    np.testing.assert_allclose(together[1], alone, rtol=1e-4)
    assert np.isfinite(alone) and alone != 0


def test_initial_samples_follow_their_distributions():
    shape = (2000, 2, 2, 3)
    uniform = np.asarray(initial_samples(jax.random.key(0), shape))
    assert uniform.min() >= 0 and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 4 * np.sqrt(1 / 12 / uniform.size)
    normal = np.asarray(initial_samples(jax.random.key(0), shape, "normal", scale=3.0))
    assert abs(normal.mean()) < 4 * 3 / np.sqrt(normal.size)
    assert abs(normal.var() / 9 - 1) < 4 * np.sqrt(2 / normal.size)
    centred = initial_samples(jax.random.key(0), shape, "centred_normal", scale=3.0)
    np.testing.assert_array_equal(centred, 0.5 + normal)
    data = jnp.asarray(uniform)
    around = initial_samples(jax.random.key(0), shape, "data", scale=3.0, data=data)
    np.testing.assert_array_equal(around, uniform + normal)
    for arguments in ({"init": "data"}, {"data": data}, {"init": "data", "data": data[:3]}):
        with pytest.raises(
            ValueError, match="data must have shape .* for init='data' and be None otherwise"
        ):
            initial_samples(jax.random.key(0), shape, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": [0.1, 1.0]}, "sigmas must be positive and strictly decreasing"),
        ({"sigmas": [[1.0, 0.1]]}, r"sigmas must have shape \[L\]"),
        ({"epsilon": 0.0}, "epsilon must be a finite number > 0, got 0.0"),
        ({"epsilon": float("nan")}, "epsilon must be a finite number > 0, got nan"),
        ({"steps_per_level": 0}, "steps_per_level must be an integer from 1 to .* got 0"),
        ({"steps_per_level": 1.5}, "steps_per_level must be an integer from 1 to .* got 1.5"),
        ({"clip": (1.0, 0.0)}, r"clip must be \(low, high\)"),
        ({"clip": (0.0, None)}, r"clip must be \(low, high\)"),
        ({"clip": 0.5}, r"clip must be \(low, high\)"),
        ({"clip": (0, 10**5000)}, r"clip must be \(low, high\)"),
        ({"steps_per_level": True}, "steps_per_level must be an integer from 1 to .* got True"),
        ({"steps_per_level": 10**8}, "steps_per_level must be an integer from 1 to 50000000, got"),
        (
            {"steps_per_level": 10**400},
            "steps_per_level must be an integer from 1 to 50000000, got",
        ),
        ({"clip": np.ones((2, 2))}, r"clip must be .*, got array\(\[\[1., 1.\],\\n"),
    ],
)
def test_invalid_arguments_are_rejected(change, message):
    options = {"sigmas": [1.0, 0.1], "epsilon": 1e-3, "steps_per_level": 2} | change
    ladder = jnp.asarray(options.pop("sigmas"))
    with pytest.raises(ValueError, match=message):
        annealed_langevin(jax.random.key(0), MIXTURE.score, jnp.zeros((2, 2)), ladder, **options)


def test_wrong_score_shapes_and_unknown_init_are_rejected():
    with pytest.raises(
        ValueError, match=r"score_fn must return the shape of x, \(2, 2\), got \(2,\)"
    ):
        langevin(
            jax.random.key(0), lambda x: x[:, 0], jnp.zeros((2, 2)), step_size=1.0, num_steps=1
        )
    with pytest.raises(ValueError, match=r"init must be one of \['uniform', .*, got 'gauss'"):
        initial_samples(jax.random.key(0), (1, 2), "gauss")


def test_non_arrays_and_invalid_shapes_are_rejected():
    with pytest.raises(ValueError, match=r"x must be an array \[B, ...\], got 1.0"):
        langevin(jax.random.key(0), lambda x: x, 1.0, step_size=1.0, num_steps=1)
    for shape in ((), "ab", (2, -1), None):
        with pytest.raises(ValueError, match=r"shape must be \(B, ...\), got "):
            initial_samples(jax.random.key(0), shape)
    with pytest.raises(ValueError, match="scale must be a number, got 'x'"):
        initial_samples(jax.random.key(0), (1, 2), "normal", scale="x")
    assert np.isfinite(initial_samples(jax.random.key(0), (1, 2), "normal", scale=2**40)).all()


@pytest.mark.parametrize("denoise", [False, True])
def test_covariance_at_every_level_follows_the_exact_recursion_in_64_dimensions(denoise):
    """Data N(m, C) has the score -(C + sigma^2 I)^-1 (x - m), so a chain is a linear map.

    In the eigenbasis of C, the mean and variance of each coordinate follow m' = (1 - d / v) m and
    V' = (1 - d / v)^2 V + 2 d, with d = alpha / 2 and v the eigenvalue plus sigma^2.
    """
    dimension, n = 64, 4000
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
    eigenvalues = np.geomspace(0.01, 4.0, dimension)
    centre = rng.normal(size=dimension)
    rotation, mean = jnp.asarray(basis, jnp.float32), jnp.asarray(centre, jnp.float32)
    values = jnp.asarray(eigenvalues, jnp.float32)

    def score(x, sigma):
        inside = (x - mean[None, :]) @ rotation / (values[None, :] + jnp.square(sigma)[:, None])
        return -inside @ rotation.T

    start = 3.0 * jax.random.normal(jax.random.key(0), (n, dimension))
    for epsilon, steps, levels in ((2e-3, 10, 6), (1e-2, 3, 20), (5e-4, 60, 3)):
        ladder = np.asarray(sigmas.geometric(3.0, 0.1, levels))
        sampler = jax.jit(
            lambda x, ladder=ladder, epsilon=epsilon, steps=steps: annealed_langevin(
                jax.random.key(2),
                score,
                x,
                ladder,
                epsilon=epsilon,
                steps_per_level=steps,
                denoise=denoise,
                return_info=True,
            )
        )
        x, info = sampler(start)
        expected_mean = np.asarray((-centre) @ basis)  # of x - m
        variance = np.full(dimension, 9.0)
        ladder = ladder.astype(np.float64)
        for level, sigma in enumerate(ladder):
            half = epsilon * (sigma / ladder[-1]) ** 2 / 2
            decay = 1 - half / (eigenvalues + sigma**2)
            for _ in range(steps):
                expected_mean, variance = decay * expected_mean, decay**2 * variance + 2 * half
            check_moments(info.samples[level], centre, basis, expected_mean, variance)
        if denoise:
            last = 1 - ladder[-1] ** 2 / (eigenvalues + ladder[-1] ** 2)
            check_moments(x, centre, basis, last * expected_mean, last**2 * variance)


def check_moments(samples, centre, basis, mean, variance):
    """Checks that whitened samples have mean 0 and covariance I, entry by entry and as a whole."""
    n, dimension = samples.shape
    white = ((np.asarray(samples, np.float64) - centre) @ basis - mean) / np.sqrt(variance)
    # The largest of 64 means and 2,080 covariances exceeds 5 standard errors once in 800 times.
    assert np.abs(white.mean(axis=0)).max() < 5 / np.sqrt(n)
    covariance = white.T @ white / n - np.eye(dimension)
    assert np.abs(np.diag(covariance)).max() < 5 * np.sqrt(2 / n)
    assert np.abs(covariance[np.triu_indices(dimension, 1)]).max() < 5.5 / np.sqrt(n)
    # The squared norm of all samples: n D numbers with variance 2.
    assert abs(np.mean(white**2) - 1) < 5 * np.sqrt(2 / (n * dimension))


def test_successive_parts_match_one_chain():
    ladder = sigmas.geometric(2.0, 0.1, 4)
    x = jax.random.normal(jax.random.key(0), (5, 2))
    traces = []

    @jax.jit
    def part(x, start, stop):
        traces.append(1)
        return annealed_langevin(
            jax.random.key(1),
            MIXTURE.score,
            x,
            ladder,
            epsilon=1e-2,
            steps_per_level=5,
            denoise=True,
            steps=(start, stop),
        )

    whole = jax.jit(
        lambda x: annealed_langevin(
            jax.random.key(1),
            MIXTURE.score,
            x,
            ladder,
            epsilon=1e-2,
            steps_per_level=5,
            denoise=True,
        )
    )(x)
    for bounds in ([0, 21], [0, 1, 2, 20, 21], [0, 7, 7, 13, 21]):
        parts = x
        for start, stop in itertools.pairwise(bounds):
            parts = part(parts, start, stop)
        # The compiler may fuse the two programs differently, which costs a few units in the last place.
        np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("count", [1, 3, 7, 20])
def test_frames_are_evenly_spaced_and_end_with_the_last_update(count):
    ladder = sigmas.geometric(2.0, 0.1, 4)
    x = jax.random.normal(jax.random.key(0), (3, 2))

    def run(frames):
        return annealed_langevin(
            jax.random.key(1),
            MIXTURE.score,
            x,
            ladder,
            epsilon=1e-2,
            steps_per_level=5,
            return_info=True,
            num_frames=frames,
        )

    x_all, every = run(20)
    x_few, few = run(count)
    np.testing.assert_array_equal(x_all, x_few)
    kept = [int(np.ceil(20 * (i + 1) / count)) - 1 for i in range(count)]
    assert kept[-1] == 19 and max(np.diff([-1, *kept])) - min(np.diff([-1, *kept])) <= 1
    np.testing.assert_array_equal(few.samples, every.samples[np.array(kept)])
    assert few.score_norm.shape == (4, 5)


def test_memory_does_not_grow_with_the_number_of_steps():
    """Only the table of steps grows, by five numbers per step."""
    ladder = sigmas.geometric(2.0, 0.1, 4)
    x = jnp.zeros((100, 64))

    def temporary(steps_per_level):
        sampler = jax.jit(
            lambda key, x: annealed_langevin(
                key, lambda x, s: -x, x, ladder, steps_per_level=steps_per_level
            )
        )
        return sampler.lower(jax.random.key(0), x).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(10), temporary(1000)
    assert many - few <= 4 * 990 * 5 * 8 and few > 0


def test_frame_stops_are_evenly_spaced_and_include_the_end():
    from ncsn_jax.sampling._loop import frame_stops

    for total in range(1, 200):
        for count in range(1, total + 1):
            stops = frame_stops(total, count)
            assert stops[-1] == total and stops[0] >= 1
            gaps = np.diff([0, *stops])
            assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_static_parts_and_info_are_differentiable():
    """This includes the norm of a zero score, and the denoising, which has no noise."""
    ladder = sigmas.geometric(2.0, 0.1, 4)
    options = {"epsilon": 1e-2, "steps_per_level": 5, "denoise": True}

    def part(scale):
        score = lambda x, sigma: -scale * x
        x = jnp.ones((2, 3))
        return annealed_langevin(jax.random.key(1), score, x, ladder, steps=(3, 9), **options).sum()

    derivative = jax.jit(jax.grad(part))(0.5)
    expected = (part(0.5 + 1e-2) - part(0.5 - 1e-2)) / 2e-2
    assert float(derivative) == pytest.approx(float(expected), rel=1e-2)

    def information(scale):
        _, info = annealed_langevin(
            jax.random.key(1),
            lambda x, sigma: scale * jnp.zeros_like(x),
            jnp.ones((2, 3)),
            ladder,
            return_info=True,
            **options,
        )
        return info.signal_to_noise.sum() + info.score_norm.sum()

    assert np.isfinite(jax.grad(information)(1.0))


@pytest.mark.parametrize("steps", [(5, 2), (0, 2.5), (-1, 3), (0, 22), (0, 1, 2), (0,)])
def test_invalid_steps_are_rejected(steps):
    with pytest.raises(
        ValueError, match=r"steps must be \(start, stop\), 0 <= start <= stop <= 21, got"
    ):
        annealed_langevin(
            jax.random.key(0),
            lambda x, s: -x,
            jnp.ones((1, 1)),
            sigmas.geometric(2.0, 0.1, 4),
            steps_per_level=5,
            denoise=True,
            steps=steps,
        )


def test_constrain_replaces_x_before_the_score_and_after_the_update_of_every_step():
    """Sets x to the level's sigma before the score, which sees it, and to 10 + index after the update."""
    seen = []

    def score(x, sigma):
        jax.debug.callback(lambda x, s: seen.append((x[0, 0], s[0])), x, sigma, ordered=True)
        return -x

    def constrain(x, step, updated):
        return jnp.full_like(x, 10.0) + step.index if updated else jnp.full_like(x, step.sigma)

    ladder = sigmas.geometric(1.0, 0.25, 3)
    options = {"steps_per_level": 2, "denoise": True, "return_info": True}
    x, info = annealed_langevin(
        jax.random.key(0), score, jnp.zeros((2, 3)), ladder, constrain=constrain, **options
    )
    jax.effects_barrier()
    expected = [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25]
    np.testing.assert_allclose(seen, np.stack([expected, expected], axis=1), rtol=1e-6)
    np.testing.assert_array_equal(info.samples[:, 0, 0], [11.0, 13.0, 15.0])
    np.testing.assert_array_equal(x, np.full((2, 3), 16.0))
