"""`--mode=average` makes an average of the parameters of any width from the two that training kept."""

import os

import jax
import numpy as np

from ncsn_jax import averages
from ncsn_jax.app import build, checkpoints, devices, distributed, storage, workdirs
from ncsn_jax.app.modes import shared
from ncsn_jax.errors import UserError

# A larger difference of the profiles spoils the average.
_MAX_MISMATCH = 0.02


@devices.jax_defaults()
def average(config, workdir: str) -> str:
    """Makes a work directory with the average of `config.average.width` as its parameters.

    It is `<workdir>/averages/step_<step>_width_<width>`, which every mode and `load_run` take. The snapshots
    are the checkpoints at multiples of `config.training.keep_every`, up to the newest or to
    `config.sampling.step`, which also counts.

    Returns:
      The work directory.

    Raises:
      UserError: if the run kept no averages, or on several hosts.
    """
    shared.begin(config, workdir, "average")
    widths, width = config.model.ema_power, config.average.width
    if not widths:
        raise UserError(
            "config.model.ema_power=() must be two widths for --mode=average: the run kept no averages"
        )
    if distributed.count() > 1:
        raise UserError("--mode=average must run in one process: start it on one host only")
    wanted = config.sampling.step
    last, state = workdirs.load(config, workdir, None if wanted < 0 else wanted)
    directory = os.path.join(workdir, "averages", f"step_{last}_width_{width:g}")
    if storage.exists(os.path.join(directory, "config.json")):
        shared.log.info("%s already exists", directory)
        return directory
    with checkpoints.Checkpoints(workdir, read_only=True) as store:
        kept = (s for s in store.steps() if s < last and s % config.training.keep_every == 0)
        steps = [*sorted(kept), last]
        profiles = (np.repeat(steps, 2), build.gammas(config) * len(steps))
        profiles += (last, averages.gamma_of_width(width))
        weights = averages.weights(*profiles)
        states = (store.load(state, step)[1] for step in steps)
        found = averages.combine((tree for s in states for tree in s.averages), weights)
    mismatch = averages.mismatch(weights, *profiles)
    text = "width %g of step %d from %d snapshots: its weights of the steps differ by %.2g %%"
    shared.log.info(text, width, last, len(steps), 100 * mismatch)
    if mismatch > _MAX_MISMATCH:
        shared.log.warning(
            "that is too much for a good average: keep more checkpoints (config.training.keep_every), or "
            "choose a width nearer to config.model.ema_power=%s",
            tuple(widths),
        )
    _write(config, workdir, directory, last, found)
    shared.log.info("next: python main.py --workdir=%s --mode=sample", directory)
    return directory


def _write(config, workdir: str, directory: str, step: int, params) -> None:
    """Writes the work directory of an average."""
    config = config.copy_and_resolve_references().unlock()
    config.model.update(ema_decay=0.0, ema_halflife=0, ema_rampup=0.0, ema_power=())
    config.sampling.step = -1
    state = jax.device_get(build.make_init(config)(jax.random.key(0)))
    state = state._replace(step=np.asarray(step, np.int32), params=params)
    storage.make_directory(directory)
    with checkpoints.Checkpoints(directory) as store:
        if step not in store.steps():  # it is, if this was interrupted
            store.save(step, state)
    images = storage.read(os.path.join(workdir, "images.json"))
    storage.write(os.path.join(directory, "images.json"), images)
    # Last, because a work directory without a checkpoint would be trained from scratch.
    workdirs.write_config(config, directory)
