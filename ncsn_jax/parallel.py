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


# XLA for CPUs removes the barriers before which nothing of a rematerialized block may be computed again,
# and then schedules all of it early, where it saves no memory. This keeps them.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def lower_train_steps(
    train_steps: Callable, state: Any, images: np.ndarray, seed: np.ndarray, *, remat: bool = False
) -> Callable[[], tuple[Callable, Any]]:
    """Traces `train_steps(state, images, seed, first, axis_name=...)` for all devices of all processes.

    Args:
      train_steps: the pure function.
      state: a tree of arrays, or of their shapes, without an axis of devices; only shapes are looked at.
      images: `[local devices, steps, B / all devices, ...]`, as made by `spread`.
      seed: of the run.
      remat: whether the network is rematerialized.

    Returns:
      A function that compiles what was traced, during which Python can do something else, and returns
      `f(state, images, seed, number)` and what the compiler says of its memory, which some backends do not
      tell. f donates the state and returns the next one, the metrics and, `int32[local devices]`, the
      largest of the numbers that the processes gave: so they agree on when to stop.
    """

    def run(state, images, seed, first, number):
        state, metrics = train_steps(state, images, seed, first, axis_name=AXIS)
        return state, metrics, jax.lax.pmax(number, AXIS)

    mapped = jax.pmap(run, axis_name=AXIS, in_axes=(0, 0, None, 0, 0), donate_argnums=(0,))
    first = first_examples(images)
    # Several processes cannot call the compiled program itself; the mapped function finds it, if it was
    # compiled without options and for arrays that lie on the devices as the state will.
    several = jax.process_count() > 1
    if several:
        like = replicate(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), state))
    else:
        local = jax.local_device_count()
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct((local, *a.shape), a.dtype), state)
    keep_barriers = remat and jax.default_backend() == "cpu" and not several
    lowered = mapped.lower(like, images, seed, first, _notes(0))

    def compile_() -> tuple[Callable, Any]:
        compiled = lowered.compile(KEEP_BARRIERS if keep_barriers else None)
        function = mapped if several else compiled

        def call(state, images, seed, number=0):
            return function(state, images, seed, first, _notes(number))

        return call, compiled.memory_analysis()

    return compile_


def first_examples(images: np.ndarray) -> np.ndarray:
    """Returns the place in the global batch of each device's first example, int32 `[local devices]`.

    Hosts take their shares of a batch in the order of their numbers, devices in that of `spread`.

    Args:
      images: `[local devices, steps, B / all devices, ...]`, as made by `spread`.
    """
    count, each = images.shape[0], images.shape[2]
    return np.arange(count, dtype=np.int32) * each + jax.process_index() * count * each


def _notes(number: int) -> np.ndarray:
    """Returns a number for every local device."""
    return np.full(jax.local_device_count(), number, np.int32)


def map_chain_start(start: Callable) -> Callable:
    """Maps `start(seed, indices) -> x` over the local devices: indices `[devices, b]`."""
    return jax.pmap(start, axis_name=AXIS, in_axes=(None, 0))


def map_chains(advance: Callable, ready: Callable[[], None]) -> Callable:
    """Maps `advance(params, seed, indices, x, start, stop, *per_example) -> x, sound, more`, donating x.

    `params` are replicated; `indices`, `x`, `more` and what follows the step numbers are `[devices, b, ...]`.
    What is returned says whether the chains of all devices of all processes are sound. Of several
    processes each compiles first and calls `ready`, which waits for the others: their connections, which
    are made when the program begins, do not wait as long as a compilation may take.
    """
    is_compiled = False

    def run(params, seed, bounds, indices, x, rest):
        x, sound, more = advance(params, seed, indices, x, *bounds, *rest)
        return x, jax.lax.pmin(sound.astype(np.int32), AXIS), more

    mapped = jax.pmap(run, axis_name=AXIS, in_axes=(0, None, None, 0, 0, 0), donate_argnums=(4,))

    def call(params, seed, indices, x, start, stop, *rest):
        nonlocal is_compiled
        arguments = params, seed, (start, stop), indices, x, rest
        if jax.process_count() > 1 and not is_compiled:
            mapped.lower(*arguments).compile()
            ready()
            is_compiled = True
        return mapped(*arguments)

    return call


def map_examples(function: Callable) -> Callable:
    """Maps `function(params, seed, indices, x)` over the local devices.

    `params` are replicated; `indices`, `x` and all that is returned are `[devices, b, ...]`.
    """
    return jax.pmap(function, axis_name=AXIS, in_axes=(0, None, 0, 0))
