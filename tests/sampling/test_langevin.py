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
    """NCSN, section 4.3. Three standard errors of a share of 1/5 among 10,000 are 0.012."""
    ladder = sigmas.geometric(10.0, 0.1, num_levels)
    sampler = jax.jit(lambda k, x: annealed_langevin(k, MIXTURE.score, x, ladder, epsilon=2e-3))
    x = sampler(jax.random.key(0), uniform_start(jax.random.key(1)))
    assert low < share_of_small_mode(x) < high
    # Within each mode the samples have the spread of the component: the last level has almost
    # reached it, and the discrete chain is wider by less than a fifth.
    for sign in (-1, 1):
        mode = np.asarray(x)[np.sign(np.asarray(x)[:, 0]) == sign]
        assert np.all(np.abs(mode.mean(0) - 5 * sign) < 0.3)


def test_plain_langevin_does_not():
    sampler = jax.jit(
        lambda k, x: langevin(k, lambda x: MIXTURE.score(x, 0.0), x, step_size=0.1, num_steps=1000)
    )
    x = sampler(jax.random.key(0), uniform_start(jax.random.key(1)))
    assert 0.45 < share_of_small_mode(x) < 0.55


def gaussian_recursion(mean, variance, drift, noise, precision):
    """One step x + drift * (-x * precision) + noise z, applied to a mean and a variance."""
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
    """Data N(0, 1): the map of every step is linear, so that mean and variance are known exactly."""
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
def test_steps_are_the_originals(golden, monkeypatch, convention):
    """Every state of the originals' chains, with their noise: the factor 2 between conventions too."""
    import importlib

    implementation = importlib.import_module("ncsn_jax.sampling.langevin")
    g = golden("ald")
    noise = jnp.asarray(g["in/gmm/noise"]).reshape(20, 6, 2)
    monkeypatch.setattr(implementation, "fold_in", lambda key, index: index)
    monkeypatch.setattr(
        implementation, "normal_like", lambda index, x: noise[jnp.minimum(index, 19)]
    )
    # The stored step_lr of 0.1 is in the originals' convention; the paper's takes it as epsilon.
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
    )
    states = g[f"out/gmm/{convention}/x"][-20:]
    scale = np.abs(states).max()
    np.testing.assert_allclose(info.samples, states[4::5], atol=1e-5 * scale)
    if convention == "ncsnv2":
        np.testing.assert_allclose(x, g["out/gmm/ncsnv2/denoised"], atol=1e-5 * scale)


def test_info_is_what_the_steps_were():
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


def test_one_key_per_example_makes_chains_independent_of_their_batch():
    keys = jax.random.split(jax.random.key(0), 6)
    ladder = sigmas.geometric(1.0, 0.1, 3)

    def sample(keys):
        x = initial_samples(keys, (len(keys), 2))
        return annealed_langevin(keys, MIXTURE.score, x, ladder, epsilon=1e-2, steps_per_level=5)

    np.testing.assert_allclose(sample(keys)[2:5], sample(keys[2:5]), rtol=1e-6)


def test_network_occurs_once_in_the_program():
    calls = []

    def score(x, sigma):
        calls.append(x.shape)
        return jnp.cbrt(x)

    ladder = sigmas.geometric(1.0, 0.1, 7)
    jaxpr = jax.make_jaxpr(
        lambda k, x: annealed_langevin(k, score, x, ladder, steps_per_level=9, denoise=True)
    )(jax.random.key(0), jnp.zeros((2, 3)))
    assert str(jaxpr).count("cbrt") == 1 and len(calls) == 1


def test_clip_holds_after_every_step_and_types_are_kept():
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


def test_works_under_vmap_grad_and_with_traced_step_size():
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


def test_initial_samples_have_their_distributions():
    shape = (2000, 2, 2, 3)
    uniform = np.asarray(initial_samples(jax.random.key(0), shape))
    assert uniform.min() >= 0 and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 4 * np.sqrt(1 / 12 / uniform.size)
    normal = np.asarray(initial_samples(jax.random.key(0), shape, "normal", scale=3.0))
    assert abs(normal.mean()) < 4 * 3 / np.sqrt(normal.size)
    assert abs(normal.var() / 9 - 1) < 4 * np.sqrt(2 / normal.size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": [0.1, 1.0]}, "sigmas must be positive and decrease"),
        ({"sigmas": [[1.0, 0.1]]}, r"sigmas must have shape \[L\]"),
        ({"epsilon": 0.0}, "epsilon must be one number > 0, got 0.0"),
        ({"epsilon": float("nan")}, "epsilon must be one number > 0, got nan"),
        ({"steps_per_level": 0}, "steps_per_level must be an integer >= 1, got 0"),
        ({"steps_per_level": 1.5}, "steps_per_level must be an integer >= 1, got 1.5"),
        ({"clip": (1.0, 0.0)}, r"clip must be None or \(low, high\)"),
    ],
)
def test_refuses_wrong_arguments(change, message):
    options = {"sigmas": [1.0, 0.1], "epsilon": 1e-3, "steps_per_level": 2} | change
    ladder = jnp.asarray(options.pop("sigmas"))
    with pytest.raises(ValueError, match=message):
        annealed_langevin(jax.random.key(0), MIXTURE.score, jnp.zeros((2, 2)), ladder, **options)


def test_refuses_a_score_of_another_shape_and_an_unknown_start():
    with pytest.raises(
        ValueError, match=r"score_fn must return the shape of x, \(2, 2\), got \(2,\)"
    ):
        langevin(
            jax.random.key(0), lambda x: x[:, 0], jnp.zeros((2, 2)), step_size=1.0, num_steps=1
        )
    with pytest.raises(ValueError, match="init must be 'uniform', .*, got 'gauss'"):
        initial_samples(jax.random.key(0), (1, 2), "gauss")
