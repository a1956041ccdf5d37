"""Joins several processes into one run with `jax.distributed`: they find one another, agree, and time out.

Process 0 alone reads and writes the work directory. It sends the others what it read, bit for bit, or the
error it found. Every wait for the others has a limit. With one process, each function here does nothing or
returns its argument.
"""

import contextlib
import importlib.util
import json
import logging
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ncsn_jax.app.signals import say
from ncsn_jax.errors import UserError, differences

# JAX's runtime ends all processes once one has been silent for this long.
_HEARTBEAT_SECONDS = 30

# Slurm and Open MPI put the number of tasks into these variables.
_TASKS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
# A machine with TPUs, which may be part of a pod, has this library and these device files.
_TPU_LIBRARY, _TPU_DEVICES = "libtpu", ("accel*", "vfio/[0-9]*")

AGAIN = "run the same command on all hosts to continue from the last checkpoint"
_TOGETHER = (
    "--coordinator, --num_processes and --process_id must be set together, as must "
    "$JAX_COORDINATOR_ADDRESS, $JAX_NUM_PROCESSES and $JAX_PROCESS_ID"
)

# How long a process waits for the others, in seconds.
_patience = 600.0


def find(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> tuple[str | None, int | None, int | None] | None:
    """Returns how the processes of this run find one another, or None if this is the only one.

    Args:
      coordinator: HOST:PORT of process 0, or None for `$JAX_COORDINATOR_ADDRESS`.
      num_processes: their number, or None for `$JAX_NUM_PROCESSES`; 1 for this process alone, which
        overrides the environment.
      process_id: this process's number, from 0, or None for `$JAX_PROCESS_ID`.

    Returns:
      The three arguments, completed. All are None if JAX should look for a TPU pod, Slurm or Open MPI:
      this machine has TPUs or the environment names several tasks.

    Raises:
      UserError: if the three do not fit together.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS") or None
    num_processes = _number(num_processes, "num_processes")
    process_id = _number(process_id, "process_id")
    if num_processes == 1:
        return None
    if coordinator is not None:
        _check_address(coordinator)
    if num_processes is None and process_id is None:
        if _in_cluster():
            return coordinator, None, None
        if coordinator is None:
            return None
    if None in (coordinator, num_processes, process_id):
        raise UserError(_TOGETHER)
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} must be at least 0 and below --num_processes={num_processes}"
        )
    return coordinator, num_processes, process_id


def _check_address(coordinator: str) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 65536:
        raise UserError(
            f"--coordinator={coordinator!r} must be HOST:PORT, with a port from 1 to 65535"
        )


def _number(value: int | None, name: str) -> int | None:
    """Returns a flag's value, or its environment variable's."""
    text = os.environ.get(f"JAX_{name.upper()}")
    if value is not None or text is None:
        return value
    try:
        return int(text)
    except ValueError:
        raise UserError(f"$JAX_{name.upper()}={text!r} must be an integer") from None


def _in_cluster() -> bool:
    if any(os.environ.get(name, "1") != "1" for name in _TASKS):
        return True
    has_library = importlib.util.find_spec(_TPU_LIBRARY) is not None
    return has_library and any(any(pathlib.Path("/dev").glob(p)) for p in _TPU_DEVICES)


def start(
    coordinator: str | None, num_processes: int | None, process_id: int | None, patience: float
) -> None:
    """Joins the other processes of the run. Call it before using any device.

    Args:
      coordinator, num_processes, process_id: as `find` returns them.
      patience: seconds to wait for the others, now and later, > 0.

    Raises:
      UserError: if it cannot find them.
    """
    global _patience
    _patience = patience
    # `signals` handles SIGTERM instead.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _limit(f"to connect{f' at {coordinator}' if coordinator else ''}", patience):
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                initialization_timeout=int(patience) + 60,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=int(patience) + 60,
            )
            jax.process_count()  # waits for the others again, to learn their devices
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        # A TPU machine outside a pod has no others to find.
        if coordinator is None and "coordinator_address" in reason:
            return
        raise UserError(
            f"cannot connect to the other processes of this run ({reason}); --num_processes=1 runs on "
            "this host alone"
        ) from None


def count() -> int:
    """Returns the number of processes."""
    return jax.process_count()


def is_first() -> bool:
    """Returns whether this process reads and writes the work directory."""
    return jax.process_index() == 0


def limit(what: str, factor: float = 1.0) -> contextlib.AbstractContextManager:
    """Ends the process if its block, a wait for the others, outlasts `factor` times the patience.

    It cannot raise an exception, because the waiting thread is inside the runtime.
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


def meet(what: str) -> None:
    """Waits until all processes have called it."""
    on_first(what, lambda: None)


def on_first(what: str, function: Callable[[], Any]) -> Any:
    """Runs a function in process 0 and returns its result, which JSON can express, in all of them.

    Args:
      what: what it does, for the message when a wait times out.
      function: takes no arguments; all processes raise its UserError.
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
        data = np.frombuffer(json.dumps(outcome).encode(), np.uint8)
        length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
        data = multihost_utils.broadcast_one_to_all(np.resize(data, length))
        outcome = json.loads(np.asarray(data).tobytes())
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["result"]


def agree(what: str, values: Mapping[str, Any]) -> None:
    """Raises UserError unless all processes have the same values, which JSON can express.

    Args:
      what: what the values belong to, for the message.
      values: the values by name.
    """
    mine = json.loads(json.dumps(dict(values)))
    first = on_first(f"to compare {what}", lambda: mine)
    if named := differences(first, mine):
        raise UserError(f"process {jax.process_index()} differs from process 0 in {what}: {named}")


def broadcast(tree: Any, like: Any) -> Any:
    """Returns the tree of process 0, bit for bit, in all processes.

    Args:
      tree: numpy arrays; only process 0's are used.
      like: a tree of arrays, or of their shapes, of the same structure.
    """
    if count() == 1:
        return tree
    mine = tree if is_first() else jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    # A broadcast is a sum, which would turn -0.0 into 0.0; bytes survive it.
    mine = jax.tree.map(lambda leaf: np.frombuffer(np.asarray(leaf).tobytes(), np.uint8), mine)
    with limit("to share the state"):
        found = multihost_utils.broadcast_one_to_all(mine)
    return jax.tree.map(
        lambda data, leaf: np.array(data).view(leaf.dtype).reshape(leaf.shape), found, like
    )


def gather(array: np.ndarray) -> np.ndarray:
    """Returns every process's array, `[processes, ...]`, in all processes."""
    if count() == 1:
        return array[None]
    with limit("to exchange results"):
        return np.asarray(multihost_utils.process_allgather(array))


def end(status: int) -> None:
    """Ends a process that failed: at once if others wait for it, so that they notice."""
    if not jax.distributed.is_initialized():
        sys.exit(status)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)
