"""Chooses how many JAX devices a machine without an accelerator has. Nothing of JAX is imported here."""

import contextlib
import os
import pathlib
import re

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


def devices_for(config) -> int | None:
    """Returns how many devices JAX should make of the CPU, where there is no accelerator.

    One for each core, so that all compute parts of a batch; or one alone, which spreads its convolutions over
    the cores, where that is as fast, as every device holds the whole state. Each gets as many examples of
    `config.training.batch_size`, and computes them in `config.training.microbatches` parts.

    Returns:
      The number, or None if the environment chooses one or the configuration's check will refuse it.

    Raises:
      UserError: if `$JAX_NUM_CPU_DEVICES` is no number. Importing JAX would fail then.
    """
    chosen = os.environ.get("JAX_NUM_CPU_DEVICES")
    if chosen is not None and not re.fullmatch("[1-9][0-9]{0,4}", chosen):
        del os.environ["JAX_NUM_CPU_DEVICES"]  # JAX is also imported to end the run
        raise UserError(f"$JAX_NUM_CPU_DEVICES={chosen!r} must be a whole number, 1 or more")
    if chosen or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return None
    try:
        features, training = config.model.features, config.training
        size, parts = training.batch_size, training.microbatches
    except (AttributeError, KeyError):
        return None
    if not all(isinstance(number, int) and number > 0 for number in (features, size, parts)):
        return None
    most = min(cores(), _MOST_CPU_DEVICES, size // _EXAMPLES_PER_DEVICE)
    if features >= _FEATURES_FOR_ONE_DEVICE:
        most = 1
    return next((n for n in range(most, 1, -1) if size % (n * parts) == 0), 1)
