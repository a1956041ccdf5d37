"""`--mode=sample` draws samples of a run's newest checkpoint, and films the first ones."""

import os

import numpy as np

from ncsn_jax._random import Stream
from ncsn_jax.app import devices, distributed, pictures, run_samplers, storage, units
from ncsn_jax.app.modes import shared
from ncsn_jax.app.progress import progress

# Frames of a GIF, and samples in it.
_GIF_FRAMES, _GIF_SAMPLES = 60, 36


@devices.jax_defaults()
def sample(config, workdir: str) -> None:
    """Writes samples of the newest checkpoint to `samples/step_<step>/`."""
    shared.begin(config, workdir, "sample", Stream.SAMPLES)
    write_samples(shared.load(config, workdir), run_samplers.Chains(config))


def write_samples(loaded: shared.Loaded, runner: run_samplers.Chains) -> np.ndarray | None:
    """Writes the missing samples, as `sample` does; returns all samples in process 0."""
    config, directory = loaded.config, loaded.directory("samples")
    settings, count = loaded.sampler_settings(), config.sampling.num_samples
    samples = shared.make_samples("sampling", loaded, runner, directory, settings, count)
    shared.log.info("wrote %s and grid.png", os.path.join(directory, "samples.npz"))
    if config.sampling.gif:
        size = min(config.sampling.batch_size, count)
        indices = list(range(min(count, size, _GIF_SAMPLES)))
        with progress("filming", runner.num_steps) as advanced:
            frames = runner.run(
                loaded.params, indices, size, num_frames=_GIF_FRAMES, advanced=advanced
            ).frames
        if distributed.is_first():
            _write_film(directory, units.to_picture(frames, config.data.value_range))
    return samples


def _write_film(directory: str, frames: np.ndarray) -> None:
    """Writes frames, uint8 `[F, N, H, W, C]`, as `annealing.gif` and `filmstrip.png`."""
    columns = int(np.ceil(np.sqrt(frames.shape[1])))
    gif = pictures.encode_gif(np.stack([pictures.grid(f, columns) for f in frames]))
    storage.write(os.path.join(directory, "annealing.gif"), gif)
    strip = pictures.filmstrip(frames, rows=8, columns=12)
    pictures.write_png(os.path.join(directory, "filmstrip.png"), strip)
    shared.log.info("wrote annealing.gif and filmstrip.png there")
