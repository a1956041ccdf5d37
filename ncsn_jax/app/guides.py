"""Opens the run that `config.sampling.guide` names, whose score guides the samples of another run."""

import logging
import os
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ncsn_jax import training
from ncsn_jax.app import build, checkpoints, distributed, run_config, schema, storage, workdirs
from ncsn_jax.errors import UserError, differences

_log = logging.getLogger(__name__)


class Guide(NamedTuple):
    """A run's configuration, and its parameters on the host: the EMA if there is one."""

    config: ConfigDict
    params: Any


def is_used(config: ConfigDict) -> bool:
    """Returns whether another run guides the samples."""
    return bool(config.sampling.guide) and config.sampling.guidance != 1


def settings(config: ConfigDict) -> dict:
    """Returns the guide's work directory and step; all processes must call it.

    Raises:
      UserError: if there is no such checkpoint.
    """
    options = config.sampling
    workdir = storage.path(options.guide)
    storage.check(workdir, "config.sampling.guide")

    def find() -> int:
        with checkpoints.Checkpoints(workdir, read_only=True) as store:
            steps = store.steps()
        if not steps or options.guide_step not in (-1, *steps):
            what = "no checkpoint" if not steps else f"no checkpoint of step {options.guide_step}"
            raise UserError(f"config.sampling.guide={options.guide!r} holds {what}")
        return steps[0] if options.guide_step == -1 else options.guide_step

    step = distributed.on_first("to find the guide", find)
    workdir = workdir if storage.is_remote(workdir) else os.path.abspath(workdir)
    return {"sampling.guide": workdir, "sampling.guide_step": step}


def load(config: ConfigDict) -> Guide | None:
    """Returns the run that guides the samples of another, or None.

    Raises:
      UserError: if there is none, or it is of other images, another SDE or other classes.
    """
    if not is_used(config):
        if config.sampling.guide:
            _log.warning(
                "config.sampling.guide=%r does nothing with config.sampling.guidance=1; try 2",
                config.sampling.guide,
            )
        return None
    workdir, step = settings(config).values()
    found = run_config.get_config(workdir)
    schema.check(found, num_devices=1)
    there, here = (_needed(c) for c in (found, config))
    if not build.num_classes(found):  # a guide may be unconditional
        del there["classes"], here["classes"]
    if differing := differences(there, here):
        raise UserError(
            f"config.sampling.guide={config.sampling.guide!r} is unlike this run: {differing}"
        )
    found.sampling.dtype = config.sampling.dtype
    found.sampling.precision = config.sampling.precision
    state = workdirs.load(found, workdir, step)[1]
    return Guide(found, training.sampling_params(state))


def _needed(config: ConfigDict) -> dict:
    """Returns what a run and its guide must have in common."""
    return {
        "image_shape": list(build.image_shape(config)),
        "data.centered": config.data.centered,
        "data.value_range": list(config.data.value_range) or [0.0, 1.0],
        "SDE": str(build.make_sde(config)),
        "classes": build.num_classes(config),
    }
