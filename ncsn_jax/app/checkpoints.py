"""Saves and restores checkpoints with orbax: a checkpoint is complete or ignored, and verified when read.

A checkpoint is a tree of host arrays under `<workdir>/checkpoints/<step>`, beside a small JSON item. The
item holds a format version and the CRC-32 of every leaf and of itself: orbax does not checksum array
data, so a flipped bit would come back as a wrong weight. Saving is asynchronous. If a checkpoint cannot be
read, or its checksums differ, it is reported and set aside, and the next older one is used.

A checkpoint that was evaluated while training has its figure in `distances.json`, in its directory.

All processes hold the same state. Process 0 alone reads and writes, and sends the others what it read, so
only process 0 has to see the work directory.
"""

import contextlib
import functools
import json
import logging
import os
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ncsn_jax.app import distributed, storage
from ncsn_jax.errors import UserError, differences, one_line

_policies = ocp.checkpoint_managers

FORMAT = 1

_DISTANCES = "distances.json"
_ABOUT_DAMAGED = b"These checkpoints could not be read and were set aside. You may delete them.\n"

_log = logging.getLogger(__name__)


@functools.cache
def _quiet_orbax() -> None:
    """Keeps orbax's messages out of the log: dozens per save, and hundreds of lines per failure.

    A failure also raises an exception, which `Checkpoints` reports in one line.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(lambda r: "was never retrieved" not in r.getMessage())


def _describe(tree: Any) -> dict[str, list]:
    """Returns each leaf's shape and dtype by its path: the structure a checkpoint must have."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): [list(x.shape), str(x.dtype)] for path, x in leaves}


def _checksums(tree: Any) -> dict[str, int]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(x)) for path, x in leaves}


def _checksum(meta: dict) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


class _Best(_policies.PreservationPolicy):
    """Preserves, of each kind of distance, the checkpoint with the smallest.

    It reads distances that come after a save. Those of orbax's `BestN` must be known before.
    """

    def __init__(self, distances: dict[str, dict[int, float]]):
        self._distances = distances

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        best = {min(found, key=found.get, default=None) for found in self._distances.values()}
        return [info.step in best for info in checkpoints]


class Checkpoints:
    """The checkpoints of one work directory; use it as a context manager, which waits for saves.

    Args:
      workdir: the work directory.
      keep: how many of the newest checkpoints to keep.
      keep_every: keep checkpoints at multiples of this step for good; 0 keeps none for good.
      keep_best: keep those with the smallest distances that `set_distance` was told.
      read_only: whether to change nothing, because another process may be writing.
    """

    def __init__(
        self,
        workdir: str,
        keep: int = 2,
        keep_every: int = 0,
        keep_best: bool = False,
        *,
        read_only: bool = False,
    ):
        self._workdir = workdir if storage.is_remote(workdir) else os.path.abspath(workdir)
        self._directory = os.path.join(self._workdir, "checkpoints")
        self._read_only = read_only
        self._manager = None
        self._distances: dict[str, dict[int, float]] = {}  # of kinds, by step
        if not distributed.is_first() or (read_only and not storage.exists(self._directory)):
            return
        _quiet_orbax()
        if not read_only:
            storage.make_directory(self._directory)
        keepers = [_policies.LatestN(keep)]
        if keep_every:
            keepers.append(_policies.EveryNSteps(keep_every))
        if keep_best:
            keepers.append(_Best(self._distances))
        options = ocp.CheckpointManagerOptions(
            read_only=read_only,
            create=False,
            cleanup_tmp_directories=not read_only,
            preservation_policy=_policies.AnyPreservationPolicy(keepers),
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
            ),
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        for step in [] if read_only else sorted(self.steps()):
            for kind, distance in (storage.read_json(self._path_of_distances(step)) or {}).items():
                self._distances.setdefault(kind, {})[step] = distance

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self._manager is not None:
            with self._saving() if error is None else contextlib.suppress(Exception):
                self._manager.close()

    def steps(self) -> list[int]:
        """Returns the steps with a complete checkpoint, newest first."""
        return [] if self._manager is None else sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, state: Any) -> None:
        """Starts saving a tree of numpy arrays; returns before it is on disk.

        Raises:
          UserError: if this save or the previous one failed.
        """
        if self._manager is None:
            return
        meta = {"format": FORMAT, "leaves": _describe(state), "crc32": _checksums(state)}
        meta["crc32_of_this"] = _checksum(meta)
        composite = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
        )
        with self._saving():
            saved = self._manager.save(step, args=composite, force=True)
        if not saved:
            raise RuntimeError(f"orbax refused to save step {step} in {self._directory}")

    def distances(self, kind: str) -> dict[int, float]:
        """Returns the known distances of one kind by step, also of checkpoints deleted meanwhile."""
        return self._distances.get(kind, {})

    def set_distance(self, step: int, kind: str, distance: float) -> None:
        """Records how far from the training images the samples of a complete checkpoint are.

        Args:
          step: the checkpoint's.
          kind: names what is measured, and how; only distances of the same kind are compared.
          distance: the smaller, the better.
        """
        self._distances.setdefault(kind, {})[step] = distance
        found = {
            kind: by_step[step] for kind, by_step in self._distances.items() if step in by_step
        }
        storage.write(self._path_of_distances(step), f"{json.dumps(found, indent=2)}\n".encode())

    def _path_of_distances(self, step: int) -> str:
        return os.path.join(self._directory, str(step), _DISTANCES)

    def wait(self) -> None:
        """Waits until every started save is on disk; raises UserError if one failed."""
        if self._manager is not None:
            with self._saving():
                self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Turns the exception of a save that failed in this block, or earlier, into a UserError."""
        try:
            yield
        # Full disks and lost mounts can raise any exception.
        except Exception as error:
            complete = []
            with contextlib.suppress(Exception):
                complete = self._manager.all_steps(read=True)
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error):
                reason = "no space left on the device"
            last = f"step {max(complete)}" if complete else "none"
            raise UserError(
                f"a checkpoint could not be saved in {self._directory}: {reason}; "
                f"last complete checkpoint: {last}"
            ) from None

    def restore(self, step: int, like: Any) -> Any:
        """Returns the state at one step.

        Args:
          step: one of `steps()`.
          like: a tree of arrays, or of their shapes, which the state must match.

        Raises:
          UserError: if the checkpoint is intact but holds something else.
          Exception: whatever orbax raises on a damaged checkpoint, or ValueError if a checksum differs.
        """
        item = ocp.args.Composite
        meta = self._manager.restore(step, args=item(meta=ocp.args.JsonRestore())).meta
        if meta.pop("crc32_of_this") != _checksum(meta):
            raise ValueError("a checksum differs")
        path = os.path.join(self._directory, str(step))
        if meta["format"] != FORMAT:
            raise UserError(
                f"{path} has format {meta['format']}; this version reads format {FORMAT}"
            )
        if differing := differences(meta["leaves"], _describe(like), most=3):
            raise UserError(f"{path} does not match this network and optimizer: {differing}")
        target = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), like)
        arguments = item(state=ocp.args.StandardRestore(target))
        state = self._manager.restore(step, args=arguments).state
        if meta["crc32"] != _checksums(state):
            raise ValueError("a checksum differs")
        return state

    def load(self, like: Any, step: int | None = None) -> tuple[int, Any] | None:
        """Returns (step, state) of the newest intact checkpoint, or None if there are no checkpoints.

        A warning names newer checkpoints that are damaged. Once an older one proves intact, they are moved to
        `<workdir>/damaged/`, so that training can save these steps again.

        Args:
          like: as for `restore`.
          step: read this step instead of the newest.

        Raises:
          UserError: if there are checkpoints but none is intact, or none is at `step`; then nothing is moved.
        """
        state = None

        def find() -> int | None:
            nonlocal state
            if step is not None:
                state = self._restore_one(step, like)
                return step
            newest, state = self._restore_newest(like)
            return newest

        found = distributed.on_first("to read the checkpoint", find)
        return None if found is None else (found, distributed.broadcast(state, like))

    def _restore_one(self, step: int, like: Any) -> Any:
        if step not in self.steps():
            raise UserError(
                f"{self._directory} holds no checkpoint of step {step}, only of steps {self.steps()}"
            )
        try:
            return self.restore(step, like)
        except UserError:
            raise
        except Exception as error:  # many kinds, as below
            reason = f"{type(error).__name__}: {one_line(str(error))[:100]}"
            raise UserError(f"{self._directory}/{step} is damaged ({reason})") from None

    def _restore_newest(self, like: Any) -> tuple[int, Any] | tuple[None, None]:
        steps, damaged = self.steps(), []
        for step in steps:
            try:
                state = self.restore(step, like)
            except UserError:
                raise
            # Truncated data, damaged metadata and missing files can raise any exception.
            except Exception as error:
                _log.warning(
                    "checkpoint %d is damaged (%s); trying the previous one",
                    step,
                    f"{type(error).__name__}: {one_line(str(error))[:100]}",
                )
                damaged.append(step)
                continue
            if not self._read_only:
                for bad in damaged:
                    self._set_aside(bad)
            return step, state
        if steps:
            raise UserError(
                f"no checkpoint in {self._directory} can be read: {steps} are all damaged; "
                "move that directory away to start over"
            )
        return None, None

    def _set_aside(self, step: int) -> None:
        folder = os.path.join(self._workdir, "damaged")
        storage.make_directory(folder)
        # In object storage a directory exists only while it holds a file.
        storage.write(os.path.join(folder, "README.txt"), _ABOUT_DAMAGED)
        target, number = os.path.join(folder, str(step)), 1
        while storage.exists(target):
            number += 1
            target = os.path.join(folder, f"{step}_{number}")
        with storage.at(os.path.join(self._directory, str(step))) as there:
            there.rename(target)
        self._manager.reload()
        for by_step in self._distances.values():
            by_step.pop(step, None)
        _log.warning("checkpoint %d was moved to %s", step, target)
