"""The one place where `pmap` is used: the same program on every device, on one host or many.

Everything that knows about devices is here: how a state is replicated and read back, how a batch is
spread, and how the pure functions of `training` and `sampling` are mapped. One device is no special case,
but for averages over devices, which its training step does without.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ncsn_jax.app import cpu
from ncsn_jax.app.packing import Packing

AXIS = "batch"

# The elements of the largest of the small arrays: copies of larger ones take more memory than is saved. On
# accelerators, where a vector and its parts lie differently, none is small.
_LARGEST_SMALL = 2**16


def replicate(tree: Any) -> Any:
    """Puts a host tree on every local device, with a leading axis `[local devices, ...]`.

    Placed as `pmap` places what it returns, so that the first step and all later ones see the same. A CPU may
    share memory with the tree, which must not be written to afterwards.
    """
    devices = jax.local_devices()
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
    tree = jax.tree.map(lambda array: np.asarray(array)[None], tree)

    def join(*shards: jax.Array) -> jax.Array:
        shape = (len(shards), *shards[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(shards))

    return jax.tree.map(join, *(jax.device_put(tree, device) for device in devices))


def to_host(tree: Any) -> Any:
    """Returns the first local replica as numpy arrays that alias nothing."""
    return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data).reshape(x.shape[1:]), tree)


def shard_batch(batch: np.ndarray) -> np.ndarray:
    """Splits `[K, B, ...]` over the local devices: `[devices, K, B / devices, ...]`."""
    count = jax.local_device_count()
    steps, size = batch.shape[:2]
    return np.moveaxis(batch.reshape(steps, count, size // count, *batch.shape[2:]), 1, 0)


# XLA for CPUs removes the barriers before which nothing of a rematerialized block may be computed again,
# and then schedules all of it early, where it saves no memory. This keeps them.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}

# XLA for CPUs orders operations so that many can run at the same time, by which a training step gains a few
# per cent at most, and takes a third more memory. This orders them for memory; with barriers it takes more.
_SAVE_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}

# What XLA for CPUs leaves to YNNPACK: by default reductions, matrix products and convolutions. Its
# convolutions run on one thread each, which is best if every core has a device; on one device, on two
# cores, XLA's own make a step up to 1.6 times as fast. Its matrix products are no faster than XLA's, and
# each takes time in a program's first call.
_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
_REDUCTIONS = {_YNNPACK: "LIBRARY_FUSION_TYPE_REDUCE"}
_REDUCTIONS_AND_CONVOLUTIONS = {
    _YNNPACK: "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
}


def _takes_options() -> bool:
    """Whether programs can be compiled with options for CPUs.

    Several processes cannot call a compiled program itself; the mapped function finds it without options.
    """
    return jax.default_backend() == "cpu" and jax.process_count() == 1


def _has_spare_cores() -> bool:
    """Whether there are two cores for each device, or more; between one and two nothing was measured."""
    return cpu.cores() >= 2 * jax.local_device_count()


class TrainSteps:
    """The training step for all devices of all processes: traced when made; `compile` comes before calls.

    Args:
      train_steps: the pure function, `train_steps(state, images, seed, first, axis_name=, view=)`.
      state: a `TrainState` of arrays, or of their shapes, without an axis of devices; only shapes are
        looked at.
      images: `[local devices, steps, B / all devices, ...]`, as made by `shard_batch`.
      seed: of the run.
      remat: whether the network is rematerialized.
      largest_small: elements of the largest of the arrays that are packed (see `packing`); by default none
        are on accelerators.
    """

    def __init__(
        self,
        train_steps: Callable,
        state: Any,
        images: np.ndarray,
        seed: np.ndarray,
        *,
        remat: bool = False,
        largest_small: int | None = None,
    ):
        if largest_small is None:
            largest_small = _LARGEST_SMALL if jax.default_backend() == "cpu" else 0
        self._packing = packing = Packing(state.params, largest_small)
        self._first, self._offsets = first_examples(images), replicate(packing.offsets)

        # XLA for CPUs makes an operation, and copies, of an average over one device.
        axis_name = AXIS if jax.device_count() > 1 else None

        def run(state, images, seed, first, number, offsets):
            view = functools.partial(packing.view, offsets=offsets)
            state, metrics = train_steps(state, images, seed, first, axis_name=axis_name, view=view)
            return state, metrics, number if axis_name is None else jax.lax.pmax(number, AXIS)

        axes = (0, 0, None, 0, 0, 0)
        self._mapped = jax.pmap(run, axis_name=AXIS, in_axes=axes, donate_argnums=(0,))
        # Of several processes the mapped function finds the compiled program only if it was compiled for
        # arrays that lie on the devices as the state will.
        several = jax.process_count() > 1
        like = packing.pack_in(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), state))
        if several:
            like = replicate(like)
        else:
            local = jax.local_device_count()
            like = jax.tree.map(lambda a: jax.ShapeDtypeStruct((local, *a.shape), a.dtype), like)
        self._options = {}
        if _takes_options():
            library = _REDUCTIONS if _has_spare_cores() else _REDUCTIONS_AND_CONVOLUTIONS
            self._options = library | (KEEP_BARRIERS if remat else _SAVE_MEMORY)
        self._lowered = self._mapped.lower(
            like, images, seed, self._first, _per_device(0), self._offsets
        )

    def compile(self) -> Any:
        """Compiles the step and returns what memory it needs, which some backends do not tell."""
        compiled = _compile(self._lowered, self._options)
        self._function = self._mapped if jax.process_count() > 1 else compiled
        self._lowered = None
        return compiled.memory_analysis()

    def to_devices(self, state: Any) -> Any:
        """Returns the state as the devices hold it, in a form that only this object knows."""
        return replicate(self._packing.pack_in(state))

    def make_state(self, first: Callable[[Any], Any], params: Any) -> Any:
        """Returns `to_devices(first(params))`, for a `first` that treats all elements alike."""
        return replicate(first(self._packing.pack(params)))

    def weights(self, state: Any) -> Any:
        """Returns the network's parameters of a state on the devices, replicated: averaged, if they are."""
        packed = state.ema_params or state.params
        if packed.small is None:
            return self._packing.unpack(packed)
        return replicate(self._packing.unpack(to_host(packed)))

    def to_host(self, state: Any) -> Any:
        """Returns the state on the devices as numpy arrays that do not change with it."""
        return self._packing.unpack_in(to_host(state))

    def __call__(
        self, state: Any, images: np.ndarray, seed: np.ndarray, number: int = 0
    ) -> tuple[Any, Any, Any]:
        """Runs the compiled step.

        Args:
          state: on the devices; it is donated.
          images: as those that it was traced with.
          seed: of the run.
          number: of this process, by which processes agree on when to stop.

        Returns:
          The next state, the metrics and, int32 `[local devices]`, the largest of the processes' numbers.
        """
        return self._function(state, images, seed, self._first, _per_device(number), self._offsets)


def _compile(lowered: Any, options: dict[str, str]) -> Any:
    """Compiles with those of the options that this version of XLA knows."""
    try:
        return lowered.compile(options or None)
    except jax.errors.JaxRuntimeError as error:
        known = {k: v for k, v in options.items() if k not in str(error) and v not in str(error)}
        if known == options:
            raise
        return _compile(lowered, known)


def first_examples(images: np.ndarray) -> np.ndarray:
    """Returns the place in the global batch of each device's first example, int32 `[local devices]`.

    Hosts take their shares of a batch in the order of their numbers, devices in that of `shard_batch`.

    Args:
      images: `[local devices, steps, B / all devices, ...]`, as made by `shard_batch`.
    """
    count, each = images.shape[0], images.shape[2]
    return np.arange(count, dtype=np.int32) * each + jax.process_index() * count * each


def _per_device(number: int) -> np.ndarray:
    """Returns a number for every local device."""
    return np.full(jax.local_device_count(), number, np.int32)


def _compiled_ahead(mapped: Callable) -> Callable:
    """Returns a mapped function of arrays, compiled with the options that suit this machine's cores.

    Itself, where compiled programs cannot be called.
    """
    if not _takes_options():
        return mapped
    options = _REDUCTIONS if _has_spare_cores() else {}
    compiled = {}

    def call(*arguments):
        leaves, structure = jax.tree.flatten(arguments)
        # Where the arrays lie is the mapped function's, and does not differ.
        shapes = structure, tuple((a.shape, a.dtype) for a in leaves)
        if shapes not in compiled:
            compiled[shapes] = _compile(mapped.lower(*arguments), options)
        return compiled[shapes](*arguments)

    return call


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
    optimized = _compiled_ahead(mapped)

    def call(params, seed, indices, x, start, stop, *rest):
        nonlocal is_compiled
        arguments = params, seed, (start, stop), indices, x, rest
        if jax.process_count() > 1 and not is_compiled:
            mapped.lower(*arguments).compile()
            ready()
            is_compiled = True
        return optimized(*arguments)

    return call


def map_examples(function: Callable) -> Callable:
    """Maps `function(params, seed, indices, x)` over the local devices.

    `params` are replicated; `indices`, `x` and all that is returned are `[devices, b, ...]`.
    """
    mapped = jax.pmap(function, axis_name=AXIS, in_axes=(0, None, 0, 0))
    return _compiled_ahead(mapped)
