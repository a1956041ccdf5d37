"""Finds out which processes a run has, before anything of JAX is imported."""

import dataclasses
import importlib.util
import os
import pathlib

from ncsn_jax.errors import UserError

# Several tasks, as Slurm and Open MPI count them.
_TASKS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
# What a machine with TPUs has, which may be part of a pod: JAX's library for them, and devices.
_TPU_LIBRARY, _TPU_DEVICES = "libtpu", ("accel*", "vfio/[0-9]*")

_TOGETHER = (
    "--coordinator, --num_processes and --process_id belong together, as do $JAX_COORDINATOR_ADDRESS, "
    "$JAX_NUM_PROCESSES and $JAX_PROCESS_ID"
)


@dataclasses.dataclass(frozen=True)
class Launch:
    """What is known of the processes of a run; None is for JAX to find out.

    Attributes:
      coordinator: HOST:PORT of process 0.
      num_processes: their number.
      process_id: which of them this is, from 0.
    """

    coordinator: str | None
    num_processes: int | None
    process_id: int | None


def find(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Launch | None:
    """Returns how the processes of this run find one another, or None if there is but one.

    Args:
      coordinator: HOST:PORT of process 0, or None for `$JAX_COORDINATOR_ADDRESS`.
      num_processes: their number, or None for `$JAX_NUM_PROCESSES`; 1 for this process alone, whatever
        the environment says.
      process_id: which of them this is, from 0, or None for `$JAX_PROCESS_ID`.

    Where none of the three is given, JAX is to look for a TPU pod, Slurm or Open MPI, provided that this
    machine has TPUs or the environment speaks of several tasks.

    Raises:
      UserError: if the three do not fit together.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _number(num_processes, "num_processes")
    process_id = _number(process_id, "process_id")
    if num_processes == 1:
        return None
    given = [x is not None for x in (num_processes, process_id)]
    if any(given) and not (all(given) and coordinator):
        raise UserError(_TOGETHER)
    if all(given) and not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} must be at least 0 and below --num_processes={num_processes}"
        )
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 65536:
            raise UserError(
                f"--coordinator={coordinator!r} must be HOST:PORT, with a port from 1 to 65535"
            )
        if not any(given) and not _in_cluster():
            raise UserError(_TOGETHER)
    elif not _in_cluster():
        return None
    return Launch(coordinator, num_processes, process_id)


def _number(value: int | None, name: str) -> int | None:
    text = os.environ.get(f"JAX_{name.upper()}")
    if value is not None or text is None:
        return value
    try:
        return int(text)
    except ValueError:
        raise UserError(f"$JAX_{name.upper()}={text!r} must be a whole number") from None


def _in_cluster() -> bool:
    if any(os.environ.get(name, "1") != "1" for name in _TASKS):
        return True
    has_library = importlib.util.find_spec(_TPU_LIBRARY) is not None
    return has_library and any(any(pathlib.Path("/dev").glob(p)) for p in _TPU_DEVICES)
