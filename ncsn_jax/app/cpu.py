"""Chooses how many JAX devices to make of a CPU. This module does not import JAX."""

import contextlib
import os
import pathlib
import re

from ncsn_jax.errors import UserError

# With fewer features a network trains faster on one device per core than on one device that spreads its
# convolutions over the cores. Larger networks gain nothing from it, and take more memory.
_FEATURES_FOR_ONE_DEVICE = 96
# More devices, or fewer examples on each, cost memory and time for little gain.
_MAX_CPU_DEVICES, _EXAMPLES_PER_DEVICE = 8, 4

# A container's share of the cores' time.
_CPU_LIMIT = pathlib.Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """Returns how many cores this process may use; in a container, how many cores' time."""
    count = os.cpu_count() or 1
    with contextlib.suppress(AttributeError):  # only Linux has it
        count = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # "max" if there is no limit
        quota, period = _CPU_LIMIT.read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    return count


def devices_for(config) -> int | None:
    """Returns how many devices JAX should make of the CPU if there is no accelerator.

    One device per core shards the batch over the cores. A single device spreads its convolutions over them;
    it is chosen where that is as fast, because every device holds the whole state. The devices share
    `config.training.batch_size` evenly; each computes its share in `config.training.microbatches` parts.

    Returns:
      The number, or None if the environment chooses one or the configuration's check will refuse it.

    Raises:
      UserError: if `$JAX_NUM_CPU_DEVICES` is not a number, because importing JAX would then fail.
    """
    chosen = os.environ.get("JAX_NUM_CPU_DEVICES")
    if chosen is not None and not re.fullmatch("[1-9][0-9]{0,4}", chosen):
        del os.environ["JAX_NUM_CPU_DEVICES"]  # ending the run imports JAX too
        raise UserError(f"$JAX_NUM_CPU_DEVICES={chosen!r} must be an integer from 1 to 99999")
    if chosen or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return None
    try:
        features, training = config.model.features, config.training
        size, parts = training.batch_size, training.microbatches
    except (AttributeError, KeyError):
        return None
    if not all(isinstance(number, int) and number > 0 for number in (features, size, parts)):
        return None
    most = min(cores(), _MAX_CPU_DEVICES, size // _EXAMPLES_PER_DEVICE)
    if features >= _FEATURES_FOR_ONE_DEVICE:
        most = 1
    return next((n for n in range(most, 1, -1) if size % (n * parts) == 0), 1)
