"""Converts a PyTorch checkpoint to a work directory, and a work directory to PyTorch's names.

It converts everything a file holds: parameters, Adam's moments, the EMA, the step. So training continues
where the authors' script stopped.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ncsn_jax import convert, models, training
from ncsn_jax.app import (
    build,
    checkpoints,
    devices,
    pictures,
    schema,
    storage,
    torch_files,
    workdirs,
)
from ncsn_jax.errors import UserError

_NO_OPTIMIZER = "note: it holds no optimizer; training would start with zero moments"


@devices.jax_defaults()
def import_checkpoint(config, path: str, workdir: str) -> str:
    """Makes a work directory from a checkpoint of the authors' PyTorch code; see `torch_files.read`.

    Returns:
      What was done, for the user to read.

    Raises:
      UserError: if the file cannot be read or does not fit the configuration, or if the work directory holds
        a run.
    """
    _check(config)
    if config.optim.name != "adam" or config.model.ema_power:
        raise UserError(
            f"{path} holds Adam and no power-function averages, so config.optim.name="
            f"{config.optim.name!r} must be 'adam' and config.model.ema_power="
            f"{tuple(config.model.ema_power)} must be ()"
        )
    state, notes = _make_state(config, path, torch_files.read(path))
    step = int(state.step)
    workdirs.make(workdir)
    with workdirs.lock(workdir):
        saved = os.path.join(workdir, "checkpoints")
        if workdirs.compare(config, workdir) or storage.exists(saved):
            raise UserError(f"--workdir={workdir!r} already holds a run; choose another")
        try:
            with checkpoints.Checkpoints(workdir) as store:
                store.save(step, jax.device_get(state))
            # Last, because a work directory without a checkpoint would be trained from scratch.
            workdirs.write_config(config, workdir)
        except BaseException:
            storage.remove_directory(saved)
            raise
    lines = [f"{path}: step {step}, {_size(state.params)} parameters, now in {workdir}"]
    return "\n".join(lines + notes)


@devices.jax_defaults()
def export(config, workdir: str, path: str) -> str:
    """Writes the newest checkpoint's parameters to a `.npz` file: `model/NAME` and, with EMA, `ema/NAME`.

    The model's names carry 'module.' if the authors' code saves and loads them so.

    Returns:
      What was done, for the user to read.

    Raises:
      UserError: if the work directory holds no such run, the authors' code has no such network, or the file
        already exists.
    """
    _check(config)
    if not path.endswith(".npz"):
        raise UserError(f"--export={path!r} must end in .npz")
    if storage.exists(path):
        raise UserError(f"--export={path!r} already exists; choose another name")
    wanted = config.sampling.step
    step, state = workdirs.load(config, workdir, None if wanted < 0 else wanted)
    model, ladder = build.make_model(config), build.make_sigmas(config)
    params = state.params if state.ema_params else training.sampling_params(state)
    state_dict = convert.to_torch(params, model, ladder)
    prefix = "" if isinstance(model, models.SimplifiedNCSN) else "module."
    arrays = {f"model/{prefix}{name}": array for name, array in state_dict.items()}
    if state.ema_params:
        average = convert.to_torch(state.ema_params, model, ladder)
        average.pop("sigmas", None)  # a buffer, which the authors' EMA omits
        arrays |= {f"ema/{name}": array for name, array in average.items()}
    try:
        pictures.write_npz(path, **arrays)
    except OSError as error:
        raise UserError(f"--export={path!r} cannot be written: {error.strerror}") from None
    return f"{path}: step {step}, {_size(state.params)} parameters"


def _check(config) -> None:
    """Raises UserError if a configuration is invalid, or the authors' code has no such network."""
    schema.check(config)
    for field, is_theirs, allowed in (
        ("data.labels", not config.data.labels, "False"),
        ("training.augment", not config.training.augment, "0"),
        ("training.sde", config.training.sde != "edm", "another one"),
    ):
        if not is_theirs:
            value = schema.flatten(config)[field]
            raise UserError(
                f"config.{field}={value!r} must be {allowed}: the authors' code has no such network"
            )


def _make_state(
    config, path: str, found: torch_files.TorchCheckpoint
) -> tuple[training.TrainState, list[str]]:
    """Returns the training state that a file describes, and notes for the user."""
    model, channels = build.make_model(config), config.data.channels

    def convert_part(what: str, arrays):
        try:
            return convert.from_torch(arrays, model, channels)
        except ValueError as error:
            raise UserError(
                f"{path}: {what} do not match config.model.name={config.model.name!r} with features="
                f"{config.model.features}, num_levels={config.model.num_levels} and config.data.channels="
                f"{channels}: {error}"
            ) from None

    params = convert_part("the parameters of its network", found.model)
    if (found.ema is not None) != (config.model.ema_decay > 0):
        raise UserError(
            f"{path} holds {'a' if found.ema else 'no'} moving average of the parameters, so "
            f"config.model.ema_decay={config.model.ema_decay} must be "
            + ("above 0, such as 0.999" if found.ema else "0")
        )
    ema_params = (
        {} if found.ema is None else convert_part("the parameters of its moving average", found.ema)
    )
    step = found.step or 0
    opt_state, notes = build.make_optimizer(config).init(params), [_NO_OPTIMIZER]
    if found.optimizer is not None:
        adam = torch_files.read_adam(path, found)
        step = adam.count if found.step is None else found.step
        opt_state = optax.tree.set(
            opt_state,
            count=jnp.asarray(adam.count, jnp.int32),
            mu=convert_part("Adam's first moments", adam.first),
            nu=convert_part("Adam's second moments", adam.second),
        )
        notes = _other_settings(config, adam)
    if found.ema_decay not in (None, config.model.ema_decay):
        notes.append(
            f"note: its moving average has decay {found.ema_decay}; training would continue with "
            f"config.model.ema_decay={config.model.ema_decay}"
        )
    if "sigmas" in found.model and getattr(model, "sigmas", None) is None:
        # The network does not use the file's ladder, so it need not match.
        try:
            convert.check_ladder(found.model["sigmas"], np.asarray(build.make_sigmas(config)))
        except ValueError as error:
            notes.append(f"note: it has a different noise ladder from config.model: {error}")
    if step % config.training.steps_per_call:
        raise UserError(
            f"{path} is at step {step}, which must be a multiple of "
            f"config.training.steps_per_call={config.training.steps_per_call}"
        )
    state = training.TrainState(jnp.asarray(step, jnp.int32), params, ema_params, opt_state)
    return state, notes


def _other_settings(config, adam: torch_files.Adam) -> list[str]:
    """Returns a note for every setting of Adam that differs from the configuration."""
    here = dict(config.optim)
    # The file has the learning rate of its last step.
    if warmup := config.optim.warmup_steps:
        here["learning_rate"] *= min(max(adam.count - 1, 0) / warmup, 1.0)
    return [
        f"note: it was trained with {field} {value}; training would continue with "
        f"config.optim.{field}={config.optim[field]}"
        for field, value in adam.hyperparameters.items()
        if value != here[field]
    ]


def _size(params) -> int:
    return sum(a.size for a in jax.tree.leaves(params))
