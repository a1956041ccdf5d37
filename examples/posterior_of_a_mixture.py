"""Samples the posterior of a mixture of Gaussians by every method of `ncsn_jax.inverse`.

    python -m examples.posterior_of_a_mixture [OUTPUT.png]

The data have two coordinates and three modes. The first coordinate is hidden, the second is measured with
noise. So the exact posterior of the hidden one is a mixture again, with the same modes and other weights.
Annealed Langevin dynamics samples with "langevin", Heun's method with the others. No method is exact here:

- "langevin" has the right modes, with weights near the prior's. A chain chooses its mode at large sigma,
  where the method adds sigma^2 to the variance of the noise. With ten times the steps chains choose later,
  and the first weight is 0.23.
- "dps" nearly loses the left mode and shifts the others. It takes the denoised x for x_0, so the
  measurement counts too much.
- "pigdm" is near if `data_std` is that of the measured coordinate. With that of both, 2.7, the measurement
  counts too little, because x_0 given x is taken as too wide: the first weight is 0.33.
- "mmps" comes nearest without a number to choose. It has the covariance of x_0 given x, but not the modes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot
from scipy.stats import norm

import examples
from ncsn_jax import inverse, sampling, scores, sigmas

COUNT, STEPS_PER_LEVEL = 10_000, 100
LINE = np.linspace(-7, 7, 401)
MEANS, STDS, WEIGHTS = [[-4.0, -1.0], [0.0, 0.0], [4.0, 1.0]], [0.7, 0.3, 0.6], [0.4, 0.2, 0.4]
MEASURED, MEASURED_STD, NOISE = 0.5, 1.08, 0.5


def exact_weights() -> np.ndarray:
    """Returns the weights of the posterior: w_k N(y; mean of k, std_k^2 + noise^2), normalised."""
    measured = np.asarray(MEANS)[:, 1]
    weights = WEIGHTS * norm.pdf(MEASURED, measured, np.hypot(STDS, NOISE))
    return weights / weights.sum()


def sample(method: str) -> np.ndarray:
    """Returns `[COUNT]` samples of the hidden coordinate."""
    prior = scores.gaussian_mixture(MEANS, STDS, WEIGHTS)
    y = jnp.tile(jnp.asarray([0.0, MEASURED]), (COUNT, 1))  # the 0 is not looked at
    score_fn = inverse.posterior_score(
        prior.score, inverse.mask([[False, True]]), y, NOISE, method=method, data_std=MEASURED_STD
    )
    noise = jax.random.normal(jax.random.key(0), (COUNT, 2))

    def langevin(key):
        ladder = sigmas.geometric(20.0, 0.05, 30)
        return sampling.annealed_langevin(
            key, score_fn, 20.0 * noise, ladder, epsilon=2.5e-4, steps_per_level=STEPS_PER_LEVEL
        )

    def heun(key):
        return sampling.heun(key, score_fn, 50.0 * noise, sigmas.karras(50.0, 0.02, 50))[0]

    x = jax.jit(langevin if method == "langevin" else heun)(jax.random.key(1))
    return np.asarray(x[:, 0])


def main(path: str = "posterior_of_a_mixture.png") -> None:
    """Prints the weights of the modes, and draws histograms of the hidden coordinate."""
    means, weights = np.asarray(MEANS)[:, 0], exact_weights()
    density = norm.pdf(LINE[:, None], means, STDS)
    print("weights of the modes at " + ", ".join(f"{mean:g}" for mean in means))
    for name, row in (("prior", WEIGHTS), ("exact", weights)):
        print(f"{name:9}" + "".join(f"  {weight:.3f}        " for weight in row).rstrip())

    figure, axes = pyplot.subplots(1, 4, figsize=(14, 3), sharey=True, layout="constrained")
    for axis, method in zip(axes, inverse.METHODS, strict=True):
        hidden = sample(method)
        nearest = np.abs(hidden[:, None] - means).argmin(axis=1)
        found = np.bincount(nearest, minlength=len(means)) / COUNT
        errors = np.sqrt(found * (1 - found) / COUNT)
        print(
            f"{method:9}"
            + "".join(f"  {a:.3f} ± {b:.3f}" for a, b in zip(found, errors, strict=True))
        )
        axis.hist(hidden, bins=LINE[::5], density=True, color="lightgrey", label="samples")
        axis.plot(LINE, density @ weights, color="black", label="exact")
        axis.plot(LINE, density @ WEIGHTS, ":", color="tab:blue", label="prior")
        axis.set(title=method, xlabel="hidden coordinate", xlim=(-7, 7))
    axes[0].set(ylabel="density")
    axes[0].legend(loc="upper left")
    figure.savefig(path, dpi=100)
    print(f"wrote {path}")


if __name__ == "__main__":
    main(examples.output_path(__doc__, "posterior_of_a_mixture.png"))
