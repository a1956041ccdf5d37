"""`--mode=plan` estimates what a run takes on the local devices, or on any TPU topology.

It compiles the programs that the run would use and prints the compiler's figures: memory, arithmetic and
traffic, and the times that a roofline gives for these.
"""

import contextlib
import importlib.util
import os
import re
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies

from ncsn_jax._random import Stream
from ncsn_jax.app import build, devices, run_samplers, samplers, schema, units
from ncsn_jax.app.progress import human_bytes, human_time
from ncsn_jax.errors import UserError, one_line


class Chip(NamedTuple):
    """A device's memory in bytes, its bandwidth in bytes per second, and the FLOP/s of products.

    `float32` is at JAX's default precision: one pass of bfloat16 on TPUs, TF32 on GPUs.
    """

    memory: float
    bandwidth: float
    bfloat16: float
    float32: float


# By JAX's device names; from Google Cloud's page on each TPU version and NVIDIA's data sheets (dense).
CHIPS = {
    "TPU v5 lite": Chip(16 * 2**30, 819e9, 197e12, 197e12),
    "TPU v5": Chip(95 * 2**30, 2765e9, 459e12, 459e12),
    "TPU v6 lite": Chip(32 * 2**30, 1640e9, 918e12, 918e12),
    "NVIDIA A100-SXM4-80GB": Chip(80e9, 2039e9, 312e12, 156e12),
    "NVIDIA H100 80GB HBM3": Chip(80e9, 3350e9, 989e12, 494e12),
    "NVIDIA H200": Chip(141e9, 4800e9, 989e12, 494e12),
}

# How many bfloat16 products a TPU computes for one of float32.
_PASSES = {"default": 1, "high": 3, "highest": 6}

# The plan gives the time for this many samples.
_SAMPLES = 1000


class Program(NamedTuple):
    """The compiler's figures for a program: bytes, and FLOP and bytes of traffic per step, on each device."""

    arguments: int
    temporary: int
    code: int
    flop: float
    traffic: float

    @property
    def memory(self) -> int:
        """The total memory, in bytes."""
        return self.arguments + self.temporary + self.code


class TooLarge(Exception):
    """A program does not fit into a device's memory.

    Attributes:
      needed: the bytes it takes, or 0 if the compiler does not say.
    """

    def __init__(self, message: str):
        found = re.search(r"(?:Used |\()([\d.]+)([KMGT])\)? (?:of \S+ hbm|exceeds .* HBM)", message)
        self.needed = float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])) if found else 0.0
        why = f"it takes {human_bytes(self.needed)}" if found else one_line(message)
        super().__init__(f"does not fit: {why}")


@devices.jax_defaults()
def plan(config) -> None:
    """Prints what a configuration's run takes on the devices of `config.plan.topology`."""
    topology = schema.flatten(config).get("plan.topology")
    # The check, which needs the number of devices, refuses a topology that is missing or not a string.
    targets = find_devices(topology if isinstance(topology, str) else "local")
    count, kind, training = len(targets), targets[0].device_kind, config.training
    schema.check(config, count)
    samplers.check(config)
    hosts = len({device.process_index for device in targets})
    print(
        f"{topology}: {count} x {kind} on {hosts} host(s), {training.batch_size // count} examples of each "
        "batch per device",
        flush=True,
    )
    chip = CHIPS.get(kind)
    if chip is None:
        print(f"no figures for {kind}, so the plan gives no times and does not say whether it fits")
    try:
        program = _compile_step("training step", config, targets)
        _describe(program, chip, training.microbatches)
    except TooLarge as error:
        print(f"  {error}")
        _find_what_fits(config, targets, chip, error.needed)
        return
    if chip:
        step = _step_time(program, chip, training, training.microbatches)
        print(f"  {training.num_steps:,} steps: about {human_time(training.num_steps * step)}")
    _plan_sampling(config, targets, chip)
    if chip:
        print(
            "These are estimates from the compiler's counts. They leave out communication between devices, "
            "input, compilation, previews and checkpoints."
        )


@devices.jax_defaults()
def step_seconds(config, topology: str) -> tuple[float, int]:
    """Plans the training step alone; returns its seconds on a topology's devices, and their hosts.

    Raises:
      TooLarge: if it does not fit.
      UserError: if the topology is unknown, or there are no figures for its devices.
    """
    targets = find_devices(topology)
    schema.check(config, len(targets))
    chip, options = CHIPS.get(targets[0].device_kind), config.training
    if chip is None:
        raise UserError(f"the plan has no figures for {targets[0].device_kind}")
    program = _compile_step("training step", config, targets)
    _describe(program, chip, options.microbatches)
    hosts = len({device.process_index for device in targets})
    return _step_time(program, chip, options, options.microbatches), hosts


def find_devices(topology: str) -> list:
    """Returns the devices of this machine for 'local', or those of a TPU topology such as 'v5e:4x4'.

    Raises:
      UserError: if the topology is unknown or the TPU compiler is not installed.
    """
    if topology == "local":
        return jax.devices()
    # Keep the compiler from looking for accelerators, and from failing if other programs use them.
    jax.config.update("jax_platforms", "cpu")
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
        # This machine's type, without which the compiler complains.
        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
    ):
        os.environ.setdefault(name, value)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"config.plan.topology={topology!r} needs the TPU compiler: "
            f'pip install "jax[tpu]=={jax.__version__}"'
        )
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if topology:  # an empty one would mean TPU v2
            return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    raise UserError(
        f"config.plan.topology={topology!r} must be 'local', or a TPU topology such as 'v5e:4x4', "
        "'v5p:2x2x4' or 'v6e:8x8'"
    )


def train_step_of(config, targets: list) -> tuple:
    """Returns the first three arguments of `devices.compile_train_steps`."""
    state = jax.eval_shape(build.make_init(config), jax.random.key(0))
    options = config.training
    shape = (options.steps_per_call, options.batch_size // len(targets), *build.image_shape(config))
    dtype = units.dtype(config.data.value_range)
    batch = jax.ShapeDtypeStruct(shape, dtype)
    if config.data.labels:
        batch = batch, jax.ShapeDtypeStruct(shape[:2], np.int32)
    return build.make_train_steps(config), state, batch


def sampler_of(config, sampler: samplers.Sampler, targets: list) -> tuple:
    """Returns the first four arguments of `devices.compile_chains`."""
    params = jax.eval_shape(build.make_init(config), jax.random.key(0)).params
    if sampler.guide is not None:
        params = params, jax.eval_shape(lambda: sampler.guide)
    start, advance = run_samplers.chain_functions(sampler, Stream.SAMPLES)
    size = -(-config.sampling.batch_size // len(targets))
    indices = jax.ShapeDtypeStruct((size,), np.uint32)
    return advance, params, indices, jax.eval_shape(start, np.zeros(2, np.uint32), indices)


def _compile_step(what: str, config, targets: list) -> Program:
    """Compiles the training step, as `_measure` does."""
    arguments = (*train_step_of(config, targets), targets)
    options = {"remat": config.training.remat, "packed": build.is_elementwise(config)}
    return _measure(what, lambda: devices.compile_train_steps(*arguments, **options))


def _measure(what: str, compile_: Callable) -> Program:
    """Calls `compile_`, prints how long it took, and returns the executable's figures.

    Raises:
      TooLarge: if it does not fit into the device's memory.
    """
    print(f"{what}: compiling", end="", flush=True)
    started = time.perf_counter()
    try:
        compiled = compile_()
    except jax.errors.JaxRuntimeError as error:
        print()
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLarge(str(error)) from None
    print(f" took {human_time(time.perf_counter() - started)}")
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return Program(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
        cost.get("flops", 0.0),
        cost.get("bytes accessed", 0.0),
    )


def _describe(program: Program, chip: Chip | None, microbatches: int = 1) -> None:
    """Prints what a program takes.

    Raises:
      TooLarge: if it exceeds the device's memory, which not every compiler checks.
    """
    print(
        f"  memory per device: arguments {human_bytes(program.arguments)}, temporaries "
        f"{human_bytes(program.temporary)}, program {human_bytes(program.code)}; "
        f"{human_bytes(program.memory)}" + (f" of {human_bytes(chip.memory)}" if chip else "")
    )
    if chip and program.memory > chip.memory:
        raise TooLarge("the device has less memory than that")
    print(
        f"  a step on each device: about {microbatches * program.flop / 1e9:.3g} GFLOP and "
        f"{microbatches * program.traffic / 1e9:.3g} GB of traffic"
    )


def _step_time(program: Program, chip: Chip, options, microbatches: int = 1) -> float:
    """Prints and returns a step's seconds by the roofline: the longer of arithmetic and traffic.

    XLA counts a loop's body once: over the steps of a call, over a sampler's steps, and over microbatches.
    For microbatches, this multiplies the whole step, including the optimizer.
    """
    passes = 1
    if options.dtype == "float32" and chip.float32 == chip.bfloat16:  # a TPU
        passes = _PASSES[options.precision]
    arithmetic = passes * microbatches * program.flop / getattr(chip, options.dtype)
    traffic = microbatches * program.traffic / chip.bandwidth
    step = max(arithmetic, traffic)
    bound = "arithmetic" if arithmetic > traffic else "memory traffic"
    print(
        f"  about {1000 * step:.3g} ms per step, bound by {bound} (arithmetic {1000 * arithmetic:.3g} ms, "
        f"traffic {1000 * traffic:.3g} ms)"
    )
    return step


def _plan_sampling(config, targets: list, chip: Chip | None) -> None:
    sampler = samplers.make(config)
    try:
        arguments = *sampler_of(config, sampler, targets), targets
        what = f"sampler ({config.sampling.method})"
        program = _measure(what, lambda: devices.compile_chains(*arguments))
        _describe(program, chip)
    except TooLarge as error:
        print(f"  {error}; reduce config.sampling.batch_size")
        return
    if chip is None:
        return
    step = _step_time(program, chip, config.sampling)
    batches = -(-_SAMPLES // config.sampling.batch_size)
    if sampler.evaluations is None:
        print("  the solver chooses the number of steps")
        return
    print(
        f"  {_SAMPLES:,} samples: about {human_time(batches * sampler.num_steps * step)}, in {batches} "
        f"batches of {config.sampling.batch_size}, {sampler.evaluations:,} network evaluations each"
    )


def _find_what_fits(config, targets: list, chip: Chip | None, needed: float) -> None:
    """Compiles the step with each way to save memory, and says which fit.

    Args:
      config: the configuration of a run whose step does not fit.
      targets: the devices.
      chip: their figures, if known.
      needed: bytes that the step takes, or 0; it gives the fewest microbatches that could fit.
    """
    training = config.training
    each = training.batch_size // len(targets)
    fewest = training.microbatches * (needed / chip.memory if chip else 1.0)
    parts = [n for n in range(training.microbatches + 1, each + 1) if each % n == 0 and n >= fewest]
    ways = [{"dtype": "bfloat16"}, {"remat": True}, *({"microbatches": n} for n in parts)]
    fits = []
    for way in ways:
        ((name, value),) = way.items()
        if training[name] == value or name in fits:
            continue
        changed = config.copy_and_resolve_references()
        changed.training.update(way)
        try:
            program = _compile_step(f"with --config.training.{name}={value}", changed, targets)
            _describe(program, chip, changed.training.microbatches)
            print("  fits")
            fits.append(name)
        except TooLarge as error:
            print(f"  {error}")
    if not fits:
        print("none of these is enough: combine them, or use more devices or a smaller batch")
