"""Predictor-corrector samplers against the authors' values, exact moments and distributions.

The moments of a chain with a linear score are computed without sampling, as linear maps of unit noises.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ncsn_jax import scores, sde
from ncsn_jax._random import expand
from ncsn_jax.sampling import _predictor_corrector as pc

SDES = {
    "ve": sde.VE(0.01, 50.0),
    "vp": sde.VP(0.1, 20.0),
    "subvp": sde.SubVP(0.1, 20.0),
}


def network(x, label):
    """The network behind the authors' stored values."""
    return -0.7 * x + 0.2 * jnp.sin(3 * x) + 0.01 * expand(label, x) * jnp.cos(x)


def score_of(name, process):
    """Returns the score of that network, with the labels of continuous time."""

    def score(x, t):
        std = process.std(t)
        return network(x, std) if name == "ve" else -network(x, 999 * t) / expand(std, x)

    return score


def assert_close_per_sample(found, expected, tolerance):
    scale = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(found / scale, expected / scale, atol=tolerance)


@pytest.mark.parametrize("name", list(SDES))
def test_scores_and_reverse_drifts_match_the_authors(name, golden):
    """A reverse drift is x minus the mean of a predictor's step, per step."""
    figures, process = golden("sde"), SDES[name]
    x, t = (jnp.asarray(figures[f"in/{n}"]) for n in ("x", "t"))
    score = score_of(name, process)
    expected = lambda field: figures[f"out/{name}/{field}"]
    # The authors divide by 1 - exp(-B), which loses three digits at t = 0.03.
    assert_close_per_sample(score(x, t), expected("score_cont"), 1e-5)

    moved = lambda predictor, steps: np.asarray(
        x - pc.PREDICTORS[predictor](process, score, x, t, steps, 0.0)[1]
    )
    drift = moved("euler_maruyama", 1)
    # x - (x - f) equals f to the rounding of x, which is at most 40 times f.
    for found, field in (
        (drift, "rev_drift"),
        ((drift + np.asarray(process.drift(x, t))) / 2, "ode_drift"),
        (moved("reverse_diffusion", 100), "rev_disc_f"),
        (moved("probability_flow", 100), "ode_disc_f"),
    ):
        difference = np.abs(found - expected(field)).max(axis=(1, 2, 3))
        size = np.abs(expected(field)).max(axis=(1, 2, 3))
        assert (difference < 2e-5 * size + 1.2e-7 * np.abs(x).max(axis=(1, 2, 3))).all(), field


@pytest.mark.parametrize("name", ["ve", "vp"])
def test_scores_of_discrete_networks_match_the_authors(name, golden):
    """Labels count from the largest sigma for SMLD, and are not whole numbers for DDPM."""
    figures, process = golden("sde"), SDES[name]
    x, t = (jnp.asarray(figures[f"in/{n}"]) for n in ("x", "t"))
    if name == "ve":
        found = network(x, jnp.round((1 - t) * 99))
    else:
        std = process.chain(100)[1][jnp.floor(99 * t).astype(int)]
        found = -network(x, 99 * t) / expand(std, x)
    assert_close_per_sample(found, figures[f"out/{name}/score_disc"], 1e-5)


@pytest.mark.parametrize("options", [{}, {"corrector": "langevin", "snr": 0.1}])
def test_wrong_score_shapes_are_rejected(options):
    with pytest.raises(
        ValueError, match=r"score_fn must return the shape of x, \(2, 3\), got \(2,\)"
    ):
        pc.predictor_corrector(
            jax.random.key(0), SDES["ve"], lambda x, t: t, jnp.zeros((2, 3)), num_steps=3, **options
        )


def test_sampler_matches_the_authors(golden, stored_noise):
    figures, process = golden("sde"), sde.VE(0.01, 5.0)
    stored_noise(figures["in/pc/noise"])
    x, info = pc.predictor_corrector(
        jax.random.key(0),
        process,
        score_of("ve", process),
        5.0 * jnp.asarray(figures["in/pc/prior_noise"]),
        corrector="langevin",
        num_steps=4,
        snr=0.16,
        average_step_size=True,
    )
    assert (np.asarray(info.evaluations) == figures["out/pc/nfe"]).all()
    assert_close_per_sample(np.asarray(x), figures["out/pc/x"], 1e-5)


def gaussian_score(process, mean, std):
    def score(x, t):
        alpha = expand(process.alpha(t), x)
        variance = (alpha * std) ** 2 + expand(process.std(t), x) ** 2
        return (alpha * mean - x) / variance

    return score


MEAN, STD, END = 0.6, 0.25, 1e-6


def moments(process, time):
    """Returns the mean and variance of data N(MEAN, STD^2) under the SDE."""
    alpha, std = (float(f(jnp.asarray([time]))[0]) for f in (process.alpha, process.std))
    return alpha * MEAN, (alpha * STD) ** 2 + std**2


def chain_moments(stored_noise, process, num_steps, **options):
    """Returns the exact mean and variance of the samples after all steps but the last.

    The sampler is an affine map of x and the noises. Two samples see no noise and give the map of x; each of
    the others sees one unit of one noise.
    """
    updates = num_steps * (1 if options.get("corrector", "none") == "none" else 2)
    stored_noise(np.pad(np.eye(updates), ((0, 0), (2, 0))))
    start = jnp.zeros((updates + 2, 1)).at[1].set(1.0)
    run = jax.jit(
        lambda x: pc.predictor_corrector(
            jax.random.key(0),
            process,
            gaussian_score(process, MEAN, STD),
            x,
            num_steps=num_steps,
            end=END,
            denoise=False,
            steps=(0, num_steps - 1),
            **options,
        )[0]
    )
    x = np.asarray(run(start))[:, 0]
    offset, (factor, *noises) = x[0], x[1:] - x[0]
    mean, variance = moments(process, 1.0)
    return offset + factor * mean, factor**2 * variance + np.sum(np.square(noises))


@pytest.mark.parametrize(
    ("name", "predictor"),
    [
        *((n, p) for n in SDES for p in ("euler_maruyama", "probability_flow")),
        ("ve", "ancestral"),
        ("vp", "reverse_diffusion"),
        ("vp", "ancestral"),
    ],
)
def test_predictors_are_first_order(name, predictor, stored_noise):
    """Half the step gives half the error of the moments at `end`, in float64 from exact ones at t = 1.

    The observed order is off by about a step: beta / N <= 0.05 or, for VE, whose mean never moves,
    2 log(5000) / N = 0.04.
    """
    with jax.enable_x64(True):
        process = SDES[name]
        expected = np.array(moments(process, END))
        errors = np.array(
            [
                np.abs(chain_moments(stored_noise, process, n, predictor=predictor) - expected)
                for n in (400, 800)
            ]
        )
    assert abs(np.log2(errors[0, 1] / errors[1, 1]) - 1) < 0.1
    if name == "ve":
        assert errors[:, 0].max() < 1e-12
    else:
        assert abs(np.log2(errors[0, 0] / errors[1, 0]) - 1) < 0.1


MIXTURE = scores.gaussian_mixture([[-1.0], [1.5]], [0.3, 0.6], [0.4, 0.6])


def cdf(x):
    return 0.4 * stats.norm.cdf(x, -1.0, 0.3) + 0.6 * stats.norm.cdf(x, 1.5, 0.6)


@pytest.mark.parametrize("name", list(SDES))
def test_samples_of_a_mixture_follow_its_distribution(name):
    """Tests every predictor, and the corrector that suits one dimension, with and without a predictor."""
    process, n = SDES[name], 2000
    score = sde.from_sigma_score(process, MIXTURE.score)
    pairs = [(p, "none") for p in pc.PREDICTORS if (name, p) != ("subvp", "ancestral")]
    if name != "subvp":
        pairs += [("reverse_diffusion", "annealed_langevin")]
    if name == "ve":
        pairs += [("none", "annealed_langevin")]

    @jax.jit
    def run():
        x = process.prior_sample(jax.random.key(0), (n, 1))
        return [
            pc.predictor_corrector(
                jax.random.key(1),
                process,
                score,
                x,
                predictor=predictor,
                corrector=corrector,
                num_steps=300,
                snr=0.3,
                corrector_steps=3 if predictor == "none" else 1,
                end=1e-3,
            )
            for predictor, corrector in pairs
        ]

    for (predictor, corrector), (x, info) in zip(pairs, run(), strict=True):
        each = 3 if predictor == "none" else 1 + (corrector != "none")
        assert (np.asarray(info.evaluations) == 300 * each).all()
        # Kolmogorov's statistic exceeds this with probability 0.001. 300 steps add a tenth of it.
        distance = stats.kstest(np.asarray(x)[:, 0], cdf).statistic
        assert distance < 1.95 / np.sqrt(n), (predictor, corrector)


@pytest.mark.parametrize("name", ["ve", "vp"])
def test_langevin_corrector_keeps_the_distribution(name):
    """Tests many dimensions, where norms are nearly constant.

    The variance is off by r^2 = 0.0025 for finite steps, by 2 / D < 0.008 for varying norms, and by part of
    the predictor's error, which is 0.022 for VE (see the test of orders). The standard error is 0.0125.
    """
    process, n, size = SDES[name], 50, 256
    start = process.prior_sample(jax.random.key(0), (n, size))
    run = jax.jit(
        lambda x: pc.predictor_corrector(
            jax.random.key(1),
            process,
            gaussian_score(process, MEAN, STD),
            x,
            corrector="langevin",
            snr=0.05,
            num_steps=400,
            end=1e-3,
            denoise=False,
        )[0]
    )
    x = np.asarray(run(start))
    error = 1 / np.sqrt(x.size)
    mean, variance = moments(process, 1e-3)
    assert abs(x.mean() - mean) < 4 * error * STD
    assert abs(x.var() / variance - 1) < 4 * np.sqrt(2) * error


def test_successive_parts_match_one_run_and_examples_do_not_depend_on_the_batch():
    """One program runs all parts. Only the last part may return the mean."""
    process = SDES["vp"]
    keys = jax.random.split(jax.random.key(0), 6)
    x = process.prior_sample(jax.random.key(1), (6, 4))

    def constrain(key, x, mean, t):
        return 0.9 * x + expand(0.1 * t, x), 0.9 * mean

    def run(keys, x, steps):
        return pc.predictor_corrector(
            keys,
            process,
            gaussian_score(process, MEAN, STD),
            x,
            corrector="langevin",
            snr=0.1,
            corrector_steps=2,
            num_steps=25,
            constrain=constrain,
            steps=steps,
        )

    part = jax.jit(lambda keys, x, start, stop: run(keys, x, (start, stop)))
    whole, info = part(keys, x, 0, 25)
    assert (np.asarray(info.evaluations) == 75).all()
    found, evaluations = x, 0
    for start, stop in ((0, 7), (7, 7), (7, 24), (24, 25), (25, 25)):
        found, info = part(keys, found, start, stop)
        evaluations += np.asarray(info.evaluations)
    np.testing.assert_array_equal(found, whole)
    assert (evaluations == 75).all()
    others = np.array([4, 1, 4, 4, 0, 5])
    np.testing.assert_array_equal(part(keys[others], x[others], 0, 25)[0], whole[others])
    # The two programs round 75 updates differently.
    tolerance = 75 * 1.2e-7 * np.abs(x).max()
    plain = jax.jit(lambda: run(keys, x, None)[0])()
    np.testing.assert_allclose(plain, whole, atol=tolerance)


def test_constrain_receives_the_time_each_update_leads_to():
    """Correctors stay, predictors go to the next time, and the last one to `end`. All keys differ."""
    given = []

    def constrain(key, x, mean, t):
        record = lambda key, t: given.append((float(t[0]), tuple(np.asarray(key).tolist())))
        jax.debug.callback(record, jax.random.key_data(key), t, ordered=True)
        return x, mean

    pc.predictor_corrector(
        jax.random.key(0),
        SDES["ve"],
        lambda x, t: -x,
        jnp.ones((2, 3)),
        corrector="annealed_langevin",
        snr=0.1,
        corrector_steps=2,
        num_steps=3,
        end=0.5,
        constrain=constrain,
    )
    jax.effects_barrier()
    assert [t for t, _ in given] == [1.0, 1.0, 0.75, 0.75, 0.75, 0.5, 0.5, 0.5, 0.5]
    assert len({key for _, key in given}) == 9


@pytest.mark.parametrize(
    ("name", "predictor"),
    [
        *((n, p) for n in SDES for p in ("euler_maruyama", "reverse_diffusion")),
        ("ve", "ancestral"),
        ("vp", "ancestral"),
    ],
)
def test_predictors_match_the_authors(name, predictor, golden):
    figures, process = golden("sde"), SDES[name]
    x, t, noise = (jnp.asarray(figures[f"in/{n}"]) for n in ("x", "t", "noise"))
    found = pc.PREDICTORS[predictor](process, score_of(name, process), x, t, 100, noise)
    label = "ancestral_sampling" if predictor == "ancestral" else predictor
    for value, part in zip(found, ("x", "mean"), strict=True):
        expected = figures[f"out/{name}/pred_{label}/{part}"]
        scale = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
        # VE's chain takes differences of squared sigmas, each a power of 5000 in float32. Its rounding, 8.5
        # times the exponent's, enters six times as large.
        np.testing.assert_allclose(value / scale, expected / scale, atol=5e-6)


@pytest.mark.parametrize("name", ["ve", "vp"])
@pytest.mark.parametrize(
    ("kind", "label"), [("langevin", "langevin"), ("annealed_langevin", "ald")]
)
def test_correctors_match_the_authors(name, kind, label, golden):
    """Takes two steps, with noise and half of it. The authors average the norms over the batch."""
    figures, process = golden("sde"), SDES[name]
    x, t, noise = (jnp.asarray(figures[f"in/{n}"]) for n in ("x", "t", "noise"))
    score = score_of(name, process)
    for z in (noise, 0.5 * noise):
        x, mean = pc.langevin_step(
            process,
            score(x, t),
            x,
            t,
            z,
            kind=kind,
            snr=0.16,
            num_steps=100,
            average_step_size=True,
        )
    for value, part in ((x, "x"), (mean, "mean")):
        expected = figures[f"out/{name}/corr_{label}/{part}"]
        scale = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
        np.testing.assert_allclose(value / scale, expected / scale, atol=3e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("subvp", {"predictor": "ancestral"}, "'ancestral' is not available for sub-VP"),
        ("subvp", {"corrector": "langevin", "snr": 0.1}, "'langevin' is not available for sub-VP"),
        (
            "ve",
            {"corrector": "langevin"},
            "'langevin' needs a signal-to-noise ratio snr in .* got None",
        ),
        ("ve", {"predictor": "none"}, "cannot both be 'none'"),
        ("ve", {"predictor": "heun"}, "predictor must be one of"),
        ("ve", {"num_steps": 0}, "num_steps must be an integer from 1 to .* got 0"),
        ("ve", {"end": 0.0}, r"end must be in \(0, 1\), got 0.0"),
        ("vp", {"num_steps": 20}, "num_steps must be above beta_max=20.0 .* got 20"),
        ("ve", {"steps": (3, 2)}, r"steps must be \(start, stop\), 0 <= .* 1000, got \(3, 2\)"),
        ("ve", {"steps": (0, 1001)}, r"0 <= start <= stop <= 1000, got \(0, 1001\)"),
    ],
)
def test_invalid_arguments_and_combinations_are_rejected(name, options, message):
    with pytest.raises(ValueError, match=message):
        pc.predictor_corrector(
            jax.random.key(0), SDES[name], lambda x, t: x, jnp.zeros((2, 3)), **options
        )
