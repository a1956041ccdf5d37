"""Restores images from a quarter of their Fourier coefficients, as in magnetic resonance imaging.

    python -m examples.few_fourier_samples WORKDIR [OUTPUT.png]

WORKDIR is as for `super_resolution.py`, which does the rest. The zero-filled images are inverse transforms
with 0 for what is not measured.
"""

import sys

import numpy as np

import examples
import ncsn_jax
from examples import super_resolution
from ncsn_jax import inverse
from ncsn_jax.app import build


def quarter(height: int, width: int) -> np.ndarray:
    """Returns a mask `[1, H, W, 1]` of the lowest eighth of the frequencies and a random eighth."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    order, count = np.argsort(radius, axis=None, kind="stable"), height * width // 8
    observed = np.zeros(height * width, bool)
    observed[order[:count]] = True
    observed[np.random.default_rng(0).choice(order[count:], count, replace=False)] = True
    return observed.reshape(1, height, width, 1)


def main(workdir: str, path: str = "few_fourier_samples.png") -> None:
    """Restores images from the same quarter of the coefficients of each."""
    run = ncsn_jax.load_run(workdir)
    height, width, _ = build.image_shape(run.config)
    yardsticks = {"zero-filled": inverse.adjoint, "pseudo-inverse": inverse.pseudo_inverse}
    operator = inverse.fourier_mask(quarter(height, width))
    super_resolution.restore(run, operator, yardsticks, path)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m examples.few_fourier_samples WORKDIR [OUTPUT.png]")
    workdir = sys.argv.pop(1)
    main(workdir, examples.output_path(__doc__, "few_fourier_samples.png"))
