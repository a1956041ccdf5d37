"""Which processes and CPU devices a run has, and what memory, before anything of JAX is imported.

Hidden here are the names of flags and environment variables, what they must look like, how a TPU is noticed,
and how the cores and the memory of a machine without an accelerator are put to use.
"""

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import re
import sys

from ncsn_jax.errors import UserError

# Several tasks, as Slurm and Open MPI count them.
_TASKS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
# What a machine with TPUs has, which may be part of a pod: JAX's library for them, and devices.
_TPU_LIBRARY, _TPU_DEVICES = "libtpu", ("accel*", "vfio/[0-9]*")

# A step of a network of fewer features takes a tenth less time on a device for each core than on one
# device whose convolutions are spread over the cores; with 128 as long, and more memory (two cores).
_FEATURES_FOR_ONE_DEVICE = 96
# More devices than these, or smaller parts of a batch, cost memory and time for little.
_MOST_CPU_DEVICES, _EXAMPLES_PER_DEVICE = 8, 4

# The share of the cores' time that a container has.
_CPU_LIMIT = pathlib.Path("/sys/fs/cgroup/cpu.max")

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


def cores() -> int:
    """Returns how many cores this process may use; in a container, of how many it may use the time."""
    count = os.cpu_count() or 1
    with contextlib.suppress(AttributeError):  # only Linux tells
        count = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # without a limit it says "max"
        quota, period = _CPU_LIMIT.read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    return count


def cpu_devices(features: int, batch_size: int, microbatches: int = 1) -> int:
    """Returns how many devices the CPU should be for JAX, where there is no accelerator.

    One for each core, so that all compute parts of a batch; or one alone, which spreads its convolutions over
    the cores, where that is as fast, as every device holds the whole state.

    Args:
      features: of the network's widest resolution, its narrowest convolutions.
      batch_size: of training; every device gets as many examples.
      microbatches: in which each device computes them.
    """
    if features >= _FEATURES_FOR_ONE_DEVICE:
        return 1
    most = min(cores(), _MOST_CPU_DEVICES, batch_size // _EXAMPLES_PER_DEVICE)
    fitting = (n for n in range(most, 1, -1) if batch_size % (n * microbatches) == 0)
    return next(fitting, 1)


def devices_for(config) -> int | None:
    """Returns the `cpu_devices` of a configuration, or None for one that its check will refuse."""
    with contextlib.suppress(AttributeError, KeyError):
        model, training = config.model, config.training
        numbers = model.features, training.batch_size, training.microbatches
        if all(isinstance(number, int) and number > 0 for number in numbers):
            return cpu_devices(*numbers)
    return None


def use_cores(config) -> None:
    """Lets JAX make as many devices of the CPU as suit a configuration, unless the environment says.

    Raises:
      UserError: if what it says is no number of devices.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    chosen = os.environ.get("JAX_NUM_CPU_DEVICES")
    if chosen is not None and not re.fullmatch("[1-9][0-9]{0,4}", chosen):
        # Or JAX fails too, where it is imported to end the run.
        del os.environ["JAX_NUM_CPU_DEVICES"]
        raise UserError(f"$JAX_NUM_CPU_DEVICES={chosen!r} must be a whole number, 1 or more")
    if chosen is not None or (devices := devices_for(config)) is None:
        return
    os.environ["JAX_NUM_CPU_DEVICES"] = str(devices)
    if "jax" in sys.modules:  # by the user's configuration, and it has read the environment
        sys.modules["jax"].config.update("jax_num_cpu_devices", devices)
