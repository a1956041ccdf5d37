"""Figure 2: the true and the estimated score of a mixture, over its density.

    python -m examples.figure2 [OUTPUT.png]

The mixture is 1/5 N((-5, -5), I) + 4/5 N((5, 5), I), and sliced score matching trains the network. The
estimate is unreliable where the density, and so the amount of data, is low.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot

import examples
from examples import mlp
from ncsn_jax import losses, scores

STEPS, SMALL = 10_000, 0.05


def main(path: str = "figure2.png", num_steps: int = STEPS) -> None:
    """Trains the network and draws both fields."""
    mixture = scores.gaussian_mixture([[-5.0, -5.0], [5.0, 5.0]], [1.0, 1.0], [0.2, 0.8])

    def loss(key, score_fn, x):
        sigma = jnp.full(len(x), SMALL)
        return losses.sliced_score_matching(key, score_fn, x, sigma) / SMALL**2

    params = mlp.init(jax.random.key(0), (2, 128, 128, 2))
    sample = lambda key: mixture.sample(key, 128)
    params, _ = mlp.train(jax.random.key(1), params, loss, sample, num_steps)

    fine, coarse = (np.linspace(-8, 8, count, dtype=np.float32) for count in (160, 20))
    points = lambda line: jnp.asarray(np.stack(np.meshgrid(line, line), -1).reshape(-1, 2))
    density = np.exp(mixture.log_prob(points(fine), jnp.full(len(fine) ** 2, 1e-4)))
    where = points(coarse)
    sigma = jnp.full(len(where), 1e-4)

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 5.6), layout="constrained")
    for axis, title, field in (
        (axes[0], "true score", mixture.score(where, sigma)),
        (axes[1], "estimated score", mlp.apply(params, where, sigma)),
    ):
        axis.imshow(
            density.reshape(len(fine), -1), extent=(-8, 8, -8, 8), origin="lower", cmap="Oranges"
        )
        axis.quiver(*np.asarray(where).T, *np.asarray(field).T, angles="xy", width=0.003)
        axis.set(title=title, aspect="equal")
    figure.savefig(path, dpi=100)
    print(f"wrote {path}")


if __name__ == "__main__":
    main(examples.output_path(__doc__, "figure2.png"))
