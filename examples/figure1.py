"""Figure 1: score matching fails on data on a low-dimensional manifold, and a little noise cures it.

    python -m examples.figure1 [OUTPUT.png]

A small network learns 8x8 digits, whose corners are always black and whose pixels have 17 values. Without a
perturbation, its exact score matching loss has no minimum and falls forever; with N(0, 0.05^2) it settles.
The paper shows this for sliced score matching on CIFAR-10.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot

import examples
from examples import mlp
from ncsn_jax import losses
from ncsn_jax.app import data

STEPS = 2000


def main(path: str = "figure1.png", num_steps: int = STEPS) -> None:
    """Trains twice and draws both losses."""
    images = jnp.asarray(data.load("digits", "", 8, 1)[:].reshape(-1, 64) / np.float32(255))

    def curve(sigma: float):
        def sample(key):
            key_index, key_noise = jax.random.split(key)
            x = images[jax.random.randint(key_index, (128,), 0, len(images))]
            return x + sigma * jax.random.normal(key_noise, x.shape)

        def loss(key, score_fn, x):
            del key
            return losses.score_matching(score_fn, x, jnp.ones(len(x)))

        params = mlp.init(jax.random.key(0), (64, 128, 128, 64))
        return mlp.train(jax.random.key(1), params, loss, sample, num_steps)[1]

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, sigma, title in (
        (axes[0], 0.0, "without a perturbation"),
        (axes[1], 0.05, "perturbed by N(0, 0.05²)"),
    ):
        values = np.asarray(curve(sigma))
        axis.plot(values, linewidth=0.5, color="black")
        axis.set(xlabel="step", ylabel="score matching loss", title=title)
    figure.savefig(path, dpi=100)
    print(f"wrote {path}")


if __name__ == "__main__":
    main(examples.output_path(__doc__, "figure1.png"))
