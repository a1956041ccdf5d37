"""Draws figures 4, 5 and 6, and two more, from a run's newest checkpoint.

    python -m examples.figures_of_a_run --config=configs/digits.py --workdir=runs/digits

writes to `WORKDIR/figures/step_<step>`:

- `figure4.png`: samples on their way from noise, one per row;
- `figure5.png`: uncurated samples;
- `figure6.png`: occluded images, several completions of each, and the originals;
- `score_norms.png`: the norm of the score against 1 / sigma, which are about proportional, and every level's
  loss with weight sigma^2, which is about the same for all (section 4.2 of the paper);
- `signal_to_noise.png`: the ratio of the norms of drift and noise at every level, which does not depend
  on sigma (section 4.3).
"""

import os

from ncsn_jax.app import cli

_CONFIG = cli.define_config()
_WORKDIR = cli.define_workdir()


def make_figures(config, workdir: str) -> str:
    """Writes all figures and returns their directory."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from matplotlib import pyplot

    from ncsn_jax import losses, models, sampling, training
    from ncsn_jax.app import (
        build,
        devices,
        pictures,
        run_samplers,
        schema,
        storage,
        workdirs,
    )
    from ncsn_jax.app.data.masks import make_masks
    from ncsn_jax.app.samplers import Stream

    schema.check(config)
    step, state = workdirs.load(config, workdir)
    params = training.sampling_params(state)
    directory = os.path.join(workdir, "figures", f"step_{step}")
    storage.make_directory(directory)
    shape = build.image_shape(config)

    def write(name, picture):
        pictures.write_png(os.path.join(directory, name), picture)

    # Figures 4 and 5 share one batch of chains.
    replicated = devices.replicate(params)
    indices = list(range(64))
    made = run_samplers.Chains(config).run(replicated, indices, len(indices), num_frames=10)
    write("figure4.png", pictures.filmstrip(made.frames, rows=8, columns=10))
    write("figure5.png", pictures.grid(made.images))

    # Figure 6: six images, five completions each.
    originals = np.asarray(build.load_images(config, "test")[:6])
    masks = make_masks("left", shape, len(originals), config.seed)
    which = np.repeat(np.arange(len(originals)), 5)
    runner = run_samplers.Chains(config, Stream.INPAINTING)
    completions = runner.run(
        replicated,
        list(range(len(which))),
        len(which),
        originals[which] / np.float32(255),
        masks[which],
    ).images
    occluded = np.where(masks, originals, np.uint8(192))
    rows = np.concatenate(
        [occluded[:, None], completions.reshape(len(originals), 5, *shape), originals[:, None]],
        axis=1,
    )
    write("figure6.png", pictures.grid(rows.reshape(-1, *shape), columns=7))

    # Score norms and losses.
    ladder = build.make_sigmas(config)
    score_fn = models.score_fn(build.make_model(config), params, ladder)
    clean = jnp.asarray(build.load_images(config, "test")[:128] / np.float32(255))

    @jax.jit
    def at_level(sigma):
        sigma = jnp.broadcast_to(sigma, len(clean))
        perturbed = sampling.initial_samples(
            jax.random.key(0), clean.shape, "data", scale=sigma[0], data=clean
        )
        norm = jnp.sqrt(jnp.sum(jnp.square(score_fn(perturbed, sigma)), axis=(1, 2, 3)))
        loss = losses.denoising_score_matching(jax.random.key(0), score_fn, clean, sigma)
        return norm.mean(), loss.mean()

    norms, level_losses = np.asarray([at_level(sigma) for sigma in ladder]).T
    values = np.asarray(ladder)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.loglog(1 / values, norms, "o-", color="black", label="network")
    size = np.sqrt(np.prod(shape))
    left.loglog(1 / values, size / values, ":", color="grey", label="norm of the noise / sigma²")
    left.set(xlabel="1 / sigma", ylabel="mean norm of the score")
    left.legend()
    right.semilogx(1 / values, level_losses, "o-", color="black")
    right.axhline(size**2 / 2, linestyle=":", color="grey", label="score of zero")
    right.set(xlabel="1 / sigma", ylabel="loss of the level, weight sigma²", ylim=(0, None))
    right.legend()
    figure.savefig(os.path.join(directory, "score_norms.png"), dpi=100)

    # Signal-to-noise ratio.
    @jax.jit
    def steps(key):
        key_start, key = jax.random.split(key)
        x = sampling.initial_samples(key_start, (16, *shape), config.sampling.init, scale=values[0])
        return sampling.annealed_langevin(
            key,
            score_fn,
            x,
            ladder,
            epsilon=config.sampling.epsilon,
            steps_per_level=config.sampling.steps_per_level,
            return_info=True,
            num_frames=1,
        )[1].signal_to_noise

    ratio = np.asarray(steps(jax.random.key(1)))
    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for row, sigma in zip(ratio, values, strict=True):
        axis.plot(row, linewidth=0.7, label=f"{sigma:.3g}")
    axis.set(
        xlabel="step of the level", ylabel="norm of the drift / norm of the noise", ylim=(0, None)
    )
    if len(values) <= 12:
        axis.legend(title="sigma", fontsize="small", ncols=2)
    figure.savefig(os.path.join(directory, "signal_to_noise.png"), dpi=100)
    pyplot.close("all")
    return directory


def main(_) -> None:
    """Draws the figures of the run that the flags name."""
    print(f"wrote the figures to {make_figures(_CONFIG.value, _WORKDIR.value)}")


if __name__ == "__main__":
    cli.run(
        main,
        _CONFIG,
        lambda: (_CONFIG, _WORKDIR),
        program="python -m examples.figures_of_a_run",
        interrupted="interrupted",
    )
