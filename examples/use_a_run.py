"""Uses a trained run in your own code to denoise images, compute likelihoods and complete lower halves.

    python -m examples.use_a_run WORKDIR [OUTPUT.png]

WORKDIR holds a run on images, for example of `python main.py --config=configs/digits.py --workdir=WORKDIR`.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import examples
import ncsn_jax
from ncsn_jax import likelihood, sampling
from ncsn_jax.app import build, pictures

COUNT, SIGMA = 8, 0.2


def main(workdir: str, path: str = "use_a_run.png") -> None:
    """Writes rows of images: held-out ones, noisy, denoised, halved, and completed."""
    run = ncsn_jax.load_run(workdir)
    print(run)
    images = build.load_images(run.config, "test")[:COUNT]
    x = run.prepare(images)

    # By Tweedie's formula, the mean of the clean image given the noisy x is x + sigma^2 score.
    sigma = jnp.full(len(x), SIGMA)
    noisy = x + SIGMA * jax.random.normal(jax.random.key(0), x.shape)
    denoised = noisy + SIGMA**2 * jax.jit(run.score_fn)(noisy, sigma)

    log_prob = jax.jit(
        lambda key, x: likelihood.log_prob(key, run.sde, run.time_score_fn, x, rtol=1e-3, atol=1e-3)
    )
    dequantized = run.prepare(likelihood.dequantize(jax.random.key(1), images))
    nats = log_prob(jax.random.key(2), dequantized)
    bits = likelihood.bits_per_dim(nats, x.shape, width=2.0 if run.config.data.centered else 1.0)
    print(f"{bits.mean():.2f} bits per dimension")

    mask = jnp.zeros_like(x).at[:, : x.shape[1] // 2].set(1.0)  # 1: observed
    options = run.config.sampling
    complete = jax.jit(
        lambda key, x, observed: sampling.inpaint(
            key,
            run.score_fn,
            x,
            run.sigmas,
            observed,
            mask,
            epsilon=options.epsilon,
            steps_per_level=options.steps_per_level,
        )
    )
    start = run.prepare(jax.random.uniform(jax.random.key(3), x.shape))
    completed = complete(jax.random.key(4), start, x * mask)

    rows = [
        x,
        noisy,
        denoised,
        run.prepare(jnp.full(x.shape, 0.5)) * (1 - mask) + x * mask,
        completed,
    ]
    shown = run.to_uint8(run.restore(jnp.concatenate(rows)))
    pictures.write_png(path, pictures.grid(np.asarray(shown), COUNT))
    print(f"wrote {path}")


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m examples.use_a_run WORKDIR [OUTPUT.png]")
    workdir = sys.argv.pop(1)
    main(workdir, examples.output_path(__doc__, "use_a_run.png"))
