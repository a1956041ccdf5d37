import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import scores
from ncsn_jax._random import fold_in
from ncsn_jax.sampling import annealed_langevin
from ncsn_jax.scheduler import AnnealedLangevinDynamicsScheduler as Scheduler

CTOR0, CTOR1, CTOR2 = (10, 100, 0.005, 10, 1e-5), (10, 100, 0.01, 1, 2e-5), (5, 3, 0.1, 20.0, 0.01)
SETS = {
    "ctor0": lambda: Scheduler(*CTOR0),
    "ctor1": lambda: Scheduler(*CTOR1),
    "ctor2": lambda: Scheduler(*CTOR2),
    "set_timesteps": lambda: Scheduler(*CTOR0).set_timesteps(7),
    "set_timesteps_eps": lambda: Scheduler(*CTOR0).set_timesteps(7, sampling_eps=1e-3),
    "set_sigmas": lambda: Scheduler(*CTOR0).set_sigmas(6),
    "set_sigmas_over": lambda: Scheduler(*CTOR0).set_sigmas(
        4, sigma_min=0.1, sigma_max=2.0, sampling_eps=3e-4
    ),
    "set_sigmas_over_forget": lambda: Scheduler(*CTOR0).set_sigmas(4, sigma_min=0.1).set_sigmas(5),
    "both": lambda: Scheduler(*CTOR0).set_timesteps(5).set_sigmas(5),
    "one_level": lambda: Scheduler(1, 100, 0.01, 1, 2e-5),
}


@pytest.mark.parametrize("name", SETS)
def test_schedule_matches_the_original(golden, name):
    g = golden("scheduler")
    scheduler = SETS[name]()
    np.testing.assert_array_equal(scheduler.timesteps, g[f"out/{name}/timesteps"])
    # The original's float32 logarithm and exponential cost a few units in the last place.
    np.testing.assert_allclose(scheduler.sigmas, g[f"out/{name}/sigmas"], rtol=2e-6)
    np.testing.assert_allclose(scheduler.step_size, g[f"out/{name}/step_size"], rtol=6e-6)


def test_add_noise_and_step_match_the_original(golden, stored_noise):
    g = golden("scheduler")
    scheduler = Scheduler(*CTOR1)
    noisy = scheduler.add_noise(g["in/add_noise/x"], g["in/add_noise/noise"], g["in/add_noise/t"])
    np.testing.assert_allclose(noisy, g["out/add_noise"], rtol=1e-5, atol=1e-6)

    stored_noise(
        [*3 * [g["in/step/noise"]], *g["in/loop/noise"].reshape(-1, *g["in/loop/x0"].shape)]
    )
    x, score = jnp.asarray(g["in/step/x"]), jnp.asarray(g["in/step/score"])
    for t in (0, 4, 9):
        found = scheduler.step(jax.random.key(0), score, t, x)
        np.testing.assert_allclose(found.prev_sample, g[f"out/step/{t}"], rtol=1e-5, atol=1e-5)

    scheduler, x = Scheduler(*CTOR2), jnp.asarray(g["in/loop/x0"])
    k = 0
    for t in scheduler.timesteps:
        for _ in range(scheduler.num_annealed_steps):
            score = (0.5 - x) / (0.04 + scheduler.sigmas[t] ** 2)
            x = scheduler.step(jax.random.key(0), score, t, x).prev_sample
            scale = np.abs(g["out/loop/x"][k]).max()
            np.testing.assert_allclose(x, g["out/loop/x"][k], atol=1e-5 * scale)
            k += 1


@pytest.mark.parametrize("per_example", [False, True])
def test_compiled_loop_matches_annealed_langevin_bit_for_bit(per_example):
    mixture = scores.gaussian_mixture([[-5.0, -5.0], [5.0, 5.0]], [1.0, 1.0], [0.2, 0.8])
    scheduler = Scheduler(*CTOR2)
    key, x = jax.random.key(1), jax.random.normal(jax.random.key(0), (7, 2))
    key = jax.random.split(key, 7) if per_example else key

    @jax.jit
    def loop(scheduler, key, x):
        def step(carry, t):
            x, k = carry
            score = mixture.score(x, jnp.broadcast_to(scheduler.sigmas[t], (7,)))
            step_key = fold_in(key, k)
            return (scheduler.step(step_key, score, t, x).prev_sample, k + 1), None

        levels = jnp.repeat(scheduler.timesteps, 3)
        return jax.lax.scan(step, (x, 0), levels)[0][0]

    whole = jax.jit(
        lambda key, x: annealed_langevin(
            key, mixture.score, x, scheduler.sigmas, epsilon=0.01, steps_per_level=3
        )
    )
    np.testing.assert_array_equal(loop(scheduler, key, x), whole(key, x))


def test_scheduler_is_an_immutable_pytree():
    scheduler = Scheduler(*CTOR0)
    with pytest.raises(AttributeError):
        scheduler.sigmas = 1
    assert scheduler.set_sigmas(3).sigmas.shape == (3,) and scheduler.sigmas.shape == (10,)
    same = jax.tree.map(lambda a: a, scheduler)
    assert same.num_annealed_steps == 100 and same.sampling_eps == 1e-5
    x = jnp.ones((4, 2, 3))
    keys = jax.random.split(jax.random.key(0), 4)
    step = lambda key, t, x: scheduler.step(key, -x, t, x).prev_sample
    mapped = jax.jit(jax.vmap(step))(keys, jnp.arange(4), x)
    np.testing.assert_allclose(mapped[2], step(keys[2], 2, x[2]), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Scheduler(0, 3, 0.1, 1.0, 0.01),
            "num_train_timesteps must be an integer from 1 to",
        ),
        (
            lambda: Scheduler(5, 0, 0.1, 1.0, 0.01),
            "num_annealed_steps must be an integer from 1 to",
        ),
        (lambda: Scheduler(5, 3, 1.0, 0.1, 0.01), "sigma_max > sigma_min > 0, got"),
        (
            lambda: Scheduler(1, 3, 1.0, 0.1, 0.01),
            "sigma_max >= sigma_min > 0, got sigma_max=0.1",
        ),
        (lambda: Scheduler(5, 3, 0.1, 1.0, 0.0), "sampling_eps must be a finite number > 0, got 0"),
        (lambda: Scheduler(*CTOR0).set_sigmas(4, sigma_min=0.0), "sigma_min > 0, got"),
        (lambda: Scheduler(*CTOR0).set_timesteps(-1), "num_inference_steps must be an integer"),
        (
            lambda: Scheduler(*CTOR0).step(
                jax.random.key(0), jnp.ones((4, 1)), 10, jnp.ones((4, 1))
            ),
            "timestep must be an integer from 0 to 9, got 10",
        ),
        (
            lambda: Scheduler(*CTOR0).step(jax.random.key(0), jnp.ones(()), 0, jnp.ones(())),
            r"sample must be an array \[B, ...\]",
        ),
        (
            lambda: Scheduler(*CTOR0).add_noise(jnp.ones((2, 1)), jnp.ones((2, 1)), jnp.ones(2)),
            r"timesteps must be integers of shape \(2,\) from 0 to 9, got Array",
        ),
        (
            lambda: Scheduler(*CTOR0).add_noise(jnp.ones((2, 1)), jnp.ones(2), jnp.ones(2, int)),
            r"noise must have shape \(2, 1\), got \(2,\)",
        ),
        (
            lambda: Scheduler(*CTOR0).add_noise(jnp.ones((1, 1)), jnp.ones((1, 1)), [10**18]),
            r"timesteps must be integers of shape \(1,\) from 0 to 9, got \[1000",
        ),
        (lambda: Scheduler(5, 3, "x", 1.0, 1e-5), "sigma_min must be a number, got 'x'"),
        (lambda: Scheduler(5, 3, 0.1, 10**400, 1e-5), ">= sigma_max > sigma_min > 0"),
        (lambda: Scheduler(5, 3, 0.1, 1.0, 1e39), r"sampling_eps must be a finite number > 0"),
        (
            lambda: Scheduler(*CTOR0).set_timesteps(10**18),
            "num_inference_steps must be an integer from 1 to",
        ),
        (
            lambda: Scheduler(*CTOR0).step(
                jax.random.split(jax.random.key(0), 3), jnp.ones((4, 1)), 0, jnp.ones((4, 1))
            ),
            r"key must have shape \(\) or \(4,\), got \(3,\)",
        ),
        (lambda: Scheduler(5, 3, 0.1, float("inf"), 0.01), ">= sigma_max > sigma_min > 0"),
        (
            lambda: Scheduler(*CTOR0).step(jax.random.key(0), jnp.ones(3), 0, jnp.ones(4)),
            r"model_output must have shape \(4,\), got \(3,\)",
        ),
    ],
)
def test_invalid_arguments_are_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call()
