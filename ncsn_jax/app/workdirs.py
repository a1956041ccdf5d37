"""Manages work directories: records which run each holds, and keeps other runs out.

The first invocation writes `config.json` and `images.json`. A later one is refused if it differs in a field
or an image that the parameters depend on; the message names the field. A lock keeps a second training
process out.
"""

import contextlib
import json
import os
from collections.abc import Iterator

import jax
import ml_collections

from ncsn_jax import training
from ncsn_jax.app import checkpoints, distributed, storage
from ncsn_jax.app.build import make_init
from ncsn_jax.app.data import Images, cache
from ncsn_jax.app.schema import CHANGEABLE, flatten
from ncsn_jax.errors import UserError, differences

# Marks images in images.json as an array that no file holds.
_GIVEN = "given"


def compare(config: ml_collections.ConfigDict, workdir: str) -> bool:
    """Returns whether a work directory holds a run, which must have this configuration.

    Raises:
      UserError: if the run's `config.json` cannot be read, or differs in a field that must not.
    """
    storage.check(workdir, "--workdir")
    found = storage.read_json(os.path.join(workdir, "config.json"))
    if found is None:
        if storage.exists(os.path.join(workdir, "checkpoints")):
            raise UserError(
                f"--workdir={workdir!r} holds checkpoints but no config.json; choose another, or delete "
                "the checkpoints if you do not need them"
            )
        return False
    flat = flatten(config)
    if others := sorted(found.keys() ^ flat.keys()):
        raise UserError(
            f"--workdir={workdir!r} holds a run of another version of this program: only one of its "
            f"config.json and this version has {', '.join(others)}; choose another --workdir"
        )
    changeable = _changeable(flat)
    there, here = (
        {field: value for field, value in fields.items() if not field.startswith(changeable)}
        for fields in (found, flat)
    )
    if differing := differences(there, here):
        hint = "repeat the overrides it was started with, or choose another --workdir"
        if there.get("training.num_steps") != here.get("training.num_steps"):
            hint = "with config.optim.schedule='cosine' a run keeps its number of steps; " + hint
        raise UserError(
            f"--workdir={workdir!r} holds a run with a different configuration: {differing} ({hint})"
        )
    return True


def digest(config: ml_collections.ConfigDict) -> str:
    """Returns a digest of what the parameters depend on but for the seed, which averages leave out."""
    flat = flatten(config)
    # The width tells an average that --mode=average made from another.
    ignored = ("seed", *(name for name in _changeable(flat) if name != "average."))
    return cache.digest({field: v for field, v in flat.items() if not field.startswith(ignored)})


def _changeable(flat: dict) -> tuple[str, ...]:
    """Returns the fields, or prefixes of fields, that may differ between two invocations."""
    changeable = CHANGEABLE + _unused(flat)
    if flat["optim.schedule"] == "cosine":  # which ends at the last step
        changeable = tuple(name for name in changeable if name != "training.num_steps")
    return changeable


def _unused(flat: dict) -> tuple[str, ...]:
    """Returns the fields, or prefixes of fields, that training ignores given the other fields' values."""
    kind = flat["training.sde"]
    of_edm = (flat["edm.preconditioning"], flat["edm.noise"]) if kind == "edm" else ()
    unused = {
        "ncsnpp.": flat["model.name"] != "ncsnpp",
        "edm.": kind != "edm",
        "model.beta_": kind not in ("vp", "subvp") and "vp" not in of_edm,
        "model.sigma_": kind not in ("none", "ve") and "ve" not in of_edm[1:],
        "model.num_levels": flat["training.continuous"],
        "optim.decay_after": flat["optim.schedule"] != "rsqrt",
        "model.num_classes": not flat["data.labels"],
        "model.label_dropout": not flat["data.labels"],
    }
    return tuple(name for name, is_unused in unused.items() if is_unused)


def require_run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Raises UserError unless a work directory holds a run of this configuration."""
    if not compare(config, workdir):
        raise UserError(f"--workdir={workdir!r} holds no run: train first")


def load(
    config: ml_collections.ConfigDict, workdir: str, step: int | None = None
) -> tuple[int, training.TrainState]:
    """Returns (step, state) of a work directory's checkpoint, and changes nothing there.

    Args:
      config, workdir: the run's.
      step: the checkpoint's step; the newest by default.

    Raises:
      UserError: if no checkpoint fits the configuration.
    """
    distributed.on_first("to find the run", lambda: require_run(config, workdir))
    like = jax.eval_shape(make_init(config), jax.random.key(0))
    with checkpoints.Checkpoints(workdir, read_only=True) as store:
        found = store.load(like, step)
    if found is None:
        raise UserError(f"--workdir={workdir!r} holds no checkpoint: train first")
    return found


def claim_images(
    dataset: Images, workdir: str, *, read_only: bool = False, given: bool = False
) -> None:
    """Records which images a run is trained on, or refuses images other than those it began with.

    Args:
      dataset: the images.
      workdir: the run's.
      read_only: whether to write nothing.
      given: whether the images are an array that no file holds.

    Raises:
      UserError: if their number, shape or content differs, or is not the same in all processes.
    """
    path = os.path.join(workdir, "images.json")
    here = dataset.describe()

    def claim() -> None:
        there = storage.read_json(path)
        if there is None:
            if not read_only:
                text = json.dumps(here | {_GIVEN: True} if given else here)
                storage.write(path, text.encode())
            return
        there.pop(_GIVEN, None)
        if differing := differences(there, here):
            raise UserError(f"--workdir={workdir!r} holds a run on different images: {differing}")

    distributed.on_first("to load the images", claim)
    distributed.agree("its images", here)


def require_images(workdir: str) -> None:
    """Raises UserError if a run began with an array that no file holds, which must be passed again."""

    def look() -> None:
        there = storage.read_json(os.path.join(workdir, "images.json"))
        if there is not None and there.get(_GIVEN):
            raise UserError(
                f"--workdir={workdir!r} holds a run on an array that was passed as images=ARRAY: pass it "
                "again, as in run_lib.train(config, workdir, images=ARRAY); a run whose config.data.dataset "
                "names a file needs no array"
            )

    distributed.on_first("to find the images", look)


@contextlib.contextmanager
def lock(workdir: str) -> Iterator[None]:
    """Keeps a second training process out of a work directory; the lock ends with its process.

    Object storage and Windows have no locks.
    """
    if storage.is_remote(workdir):
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(os.path.join(workdir, "lock"), "ab"))
        except OSError as error:
            reason = error.strerror
            raise UserError(f"--workdir={workdir!r} cannot be written to: {reason}") from None
        try:
            storage.lock(file, wait=False)
        except BlockingIOError:
            raise UserError(f"another process is training in --workdir={workdir!r}") from None
        yield


def make(workdir: str) -> None:
    """Makes a work directory if there is none; `lock` finds out whether it is writable."""
    if storage.is_remote(workdir):
        return
    try:
        os.makedirs(workdir.encode(), exist_ok=True)  # orbax needs a path in UTF-8
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--workdir={workdir!r} cannot be created: {reason}") from None


def write_config(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Writes the work directory's `config.json`."""
    flat = flatten(config)
    if (directory := storage.path(flat["data.data_dir"])) and not storage.is_remote(directory):
        # A later command may give only the work directory, from any directory.
        flat["data.data_dir"] = os.path.abspath(directory)
    text = json.dumps(flat, indent=2, sort_keys=True) + "\n"
    storage.write(os.path.join(workdir, "config.json"), text.encode())
