import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import sigmas
from ncsn_jax.sampling import annealed_langevin, inpaint
from tests.models.comparison import nhwc

LADDER = sigmas.geometric(1.0, 0.1, 3)
SETTINGS = {"epsilon": 2e-3, "steps_per_level": 4}


def score(x, sigma):
    return (0.5 - x) / (0.04 + jnp.square(sigma).reshape(-1, *(1,) * (x.ndim - 1)))


def test_every_state_matches_algorithm_2(golden, stored_noise):
    """Takes two steps at each of three levels; each draws the step's noise, then the level's."""
    g = golden("ald")
    steps, levels = nhwc_steps(g["in/alg2/noise_step"]), [nhwc(a) for a in g["in/alg2/noise_y"]]
    stored_noise([z for k in range(6) for z in (steps[k], levels[k // 2])])
    x, info = inpaint(
        jax.random.key(0),
        score,
        jnp.asarray(nhwc(g["in/alg2/x0"])),
        jnp.asarray(g["in/inpaint/sigmas"]),
        nhwc(g["in/alg2/refer"]),
        nhwc(g["in/alg2/mask"]),
        epsilon=0.002,
        steps_per_level=2,
        return_info=True,
        num_frames=6,
    )
    expected = np.stack([nhwc(a) for a in g["out/alg2/x"]])
    np.testing.assert_allclose(info.samples, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(x, info.samples[-1])


@pytest.mark.parametrize("scheme", ["ncsn", "ncsnv2"])
def test_every_state_matches_the_authors_schemes(golden, stored_noise, scheme):
    """Their left half is observed. Their states are the inputs of the score and the final x."""
    g = golden("ald")
    stored = g["in/inpaint/noise_half" + ("_v2" if scheme == "ncsnv2" else "")]
    half = stored.reshape(-1, *stored.shape[-4:])
    half = np.concatenate([half, np.zeros_like(half)], axis=-1)
    half = [nhwc(a) for a in half]
    steps = nhwc_steps(g["in/inpaint/noise_step"])
    stored_noise(
        [
            z
            for k, step in enumerate(steps)
            for z in ((half[k], step) if scheme == "ncsnv2" else (half[k // 2], step, half[k // 2]))
        ]
    )
    given = []

    def recording_score(x, sigma):
        jax.debug.callback(lambda x: given.append(np.array(x)), x, ordered=True)
        return score(x, sigma)

    mask = np.zeros((1, 1, 32, 1))
    mask[:, :, :16] = 1
    x = inpaint(
        jax.random.key(0),
        recording_score,
        jnp.asarray(nhwc(g["in/inpaint/x0"][0])),
        jnp.asarray(g["in/inpaint/sigmas"]),
        nhwc(g["in/inpaint/refer"]),
        mask,
        epsilon=2 * 0.002,  # in their convention
        steps_per_level=2,
        scheme=scheme,
    )
    jax.effects_barrier()
    name = {"ncsn": "ermongroup", "ncsnv2": "ncsnv2"}[scheme]
    expected = np.stack([nhwc(a) for a in g[f"out/inpaint/{name}/x"]])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.stack([*given, x]), expected, atol=1e-5 * scale)


def nhwc_steps(noise):
    """Flattens [levels, steps, ...] to one list of steps, channels last."""
    flat = noise.reshape(-1, *noise.shape[2:])
    return np.stack([nhwc(a) for a in flat])


@pytest.mark.parametrize("scheme", ["paper", "ncsn", "ncsnv2"])
@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 4, 3)])
def test_hidden_values_are_ignored(scheme, shape):
    """Hidden values include infinities and NaN, under random masks."""
    rng = np.random.default_rng(len(shape))
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    mask = rng.random(shape) < 0.5
    run = jax.jit(
        lambda observed: inpaint(
            jax.random.key(1), score, x, LADDER, observed, mask, scheme=scheme, **SETTINGS
        )
    )
    observed = rng.random(shape)
    results = [run(jnp.where(mask, observed, hidden)) for hidden in (0.0, -3.7, np.inf, np.nan)]
    assert np.isfinite(results[0]).all()
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("denoise", [False, True])
@pytest.mark.parametrize("scheme", ["paper", "ncsn", "ncsnv2"])
def test_keep_observed_keeps_the_observed_values_exactly(scheme, denoise):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    observed = jnp.asarray(rng.random((1, 6)), jnp.float32)
    mask = jnp.asarray([[1, 1, 0, 0, 1, 0]])

    def run(keep):
        return np.asarray(
            inpaint(
                jax.random.key(1),
                score,
                x,
                LADDER,
                observed,
                mask,
                scheme=scheme,
                denoise=denoise,
                keep_observed=keep,
                **SETTINGS,
            )
        )

    kept, free = run(True), run(False)
    known = np.broadcast_to(np.asarray(mask, bool), x.shape)
    np.testing.assert_array_equal(kept[known], np.broadcast_to(observed, x.shape)[known])
    np.testing.assert_array_equal(kept[~known], free[~known])
    assert not np.any(free[known] == kept[known])


def test_empty_mask_matches_annealed_langevin_and_each_level_draws_new_noise():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 300)), jnp.float32)
    plain = annealed_langevin(jax.random.key(1), score, x, LADDER, **SETTINGS)
    found = inpaint(jax.random.key(1), score, x, LADDER, x, jnp.zeros((1, 1)), **SETTINGS)
    np.testing.assert_array_equal(found, plain)

    _, info = inpaint(
        jax.random.key(1), score, x, LADDER, x, jnp.ones((1, 1)), return_info=True, **SETTINGS
    )
    noise = (np.asarray(info.samples) - np.asarray(x)) / np.asarray(LADDER)[:, None, None]
    correlation = np.corrcoef(noise.reshape(3, -1))
    # Each has 600 numbers, with standard errors of 1 / sqrt(600).
    assert np.abs(correlation - np.eye(3)).max() < 5 / np.sqrt(600)
    assert np.abs(noise.std(axis=(1, 2)) - 1).max() < 5 / np.sqrt(1200)


def test_completions_have_the_conditional_mean():
    """Of two correlated normal numbers, one is observed; the mean of the other is rho times it.

    Algorithm 2 keeps noise on the observed number, which shrinks the mean at the last level to
    rho v / (1 + sigma^2), by a quarter of a per cent for sigma = 0.05.
    """
    rho, n, value = 0.8, 3000, 1.5
    precision = lambda sigma: jnp.linalg.inv(
        jnp.asarray([[1, rho], [rho, 1]]) + jnp.square(sigma) * jnp.eye(2)
    )
    correlated = lambda x, sigma: -x @ precision(sigma[0])
    ladder = sigmas.geometric(3.0, 0.05, 12)
    x = inpaint(
        jax.random.key(0),
        correlated,
        jax.random.normal(jax.random.key(1), (n, 2)),
        ladder,
        jnp.asarray([[value, 0.0]]),
        jnp.asarray([[1, 0]]),
        epsilon=4e-4,
        steps_per_level=100,
    )
    hidden = np.asarray(x)[:, 1]
    deviation = np.sqrt(1 - rho**2)
    assert abs(hidden.mean() - rho * value) < 4 * deviation / np.sqrt(n) + 0.01 * rho * value
    assert abs(hidden.std() / deviation - 1) < 4 / np.sqrt(2 * n) + 0.02


@pytest.mark.parametrize("scheme", ["paper", "ncsn", "ncsnv2"])
def test_successive_parts_match_one_run_and_examples_do_not_depend_on_the_batch(scheme):
    rng = np.random.default_rng(0)
    x, observed = (jnp.asarray(rng.normal(size=(6, 4)), jnp.float32) for _ in range(2))
    mask = jnp.asarray(rng.random((6, 4)) < 0.5)
    keys = jax.random.split(jax.random.key(1), 6)

    @jax.jit
    def run(rows, keys, x, start, stop):
        return inpaint(
            keys,
            score,
            x,
            LADDER,
            observed[rows],
            mask[rows],
            scheme=scheme,
            denoise=True,
            keep_observed=True,
            steps=(start, stop),
            **SETTINGS,
        )

    rows = jnp.arange(6)
    whole = run(rows, keys, x, 0, 13)
    parts = run(rows, keys, run(rows, keys, run(rows, keys, x, 0, 3), 3, 4), 4, 13)
    np.testing.assert_array_equal(parts, whole)
    some = jnp.asarray([4, 1])
    np.testing.assert_allclose(run(some, keys[some], x[some], 0, 13), whole[some], rtol=1e-5)


def test_derivatives_under_vmap_match_finite_differences():
    def run(key, scale):
        x = jnp.ones((3, 4))
        mask = jnp.asarray([[1, 0, 0, 1]])
        scaled = lambda x, sigma: scale * score(x, sigma)
        return inpaint(key, scaled, x, LADDER, 2 * x, mask, **SETTINGS).sum()

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(jax.grad(run, argnums=1), in_axes=(0, None)))(keys, 1.0)
    difference = (run(keys[1], 1.01) - run(keys[1], 0.99)) / 0.02
    assert float(together[1]) == pytest.approx(float(difference), rel=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": jnp.full((2, 5), 0.5)}, "mask must contain only 1 or True"),
        ({"mask": jnp.full((2, 5), 255)}, "mask must contain only 1 or True"),
        ({"x": jnp.zeros((2, 5), int)}, "x must be floating point, got int32"),
        (
            {"mask": jnp.ones((3, 5))},
            r"mask must .* broadcast to its shape, \(2, 5\), got \(3, 5\)",
        ),
        ({"mask": jnp.ones(5)}, r"mask must .* broadcast to its shape, \(2, 5\), got \(5,\)"),
        (
            {"observed": jnp.ones((2, 4))},
            r"observed must .* broadcast to its shape, .* got \(2, 4\)",
        ),
        ({"scheme": "v3"}, r"scheme must be one of \['paper', 'ncsn', 'ncsnv2'\], got 'v3'"),
        ({"sigmas": jnp.asarray([0.1, 1.0])}, "must be positive and strictly decreasing"),
        ({"num_frames": 3}, "num_frames needs return_info=True"),
        (
            {"num_frames": 13, "return_info": True},
            "num_frames must be an integer from 1 to 12, got 13",
        ),
        ({"steps": (0, 3), "return_info": True}, "steps cannot be combined with return_info"),
    ],
)
def test_invalid_arguments_are_rejected(change, message):
    arguments = {
        "x": jnp.zeros((2, 5)),
        "sigmas": LADDER,
        "observed": jnp.zeros((2, 5)),
        "mask": jnp.ones((2, 5)),
    }
    with pytest.raises(ValueError, match=message):
        inpaint(jax.random.key(0), score, **arguments | SETTINGS | change)


@pytest.mark.parametrize(("scheme", "groups"), [("paper", 3), ("ncsn", 3), ("ncsnv2", 12)])
def test_observed_part_has_new_noise_per_level_or_per_step_in_ncsnv2(scheme, groups):
    """Everything is observed, and read after the update or, for ncsnv2, by the score."""
    given = []

    def recording(x, sigma):
        jax.debug.callback(lambda x: given.append(np.array(x)), x, ordered=True)
        return score(x, sigma)

    x, mask = jnp.zeros((2, 50)), jnp.ones((1, 1))
    _, info = inpaint(
        jax.random.key(1),
        recording,
        x,
        LADDER,
        x,
        mask,
        scheme=scheme,
        return_info=True,
        num_frames=12,
        **SETTINGS,
    )
    jax.effects_barrier()
    imposed = np.stack(given) if scheme == "ncsnv2" else np.asarray(info.samples)
    noise = imposed / np.repeat(np.asarray(LADDER), 4)[:, None, None]
    apart = np.abs(noise[:, None] - noise[None]).max(axis=(2, 3))
    group = np.arange(12) // (12 // groups)
    np.testing.assert_array_equal(apart < 1e-5, group[:, None] == group[None])
