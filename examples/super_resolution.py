"""Restores images of half the size, with noise, by a trained run: samples, their mean and their spread.

    python -m examples.super_resolution WORKDIR [OUTPUT.png]

WORKDIR holds a run on images; `python main.py --config=configs/digits_ve.py --workdir=WORKDIR` trains one.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot

import examples
import ncsn_jax
from ncsn_jax import inverse, sampling, sigmas
from ncsn_jax.app import build

IMAGES, SAMPLES, LEVELS, STEPS_PER_LEVEL = 6, 16, 100, 5
# In units of pixels in [0, 1]: the noise of the measurement, the first and the last sigma.
NOISE, SIGMA_MAX, SIGMA_MIN = 0.05, 1.0, 0.01


def main(workdir: str, path: str = "super_resolution.png") -> None:
    """Restores the means of blocks of 2 x 2 pixels."""
    run = ncsn_jax.load_run(workdir)
    restore(run, inverse.downsample(2), {"pseudo-inverse": inverse.pseudo_inverse}, path)


def restore(run, operator: inverse.LinearOperator, yardsticks: dict, path: str) -> None:
    """Measures held-out images, samples what they may have been, prints the errors and draws a picture."""
    unit = 2.0 if run.config.data.centered else 1.0  # the scores are of pixels in [-1, 1] or [0, 1]
    x = run.prepare(build.load_images(run.config, "test")[:IMAGES])
    y = inverse.measure(jax.random.key(0), operator, x, unit * NOISE)

    # One batch holds SAMPLES chains for each image. They start near the image of least norm that gives y.
    ladder = unit * sigmas.geometric(SIGMA_MAX, SIGMA_MIN, LEVELS)
    epsilon = 0.8 * (unit * SIGMA_MIN) ** 2  # twice the published, as large steps forget faster
    given_y = inverse.posterior_score(
        run.score_fn, operator, jnp.repeat(y, SAMPLES, axis=0), unit * NOISE, method="langevin"
    )
    start = jnp.repeat(inverse.pseudo_inverse(operator, y, x.shape), SAMPLES, axis=0)
    start += ladder[0] * jax.random.normal(jax.random.key(1), start.shape)
    sampler = jax.jit(
        lambda key, x: sampling.annealed_langevin(
            key, given_y, x, ladder, epsilon=epsilon, steps_per_level=STEPS_PER_LEVEL, denoise=True
        )
    )
    samples = sampler(jax.random.key(2), start).reshape(len(x), SAMPLES, *x.shape[1:])

    columns = {"original": x} | {name: f(operator, y, x.shape) for name, f in yardsticks.items()}
    columns |= {f"sample {i + 1}": samples[:, i] for i in range(3)} | {"mean": samples.mean(axis=1)}
    for name, images in columns.items():
        if name != "original":
            error = jnp.square((images - x) / unit).mean(axis=(1, 2, 3))
            print(f"{name}: PSNR {-10 * jnp.log10(error).mean():.1f} dB")
    columns = {name: run.to_uint8(run.restore(images)) for name, images in columns.items()}
    columns["spread"] = run.to_uint8(2 * samples.std(axis=1) / unit)

    size = 1.1 * len(columns), 1.1 * len(x) + 0.3
    figure, axes = pyplot.subplots(len(x), len(columns), figsize=size, layout="constrained")
    for column, (name, images) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(name, fontsize="medium")
        for axis, image in zip(column, images, strict=True):
            axis.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=255)
            axis.set_axis_off()
    figure.savefig(path, dpi=100)
    print(f"wrote {path}; the spread is the standard deviation of {SAMPLES} samples, from 0 to 0.5")


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m examples.super_resolution WORKDIR [OUTPUT.png]")
    workdir = sys.argv.pop(1)
    main(workdir, examples.output_path(__doc__, "super_resolution.png"))
