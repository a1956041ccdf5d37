"""Trains your own score model in one file, samples with three samplers, and computes exact densities.

    python -m examples.two_moons [OUTPUT.png]

The network is a small Flax nnx module, but any function `score_fn(x, sigma)` would do. Training is plain
optax. It takes about half a minute on a CPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib import pyplot

import examples
from ncsn_jax import likelihood, losses, sampling, sde, sigmas

STEPS, COUNT = 4000, 1000
# From far above the data's width of about 1 to below its own noise of 0.06.
SIGMA_MAX, SIGMA_MIN = 3.0, 0.02


def moons(key: jax.Array, n: int) -> jax.Array:
    """Draws `[n, 2]`: two interlocking half circles with a little noise."""
    key_side, key_angle, key_noise = jax.random.split(key, 3)
    side = jax.random.bernoulli(key_side, shape=(n,))
    angle = jnp.pi * jax.random.uniform(key_angle, (n,))
    x = jnp.where(side, jnp.cos(angle) - 0.5, 0.5 - jnp.cos(angle))
    y = jnp.where(side, jnp.sin(angle) - 0.25, 0.25 - jnp.sin(angle))
    return jnp.stack([x, y], axis=1) + 0.06 * jax.random.normal(key_noise, (n, 2))


class Network(nnx.Module):
    """A score network for 2D data. Its input is x, scaled to variance 1, and log sigma."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [nnx.Linear(a, width, rngs=rngs) for a in (3, width, width)]
            + [nnx.Linear(width, 2, rngs=rngs)]
        )

    def __call__(self, x: jax.Array, sigma: jax.Array) -> jax.Array:
        """Returns the score `[B, 2]` of x `[B, 2]` at sigma `[B]`."""
        sigma = sigma[:, None]
        h = jnp.concatenate([x / jnp.sqrt(sigma**2 + 0.5), jnp.log(sigma)], axis=1)
        for layer in self.layers[:-1]:
            h = nnx.silu(layer(h))
        return self.layers[-1](h) / sigma


def train(num_steps: int) -> nnx.Module:
    """Trains by denoising score matching at log-uniform sigmas."""
    network = Network(128, nnx.Rngs(0))
    schedule = optax.cosine_decay_schedule(3e-3, num_steps)
    optimizer = nnx.Optimizer(network, optax.adam(schedule), wrt=nnx.Param)
    low, high = jnp.log(SIGMA_MIN), jnp.log(SIGMA_MAX)

    @nnx.jit
    def step(network, optimizer, key):
        key_data, key_sigma, key_loss = jax.random.split(key, 3)
        x = moons(key_data, 256)
        sigma = jnp.exp(jax.random.uniform(key_sigma, (256,), minval=low, maxval=high))

        def loss(network):
            return losses.denoising_score_matching(key_loss, network, x, sigma).mean()

        optimizer.update(network, nnx.grad(loss)(network))

    for key in jax.random.split(jax.random.key(1), num_steps):
        step(network, optimizer, key)
    return network


def main(path: str = "two_moons.png", num_steps: int = STEPS) -> None:
    """Trains, samples, prints the mean log density of data and draws everything."""
    network = train(num_steps)
    process = sde.VE(SIGMA_MIN, SIGMA_MAX)
    time_score_fn = sde.from_sigma_score(process, network)
    start, key = SIGMA_MAX * jax.random.normal(jax.random.key(2), (COUNT, 2)), jax.random.key(3)

    ladder = sigmas.geometric(SIGMA_MAX, SIGMA_MIN, 30)
    langevin = jax.jit(
        lambda key, x: sampling.annealed_langevin(
            key, network, x, ladder, epsilon=1e-4, steps_per_level=20, denoise=True
        )
    )(key, start)
    heun, _ = jax.jit(
        lambda key, x: sampling.heun(
            key, network, x, sigmas.karras(SIGMA_MAX, SIGMA_MIN, 18), churn=0.0
        )
    )(key, start)
    flow, info = jax.jit(
        lambda x: sampling.probability_flow(process, time_score_fn, x, rtol=1e-3, atol=1e-3)
    )(start)

    log_prob = jax.jit(
        lambda x: likelihood.log_prob(
            None, process, time_score_fn, x, exact=True, rtol=1e-3, atol=1e-3
        )
    )
    data = moons(jax.random.key(4), COUNT)
    line = np.linspace(-2, 2, 60, dtype=np.float32)
    grid = jnp.asarray(np.stack(np.meshgrid(line, line), -1).reshape(-1, 2))
    of_data, of_grid = jnp.split(log_prob(jnp.concatenate([data, grid])), [COUNT])
    print(f"mean log density of data: {of_data.mean():.2f} nats")
    print(
        f"evaluations: 600 of annealed Langevin, 35 of Heun, {info.evaluations.mean():.0f} of the flow"
    )

    figure, axes = pyplot.subplots(1, 5, figsize=(15, 3.2), layout="constrained")
    for axis, title, points in (
        (axes[0], "data", data),
        (axes[1], "annealed Langevin", langevin),
        (axes[2], "Heun", heun),
        (axes[3], "probability flow", flow),
    ):
        axis.scatter(*np.asarray(points).T, s=2, color="black")
        axis.set(title=title)
    density = np.exp(np.asarray(of_grid)).reshape(60, 60)
    axes[4].imshow(density, extent=(-2, 2, -2, 2), origin="lower", cmap="Oranges")
    axes[4].set(title="density")
    for axis in axes:
        axis.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal")
    figure.savefig(path, dpi=100)
    print(f"wrote {path}")


if __name__ == "__main__":
    main(examples.output_path(__doc__, "two_moons.png"))
