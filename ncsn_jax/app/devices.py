"""Runs one program on every device of one host or many; `pmap` is used here only.

This module replicates a state and reads it back, shards batches, and maps the pure functions of `training`
and `sampling` over the devices.
"""

import contextlib
import hashlib
import math
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ncsn_jax.app import cpu
from ncsn_jax.app.data import cache
from ncsn_jax.app.packing import Packing
from ncsn_jax.errors import UserError, one_line

AXIS = "batch"


@contextlib.contextmanager
def jax_defaults() -> Iterator[None]:
    """Restores the defaults of JAX settings that would change a run's numbers, or stop it.

    The environment or a notebook may have set them. This decorates everything that computes part of a run.
    """
    with (
        jax.default_prng_impl("threefry2x32"),
        jax.threefry_partitionable(True),
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.default_matmul_precision(None),
        jax.transfer_guard("allow"),
        jax.disable_jit(False),
    ):
        yield


def check() -> None:
    """Raises UserError if there are no devices of the kind `$JAX_PLATFORMS` names."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # JAX raises either
        named = jax.config.jax_platforms
        raise UserError(
            f"JAX finds no devices for $JAX_PLATFORMS={named!r}; leave it unset, or set it to 'cpu'"
            + one_line(f" ({error})" if str(error) else "")
        ) from None


def keep_compiled() -> None:
    """Caches what JAX compiles in the cache directory, unless the environment sets another."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        machine = hashlib.sha256(f"{platform.node()} {platform.machine()}".encode()).hexdigest()[:8]
        directory = os.path.join(cache.directory(), f"compiled-{machine}")
        jax.config.update("jax_compilation_cache_dir", directory)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # Initialising a network compiles many small programs, which together take seconds.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def replicate(tree: Any) -> Any:
    """Puts a host tree on every local device, with a leading axis `[local devices, ...]`.

    The placement is that of `pmap`'s outputs, so the first step sees the same as all later ones. A CPU may
    share memory with the tree, so do not write to it afterwards.
    """
    devices = jax.local_devices()
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
    tree = jax.tree.map(lambda x: np.broadcast_to(x, (len(devices), *np.shape(x))), tree)
    return jax.device_put(tree, sharding)


def to_host(tree: Any) -> Any:
    """Returns the first local replica as numpy arrays that share no memory."""
    return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data).reshape(x.shape[1:]), tree)


def shard_batch(batch: Any) -> Any:
    """Splits arrays `[K, B, ...]` over the local devices: `[devices, K, B / devices, ...]`."""
    count = jax.local_device_count()

    def split(array: np.ndarray) -> np.ndarray:
        steps, size = array.shape[:2]
        return np.moveaxis(array.reshape(steps, count, size // count, *array.shape[2:]), 1, 0)

    return jax.tree.map(split, batch)


# XLA for CPUs removes the barriers that delay the recomputation of a rematerialized block. It then
# schedules the recomputation early, which saves no memory. This option keeps the barriers.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}

# By default XLA for CPUs leaves reductions, matrix products and convolutions to YNNPACK, which runs each
# convolution on one thread. That is best with one device per core. With fewer devices than cores, XLA's
# own convolutions make steps faster.
_OWN_CONVOLUTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def _cpu_options(remat: bool) -> dict[str, str] | None:
    """Returns the compiler options of the training step, or None (not `{}`) if there are none.

    Several processes call the mapped function, which finds only an executable compiled with None.
    """
    if jax.default_backend() != "cpu" or jax.process_count() > 1:
        return None
    # XLA refuses options it does not know.
    own = jax.__version_info__ < (0, 13) and cpu.cores() >= 2 * jax.local_device_count()
    return (_OWN_CONVOLUTIONS if own else {}) | (KEEP_BARRIERS if remat else {}) or None


@contextlib.contextmanager
def _kept_out_of_cache(is_unsafe: bool) -> Iterator[None]:
    """Keeps compiled programs out of JAX's cache if a cached one would be unsafe."""
    name = "jax_persistent_cache_min_compile_time_secs"
    least = getattr(jax.config, name)
    jax.config.update(name, math.inf if is_unsafe else least)
    try:
        yield
    finally:
        jax.config.update(name, least)


class TrainSteps:
    """The training step, compiled for all devices of all processes.

    Args:
      train_steps: a `functools.partial` of `training.train_steps` with its options but `axis_name`.
      state: a `TrainState` of host arrays; its values are not used.
      images: uint8 `[local devices, steps, B / all devices, ...]`, as made by `shard_batch`; or a pair of
        these and their classes.
      seed: the run's seed.
      remat: whether the network is rematerialized.
      packed: whether to pack the parameters on a CPU.

    Attributes:
      operations: floating-point operations on one device as XLA counts them, which counts a loop's body once;
        None from some backends.
      memory: the compiler's figures for the memory of the step; None from some backends.
    """

    def __init__(
        self,
        train_steps: Callable,
        state: Any,
        images: Any,
        seed: np.ndarray,
        *,
        remat: bool = False,
        packed: bool = True,
    ):
        is_cpu = jax.default_backend() == "cpu"
        self._packing = packing = Packing(state.params) if is_cpu and packed else None
        self._constant = seed, first_examples(images), replicate(packing.offsets if packing else ())
        mapped = _map_train_steps(train_steps, packing, jax.device_count())
        lowered = mapped.lower(*self._arguments(self.to_devices(state), images, 0))
        # XLA for CPUs crashes in a loop of averages over devices if another process compiled it.
        is_loop = jax.device_count() > 1 and jax.tree.leaves(images)[0].shape[1] > 1
        with _kept_out_of_cache(is_loop and is_cpu):
            compiled = lowered.compile(_cpu_options(remat))
        self.operations = (compiled.cost_analysis() or {}).get("flops")
        self.memory = compiled.memory_analysis()
        # Only the mapped function takes arrays of several processes; it reuses the executable.
        self._run = mapped if jax.process_count() > 1 else compiled

    def to_devices(self, state: Any) -> Any:
        """Puts a host state on every local device, in a form private to this object."""
        return replicate(self._packing.pack(state) if self._packing else state)

    def to_host(self, state: Any) -> Any:
        """Undoes `to_devices` for a state or a part of one."""
        state = to_host(state)
        return self._packing.unpack(state) if self._packing else state

    def __call__(self, state: Any, images: Any, stop_signal: int = 0) -> tuple[Any, Any, jax.Array]:
        """Runs the steps.

        Args:
          state: as made by `to_devices`; it is donated.
          images: of the shape and type the step was compiled for.
          stop_signal: the signal that this process received, or 0.

        Returns:
          The next state, the metrics, and the largest signal of all processes, int32 `[local devices]`.
        """
        return self._run(*self._arguments(state, images, stop_signal))

    def _arguments(self, state: Any, images: Any, stop_signal: int) -> tuple:
        seed, first, offsets = self._constant
        return state, images, seed, first, _per_device(stop_signal), offsets


def _map_train_steps(
    train_steps: Callable, packing: Packing | None, count: int, targets: Sequence | None = None
) -> Callable:
    """Maps `run(state, images, seed, first, stop_signal, offsets)` over devices, donating the state.

    Args:
      train_steps: as `TrainSteps` gets it.
      packing: packs the state's parameters; None if they are not packed.
      count: the number of devices of all processes.
      targets: the devices, if not the local ones.
    """
    # XLA for CPUs spends an operation and copies on an average over one device.
    axis_name = AXIS if count > 1 else None
    objective = train_steps.keywords["objective"]

    def run(state, images, seed, first, stop_signal, offsets):
        def score_fn(params, keys, **given):
            return objective.score_fn(packing.view(params, offsets), keys, **given)

        options = {"objective": objective._replace(score_fn=score_fn)} if packing else {}
        state, metrics = train_steps(state, images, seed, first, axis_name=axis_name, **options)
        return state, metrics, jax.lax.pmax(stop_signal, AXIS)

    axes = (0, 0, None, 0, 0, 0)
    return jax.pmap(run, axis_name=AXIS, in_axes=axes, donate_argnums=(0,), devices=targets)


def compile_train_steps(
    train_steps: Callable,
    state: Any,
    images: Any,
    targets: Sequence,
    *,
    remat: bool = False,
    packed: bool = True,
) -> Any:
    """Compiles the training step for devices that may be elsewhere, such as a TPU topology.

    Args:
      train_steps: as `TrainSteps` gets it.
      state: a `TrainState` of shapes, without a device axis.
      images: shape and type of a device's examples, `[steps, B / all devices, ...]`, or a pair as above.
      targets: all devices of all hosts.
      remat, packed: as `TrainSteps` gets them.
    """
    is_cpu = targets[0].platform == "cpu"
    packing = Packing(state.params) if is_cpu and packed else None
    if packing:
        state = packing.pack(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), state))
    mapped = _map_train_steps(train_steps, packing, len(targets), targets)
    number, seed = jax.ShapeDtypeStruct((), np.int32), jax.ShapeDtypeStruct((), np.uint32)
    each = _on_each((state, images, number, packing.offsets if packing else ()), targets)
    state, images, number, offsets = each
    lowered = mapped.lower(state, images, seed, number, number, offsets)
    return lowered.compile(_cpu_options(remat) if is_cpu else None)


def compile_chains(advance: Callable, params: Any, indices: Any, x: Any, targets: Sequence) -> Any:
    """Compiles `advance`, as `map_chains` takes it, for devices that may be elsewhere.

    Args:
      advance: takes no arguments after the step numbers.
      params, indices, x: shapes and types on a device, without a device axis.
      targets: all devices of all hosts.
    """
    params, indices, x = _on_each((params, indices, x), targets)
    number = jax.ShapeDtypeStruct((), np.int32)
    key_data, bounds = jax.ShapeDtypeStruct((2,), np.uint32), (number, number)
    return _map_chains(advance, targets).lower(params, key_data, bounds, indices, x, ()).compile()


def _on_each(tree: Any, targets: Sequence) -> Any:
    """Returns each leaf's shape with a leading axis of devices."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((len(targets), *a.shape), a.dtype), tree)


def first_examples(images: Any) -> np.ndarray:
    """Returns the index in the global batch of each device's first example, int32 `[local devices]`.

    Hosts take their shards of a batch in the order of their numbers, devices in that of `shard_batch`.

    Args:
      images: `[local devices, steps, B / all devices, ...]`, as made by `shard_batch`, or a pair.
    """
    count, _, each = jax.tree.leaves(images)[0].shape[:3]
    return np.arange(count, dtype=np.int32) * each + jax.process_index() * count * each


def _per_device(number: int) -> np.ndarray:
    """Returns a number for every local device."""
    return np.full(jax.local_device_count(), number, np.int32)


def map_chain_start(start: Callable) -> Callable:
    """Maps `start(key_data, indices) -> x` over the local devices: indices `[devices, b]`."""
    return jax.pmap(start, axis_name=AXIS, in_axes=(None, 0))


def map_chains(advance: Callable, ready: Callable[[], None]) -> Callable:
    """Maps `advance(params, key_data, indices, x, start, stop, *per_example) -> x, finite, more`, donating x.

    `key_data` is that of one key, and `params` are replicated; `indices`, `x`, `more` and what follows the
    step numbers are `[devices, b, ...]`. `finite` covers the chains of all devices of all processes. Each of
    several processes compiles first and calls `ready`, which waits for the others: the program connects them
    when it starts, and a connection times out sooner than a compilation may end.
    """
    is_compiled, mapped = False, _map_chains(advance)

    def call(params, key_data, indices, x, start, stop, *rest):
        nonlocal is_compiled
        arguments = params, key_data, (start, stop), indices, x, rest
        if jax.process_count() > 1 and not is_compiled:
            mapped.lower(*arguments).compile()
            ready()
            is_compiled = True
        return mapped(*arguments)

    return call


def _map_chains(advance: Callable, targets: Sequence | None = None) -> Callable:
    def run(params, key_data, bounds, indices, x, rest):
        x, finite, more = advance(params, key_data, indices, x, *bounds, *rest)
        return x, jax.lax.pmin(finite.astype(np.int32), AXIS), more

    axes = (0, None, None, 0, 0, 0)
    return jax.pmap(run, axis_name=AXIS, in_axes=axes, donate_argnums=(4,), devices=targets)


def map_examples(function: Callable) -> Callable:
    """Maps `function(params, seed, indices, x)` over the local devices.

    `params` are replicated; `indices`, `x` and the results are `[devices, b, ...]`.
    """
    return jax.pmap(function, axis_name=AXIS, in_axes=(0, None, 0, 0))


def map_batches(function: Callable, params: Any) -> Callable[[np.ndarray], Any]:
    """Returns `function(params, batch)` of a batch `[B, ...]`, split over this process's devices.

    B must be a multiple of the local devices. Other processes need not take part.
    """
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (AXIS,))
    everywhere, split = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in ((), (AXIS,))
    )
    params, compiled = jax.device_put(params, everywhere), jax.jit(function)
    return lambda batch: compiled(params, jax.device_put(batch, split))
