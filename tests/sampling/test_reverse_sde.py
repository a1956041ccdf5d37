"""Predictor-corrector samplers against the authors' figures, and refusals before anything runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import sde
from ncsn_jax._random import expand
from ncsn_jax.sampling import reverse_sde as pc

SDES = {
    "ve": sde.VE(0.01, 50.0),
    "vp": sde.VP(0.1, 20.0),
    "subvp": sde.SubVP(0.1, 20.0),
}


def score_of(name, process):
    """The score of the network that the figures were made with."""

    def score(x, t):
        std = expand(process.std(t), x)
        label = std if name == "ve" else expand(999 * t, x)
        value = -0.7 * x + 0.2 * jnp.sin(3 * x) + 0.01 * label * jnp.cos(x)
        return value if name == "ve" else -value / std

    return score


@pytest.mark.parametrize(
    ("name", "predictor"),
    [
        *((n, p) for n in SDES for p in ("euler_maruyama", "reverse_diffusion")),
        ("ve", "ancestral"),
        ("vp", "ancestral"),
    ],
)
def test_predictors_equal_the_authors(name, predictor, golden):
    figures, process = golden("sde"), SDES[name]
    x, t, noise = (jnp.asarray(figures[f"in/{n}"]) for n in ("x", "t", "noise"))
    found = pc.PREDICTORS[predictor](process, score_of(name, process), x, t, 100, noise)
    label = "ancestral_sampling" if predictor == "ancestral" else predictor
    for value, part in zip(found, ("x", "mean"), strict=True):
        expected = figures[f"out/{name}/pred_{label}/{part}"]
        scale = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
        # VE's chain has differences of neighbouring sigmas squared, each a power of 5000 in float32: its
        # rounding, 8.5 times that of the exponent, enters six times as large.
        np.testing.assert_allclose(value / scale, expected / scale, atol=5e-6)


@pytest.mark.parametrize("name", ["ve", "vp"])
@pytest.mark.parametrize(
    ("kind", "label"), [("langevin", "langevin"), ("annealed_langevin", "ald")]
)
def test_correctors_equal_the_authors(name, kind, label, golden):
    """Two steps, with noise and half of it; the authors average the norms over the batch."""
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
        ("subvp", {"predictor": "ancestral"}, "'ancestral' does not exist for sub-VP"),
        ("subvp", {"corrector": "langevin", "snr": 0.1}, "'langevin' does not exist for sub-VP"),
        (
            "ve",
            {"corrector": "langevin"},
            "'langevin' needs a signal-to-noise ratio snr > 0, got None",
        ),
        ("ve", {"predictor": "none"}, "cannot both be 'none'"),
        ("ve", {"predictor": "heun"}, "predictor must be one of"),
        ("ve", {"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ("ve", {"end": 0.0}, r"end must be in \(0, 1\), got 0.0"),
    ],
)
def test_impossible_combinations_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        pc.predictor_corrector(
            jax.random.key(0), SDES[name], lambda x, t: x, jnp.zeros((2, 3)), **options
        )


@pytest.mark.parametrize("name", list(SDES))
def test_samples_of_gaussian_data_are_gaussian(name):
    """Means and standard deviations within four standard errors and the error of 200 steps."""
    process, mean, std = SDES[name], 0.6, 0.25

    def score(x, t):
        alpha = expand(process.alpha(t), x)
        variance = (alpha * std) ** 2 + expand(process.std(t), x) ** 2
        return (alpha * mean - x) / variance

    start = process.prior_sample(jax.random.key(0), (4000, 4))
    sample = jax.jit(
        lambda key, x: pc.predictor_corrector(key, process, score, x, num_steps=200, end=1e-3)
    )
    x, info = sample(jax.random.key(1), start)
    assert set(np.asarray(info.evaluations)) == {200}
    error = 4 * std / np.sqrt(x.size)
    assert abs(float(x.mean()) - mean) < error + 0.01
    assert abs(float(x.std()) - std) < error / np.sqrt(2) + 0.01
