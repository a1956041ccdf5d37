"""The one place where `pmap` is used: the same program on every device, on one host or many.

Everything that knows about devices is here: how a state is replicated and read back, how a batch is
spread, and how the pure functions of `training` and `sampling` are mapped. One device needs no special
case.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

AXIS = "batch"


def replicate(tree: Any) -> Any:
    """Puts a host tree on every local device, with a leading axis `[local devices, ...]`.

    It is mapped under the same axis name as the steps, so that the first step and all later ones see
    the same sharding and compile once.
    """
    count = jax.local_device_count()
    return jax.pmap(lambda _, t: t, axis_name=AXIS, in_axes=(0, None))(np.arange(count), tree)


def to_host(tree: Any) -> Any:
    """Returns the first local replica as numpy arrays that alias nothing."""
    return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data).reshape(x.shape[1:]), tree)


def spread(batch: np.ndarray) -> np.ndarray:
    """Splits `[K, B, ...]` over the local devices: `[devices, K, B / devices, ...]`."""
    count = jax.local_device_count()
    steps, size = batch.shape[:2]
    return np.moveaxis(batch.reshape(steps, count, size // count, *batch.shape[2:]), 1, 0)


class _WithFirst:
    """`function(state, images, seed)` from one that is also given `first`, through all of jax's stages."""

    def __init__(self, function, compiler_options=None):
        self._function = function
        self._compiler_options = compiler_options

    def __call__(self, state, images, seed):
        return self._function(state, images, seed, first_examples(images))

    def lower(self, state, images, seed) -> "_WithFirst":
        lowered = self._function.lower(state, images, seed, first_examples(images))
        return _WithFirst(lowered, self._compiler_options)

    def compile(self) -> "_WithFirst":
        return _WithFirst(self._function.compile(self._compiler_options))

    def memory_analysis(self):
        return self._function.memory_analysis()


def first_examples(images: np.ndarray) -> np.ndarray:
    """Returns the place in the global batch of each device's first example, int32 `[local devices]`.

    Hosts take their shares of a batch in the order of their numbers, devices in that of `spread`.

    Args:
      images: `[local devices, steps, B / all devices, ...]`, as made by `spread`.
    """
    count, each = images.shape[0], images.shape[2]
    return np.arange(count, dtype=np.int32) * each + jax.process_index() * count * each


# XLA for CPUs removes the barriers before which nothing of a rematerialized block may be computed again,
# and then schedules all of it early, where it saves no memory. This keeps them.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def map_train_steps(train_steps: Callable, *, keep_barriers: bool = False) -> Callable:
    """Maps `train_steps(state, images, seed, first, axis_name=...)` over all devices, donating the state.

    The result is `f(state, images, seed)`, and can also be lowered and compiled ahead of time. Then,
    with `keep_barriers`, the program of a rematerialized network takes less memory on CPUs too.
    """

    def run(state, images, seed, first):
        return train_steps(state, images, seed, first, axis_name=AXIS)

    mapped = jax.pmap(run, axis_name=AXIS, in_axes=(0, 0, None, 0), donate_argnums=(0,))
    on_cpu = jax.default_backend() == "cpu"
    return _WithFirst(mapped, KEEP_BARRIERS if keep_barriers and on_cpu else None)


def map_chain_start(start: Callable) -> Callable:
    """Maps `start(seed, indices) -> x` over the local devices: indices `[devices, b]`."""
    return jax.pmap(start, axis_name=AXIS, in_axes=(None, 0))


def map_chains(advance: Callable) -> Callable:
    """Maps `advance(params, seed, indices, x, start, stop, *per_example)`, donating x.

    `params` are replicated; `indices`, `x` and what follows the step numbers are `[devices, b, ...]`.
    """

    def run(params, seed, bounds, indices, x, rest):
        return advance(params, seed, indices, x, *bounds, *rest)

    mapped = jax.pmap(run, axis_name=AXIS, in_axes=(0, None, None, 0, 0, 0), donate_argnums=(4,))

    def call(params, seed, indices, x, start, stop, *rest):
        return mapped(params, seed, (start, stop), indices, x, rest)

    return call
