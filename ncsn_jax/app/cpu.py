"""Chooses how many JAX devices a machine without an accelerator has. Nothing of JAX is imported here."""

import contextlib
import os
import pathlib
import re
import sys

from ncsn_jax.errors import UserError

# A step of a network of fewer features takes a tenth less time on a device for each core than on one
# device whose convolutions are spread over the cores; with 128 as long, and more memory (two cores).
_FEATURES_FOR_ONE_DEVICE = 96
# More devices than these, or smaller parts of a batch, cost memory and time for little.
_MOST_CPU_DEVICES, _EXAMPLES_PER_DEVICE = 8, 4

# The share of the cores' time that a container has.
_CPU_LIMIT = pathlib.Path("/sys/fs/cgroup/cpu.max")


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


def check_environment() -> None:
    """Raises UserError if `$JAX_NUM_CPU_DEVICES` is no number. Call it before JAX is imported."""
    chosen = os.environ.get("JAX_NUM_CPU_DEVICES")
    if chosen is not None and not re.fullmatch("[1-9][0-9]{0,4}", chosen):
        # Or JAX fails too, where it is imported to end the run.
        del os.environ["JAX_NUM_CPU_DEVICES"]
        raise UserError(f"$JAX_NUM_CPU_DEVICES={chosen!r} must be a whole number, 1 or more")


def use_cores(config) -> None:
    """Lets JAX make as many devices of the CPU as suit a configuration, unless the environment says."""
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    if "JAX_NUM_CPU_DEVICES" in os.environ or (devices := devices_for(config)) is None:
        return
    os.environ["JAX_NUM_CPU_DEVICES"] = str(devices)
    if "jax" in sys.modules:  # by the user's configuration, and it has read the environment
        sys.modules["jax"].config.update("jax_num_cpu_devices", devices)
