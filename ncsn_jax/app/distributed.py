"""Several processes as one run: how they find one another, agree, and never wait for ever.

The engine is JAX's own runtime, `jax.distributed`, which `start` starts with what `launch` found. Hidden here
are how values go from one process to the others, and that every wait has a limit. Process 0 alone reads and
writes the work directory; the others get what it read, to the bit, or the mistake that it found. With one
process every function here is the identity, and nothing waits.
"""

import contextlib
import json
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ncsn_jax.app import launch
from ncsn_jax.app.signals import say
from ncsn_jax.errors import UserError, differences

# Without a sign of life for so long, a process counts as dead.
_HEARTBEAT_SECONDS = 30

AGAIN = "the same command on all hosts continues from the last checkpoint"

# How long a process waits for the others, in seconds.
_patience = 600.0


def start(launched: launch.Launch, patience: float) -> None:
    """Joins the other processes of the run. Call it before any device is used.

    Args:
      launched: how they find one another.
      patience: seconds to wait for the others, here and later, > 0.

    Raises:
      UserError: if they cannot be found.
    """
    global _patience
    _patience = patience
    # SIGTERM is for `signals`, with one process and with several.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        where = f" at {launched.coordinator}" if launched.coordinator else ""
        with _limit(f"to connect{where}", patience):
            jax.distributed.initialize(
                launched.coordinator,
                launched.num_processes,
                launched.process_id,
                initialization_timeout=int(patience) + 60,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=int(patience) + 60,
            )
            jax.process_count()  # meets the others again, to know all devices
    except ValueError as error:
        # On a machine with a TPU that is no part of a pod there is nothing to be found.
        if launched.coordinator is not None or "coordinator_address" not in str(error):
            raise UserError(
                f"the processes of this run cannot be found: {_first_line(error)}"
            ) from None
    except Exception as error:
        raise UserError(
            f"the processes of this run cannot be joined ({_first_line(error)}); --num_processes=1 runs "
            "on this host alone"
        ) from None


def meet(what: str) -> None:
    """Waits until all processes have come so far."""
    on_first(what, lambda: None)


def count() -> int:
    """Returns the number of processes."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this is the process that reads and writes the work directory."""
    return jax.process_index() == 0


def limit(what: str, factor: float = 1.0) -> contextlib.AbstractContextManager:
    """Ends the process if what is inside, a wait for the others, outlasts `factor` times the patience.

    It cannot be an exception: the thread that waits is inside the runtime.
    """
    return contextlib.nullcontext() if count() == 1 else _limit(what, factor * _patience)


@contextlib.contextmanager
def _limit(what: str, seconds: float) -> Iterator[None]:
    def give_up() -> None:
        say(f"error: waited {seconds:.0f} s for the other processes {what} (--patience); {AGAIN}")
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def agree(what: str, values: Mapping[str, Any]) -> None:
    """Raises UserError unless all processes have the same values, which JSON can express.

    Args:
      what: the values belong to, for the message.
      values: by name.
    """
    mine = json.loads(json.dumps(dict(values)))
    first = on_first(f"to compare {what}", lambda: mine)
    if differing := differences(first, mine):
        raise UserError(
            f"process {jax.process_index()} differs from process 0 in {what}: {differing}"
        )


def on_first(what: str, function: Callable[[], Any]) -> Any:
    """Runs a function in process 0 and returns its result, which JSON can express, in all of them.

    Args:
      what: it does, for the message of a process that waits in vain.
      function: takes nothing; its UserError is raised in all processes.
    """
    if count() == 1:
        return function()
    outcome = {}
    if is_first():
        try:
            outcome = {"result": function()}
        except UserError as error:
            outcome = {"error": str(error)}
    with limit(what):
        outcome = json.loads(_share(json.dumps(outcome)))
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["result"]


def broadcast(tree: Any, like: Any) -> Any:
    """Returns the tree of process 0, bit for bit, in all processes.

    Args:
      tree: of numpy arrays; looked at in process 0 only.
      like: a tree of arrays, or of their shapes, of the same structure.
    """
    if count() == 1:
        return tree

    leaves, structure = jax.tree.flatten(like)
    sizes = [math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves]
    # As bytes, since the sum behind a broadcast would turn -0.0 into 0.0; and in one piece.
    mine = np.zeros(sum(sizes), np.uint8)
    if is_first():
        parts = [np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
        mine = np.frombuffer(b"".join(parts), np.uint8)
    with limit("to share the state"):
        found = np.asarray(multihost_utils.broadcast_one_to_all(mine))
    pieces = np.split(found, np.cumsum(sizes)[:-1])
    arrays = [
        np.array(piece).view(leaf.dtype).reshape(leaf.shape)
        for piece, leaf in zip(pieces, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, arrays)


def gather(array: np.ndarray) -> np.ndarray:
    """Returns the arrays of all processes `[processes, ...]`, in all of them."""
    if count() == 1:
        return array[None]
    with limit("to exchange results"):
        return np.asarray(multihost_utils.process_allgather(array))


def end(status: int) -> None:
    """Ends a process that failed: at once where others wait for it, so that they notice."""
    if not _alone():
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


def _alone() -> bool:
    try:
        return not jax.distributed.is_initialized() or jax.process_count() == 1
    except RuntimeError:  # of devices that cannot be found
        return False


def _share(text: str) -> str:
    """Returns the text of process 0 in all processes."""
    data = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    mine = data if is_first() else np.zeros(length, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes().decode()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
