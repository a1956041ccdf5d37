"""Figure 3: Langevin dynamics gets the weights of two modes wrong; annealing gets them right.

    python -m examples.figure3 [OUTPUT.png]

It shows samples from 1/5 N((-5, -5), I) + 4/5 N((5, 5), I): exact ones, and those of Langevin dynamics and
annealed Langevin dynamics with the exact score.
"""

import jax
import numpy as np
from matplotlib import pyplot

import examples
from ncsn_jax import sampling, scores, sigmas

COUNT = 1280


def main(path: str = "figure3.png") -> None:
    """Samples three times and draws the points."""
    mixture = scores.gaussian_mixture([[-5.0, -5.0], [5.0, 5.0]], [1.0, 1.0], [0.2, 0.8])
    start = jax.random.uniform(jax.random.key(0), (COUNT, 2), minval=-8, maxval=8)
    small = np.full(COUNT, 1e-3, np.float32)
    ladder = sigmas.geometric(20.0, 1.0, 10)
    plain = jax.jit(
        lambda key: sampling.langevin(
            key, lambda x: mixture.score(x, small), start, step_size=0.1, num_steps=1000
        )
    )
    annealed = jax.jit(
        lambda key: sampling.annealed_langevin(
            key, mixture.score, start, ladder, epsilon=0.1, steps_per_level=100
        )
    )
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 5), layout="constrained")
    for axis, title, points in (
        (axes[0], "exact", mixture.sample(jax.random.key(1), COUNT)),
        (axes[1], "Langevin dynamics", plain(jax.random.key(2))),
        (axes[2], "annealed Langevin dynamics", annealed(jax.random.key(3))),
    ):
        points = np.asarray(points)
        share = np.mean(points.sum(axis=1) < 0)
        axis.scatter(*points.T, s=2, color="black")
        axis.set(
            xlim=(-9, 9),
            ylim=(-9, 9),
            aspect="equal",
            title=f"{title}\n{share:.2f} in the small mode",
        )
    figure.savefig(path, dpi=100)
    print(f"wrote {path}")


if __name__ == "__main__":
    main(examples.output_path(__doc__, "figure3.png"))
