import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax.scores import gaussian_mixture

MIXTURE = gaussian_mixture([[-1.0, 0.5], [2.0, 1.0], [0.0, -3.0]], [0.5, 1.0, 2.0], [1.0, 2.0, 5.0])


def test_score_is_the_gradient_of_the_log_density():
    x = 3.0 * jax.random.normal(jax.random.key(0), (20, 2))
    sigma = jnp.linspace(0.0, 3.0, 20)
    gradient = jax.vmap(jax.grad(lambda x, s: MIXTURE.log_prob(x[None], s[None])[0]))
    gradient = jax.jit(gradient)(x, sigma)
    np.testing.assert_allclose(MIXTURE.score(x, sigma), gradient, atol=1e-5)


def test_density_integrates_to_one():
    side = jnp.linspace(-15.0, 15.0, 301)
    points = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    density = jnp.exp(MIXTURE.log_prob(points, jnp.asarray(0.3)))
    assert float(jnp.sum(density)) * 0.1**2 == pytest.approx(1.0, abs=1e-4)


def test_samples_have_the_moments_of_the_mixture():
    n = 20_000
    x = np.asarray(MIXTURE.sample(jax.random.key(1), n))
    weights = np.array([1, 2, 5]) / 8
    means, stds = np.asarray(MIXTURE.means), np.asarray(MIXTURE.stds)
    mean = weights @ means
    variance = weights @ (stds[:, None] ** 2 + means**2) - mean**2
    assert np.all(np.abs(x.mean(0) - mean) < 4 * np.sqrt(variance / n))
    # The kurtosis of this mixture is below 4, so the variance's relative error is below sqrt(3 / n).
    assert np.all(np.abs(x.var(0) / variance - 1) < 4 * np.sqrt(3 / n))


def test_traced_mixture_has_the_same_score():
    x = jnp.ones((4, 2))
    score = jax.jit(lambda mixture, x: mixture.score(x, jnp.ones(4)))(MIXTURE, x)
    np.testing.assert_allclose(score, MIXTURE.score(x, 1.0), rtol=1e-6)


def test_mismatched_shapes_are_rejected():
    with pytest.raises(ValueError, match=r"got \(2, 2\), \(1,\) and \(2,\)"):
        gaussian_mixture([[0.0, 0.0], [1.0, 1.0]], [1.0], [0.5, 0.5])


@pytest.mark.parametrize(
    "arguments",
    [
        ([[float("nan")]], [1.0], [1.0]),
        ([[0.0]], [-1.0], [1.0]),
        ([[0.0]], [1.0], [0.0]),
    ],
)
def test_values_out_of_range_are_rejected(arguments):
    with pytest.raises(ValueError, match="must be finite, with stds >= 0 and weights > 0"):
        gaussian_mixture(*arguments)
    jax.jit(lambda: gaussian_mixture([[0.0]], [1.0], [1.0]).weights)()
    jax.jit(lambda a: gaussian_mixture(*a).weights)([jnp.asarray(a) for a in arguments])
