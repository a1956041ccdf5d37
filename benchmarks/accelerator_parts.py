"""The parts of `benchmarks.accelerator` that measure: rates of the machine, training steps, samplers.

A part is a generator of (name, figures). Hidden here are the variants, the random weights and images with
which they are timed, and the processes of the authors' code.
"""

import concurrent.futures
import functools
import importlib
import os
import statistics
import subprocess
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine, original, original_gpu
from benchmarks.accelerator_tools import (
    TIMED,
    Bench,
    Part,
    Program,
    compile_all,
    figures_of,
    options,
    seconds_per_call,
)
from benchmarks.workers import MeasurementError, Worker
from ncsn_jax import config as build
from ncsn_jax import report, sigmas
from ncsn_jax.sampling import annealed_langevin, heun

# Each network's module of `configs`, in the order of importance.
NETWORKS = {
    "mnist": "mnist",
    "cifar10": "cifar10",
    "ncsnpp": "score_sde.ve_cifar10_ncsnpp_continuous",
}
# What the authors' code has too.
_ORIGINALS = ("mnist", "cifar10")
# Type, precision and steps per call of the training steps, in the order of importance.
_VARIANTS = (
    ("float32", "default", 1),
    ("bfloat16", "default", 1),
    ("bfloat16", "default", 10),
    ("float32", "default", 10),
    ("float32", "high", 1),
    ("float32", "high", 10),
)
# What makes a network tiny, for CPUs.
_SMALL = {
    "data.image_size": 8,
    "model.features": 4,
    "training.batch_size": 4,
    "ncsnpp.ch_mult": (1, 2),
    "ncsnpp.num_res_blocks": 1,
    "ncsnpp.attn_resolutions": (4,),
    "sampling.steps_per_level": 1,
}
_BATCH, _LEVELS_OF_HEUN = 128, 18  # 35 evaluations
# The authors' sampler is timed for this part of the steps: it is a loop, and each takes as long.
_ORIGINAL_SHARE = 10


def ceilings(bench: Bench) -> Part:
    """The versions, the card, and the largest rates of arithmetic and memory that were reached."""
    card = "none"
    if jax.default_backend() == "gpu":
        query = "--query-gpu=name,driver_version,memory.total,clocks.sm"
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        card = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    yield "machine", {"card": card, "device": report.describe_devices()}
    yield "versions", {"host": "; ".join(machine.describe())}
    side = 256 if bench.small else 8192
    for dtype, precision in (
        ("bfloat16", "default"),
        ("float32", "default"),
        ("float32", "high"),
        ("float32", "highest"),
    ):
        a, b = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
        with jax.default_matmul_precision(precision):
            product = jax.jit(jnp.matmul).lower(a, b).compile()
        seconds = seconds_per_call(lambda product=product, a=a, b=b: product(a, b), 0.5)
        bench.peaks[dtype, precision] = rate = 2 * side**3 / seconds / 1e12
        yield f"matmul {dtype} {precision}", {"side": side, "TFLOP/s": rate}
    x = jnp.ones(2**20 if bench.small else 2**29)
    seconds = seconds_per_call(lambda: jnp.copy(x), 0.5)
    yield "copy", {"bytes": x.nbytes, "GB/s read and written": 2 * x.nbytes / seconds / 1e9}


def configuration(small: bool, network: str, **changes: Any):
    """Returns the published configuration of a network, or its tiny one, with changes."""
    config = importlib.import_module(f"configs.{NETWORKS[network]}").get_config()
    config.update_from_flattened_dict(_SMALL if small else {})
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def compile_step(bench: Bench, config, precision: str, per_call: int) -> Program:
    """Compiles a training step for one device, with donated state."""
    started = time.perf_counter()
    state = jax.eval_shape(build.make_init(config), jax.random.key(0))
    batch = (per_call, config.training.batch_size, *build.image_shape(config))
    shapes = state, jax.ShapeDtypeStruct(batch, jnp.uint8), jax.ShapeDtypeStruct((), jnp.uint32)
    with jax.default_matmul_precision(precision):
        lowered = jax.jit(build.make_train_steps(config), donate_argnums=0).lower(*shapes)
    return Program(lowered.compile(options(bench)), shapes, time.perf_counter() - started)


def random_params(shapes: Any) -> Any:
    """Returns parameters that make no sense but are finite, made on the host, where it is quick."""
    rng = np.random.default_rng(0)
    draw = lambda a: np.float32(0.02) * rng.standard_normal(a.shape, np.float32)  # noqa: E731
    return jax.device_put(jax.tree.map(draw, shapes))


@functools.cache
def _operations(small: bool, network: str) -> int:
    """Returns the floating point operations of a training step for one image."""
    config = configuration(small, network)
    params = jax.eval_shape(build.make_init(config), jax.random.key(0)).params
    model, shape = build.make_model(config), build.image_shape(config)
    return report.estimate_cost(model, params, shape, ema=False).step_operations


def time_step(bench: Bench, network: str, program: Program, *variant: str) -> dict[str, Any]:
    """Returns the figures of a compiled training step of some type and precision, on random images."""
    shapes, batch, _ = program.shapes
    images = jax.device_put(np.random.default_rng(0).integers(0, 256, batch.shape, np.uint8))
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    state = jax.device_put(zeros)._replace(params=random_params(shapes.params))

    def call():
        nonlocal state
        state, metrics = program.compiled(state, images, np.uint32(0))
        return metrics.loss

    rate = batch.shape[0] / seconds_per_call(call)
    tflops = rate * batch.shape[1] * _operations(bench.small, network) / 1e12
    peak = bench.peaks.get(variant)
    memory = program.compiled.memory_analysis()
    needed = memory and memory.argument_size_in_bytes + memory.temp_size_in_bytes
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "steps/s": rate,
        "TFLOP/s": tflops,
        "share of matmul": peak and tflops / peak,
        "program GB": needed and needed / 1e9,
        "process peak GB": stats.get("peak_bytes_in_use", 0) / 1e9,
        "compile s": program.seconds,
        "loss": float(np.mean(call())),
    }


def start_originals(bench: Bench) -> None:
    """Starts the authors' code with the settings of the configurations, if there is a checkout."""
    if bench.originals or bench.reference is None or original.missing_file(bench.reference):
        return
    pool = concurrent.futures.ThreadPoolExecutor(len(_ORIGINALS))
    for network in _ORIGINALS:
        config = configuration(bench.small, network)
        settings = {
            "reference": os.path.abspath(bench.reference),
            "features": config.model.features,
            "side": config.data.image_size,
            "channels": config.data.channels,
            "batch": config.training.batch_size,
            "learning_rate": config.optim.learning_rate,
            "sigmas": np.asarray(build.make_sigmas(config)).tolist(),
            "epsilon": config.sampling.epsilon,
            "steps_per_level": config.sampling.steps_per_level // _ORIGINAL_SHARE or 1,
        }
        bench.originals[network] = pool.submit(Worker, "benchmarks.original_gpu", settings)


def stop_originals(bench: Bench) -> None:
    """Ends the processes of the authors' code, with the device memory that they hold."""
    for future in bench.originals.values():
        if future.done() and future.exception() is None:
            future.result().close()
    bench.originals.clear()


def _time_originals(bench: Bench, task: str, ours: dict[tuple[str, str], float]) -> Part:
    """Times a task of the authors' code in both types, beside ours in the same type."""
    start_originals(bench)
    for dtype, suffix in (("float32", ""), ("bfloat16", original_gpu.AUTOCAST)):
        for network in _ORIGINALS:
            name, future = f"{network} original {dtype}", bench.originals.get(network)
            if future is None:
                yield name, {"skipped": "no --reference"}
                continue
            if time.monotonic() > bench.ends:
                yield name, {"skipped": "no time left"}
                continue
            try:
                worker = future.result()
                times = worker.ask("time", task=task + suffix, warm_up=0.2, seconds=TIMED)
                memory = worker.ask("device_memory")
            except MeasurementError as error:
                yield name, {"failed": str(error)[:300]}
                continue
            steps = configuration(bench.small, network).sampling.steps_per_level
            steps = steps // _ORIGINAL_SHARE or 1
            steps = 1 if task == "train" else steps * 10
            rate, mine = steps / statistics.median(times), ours.get((network, dtype))
            figures = {"steps/s": rate, "ours, times as fast": mine and mine / rate}
            yield name, figures | {"process peak GB": memory and memory / 1e9}


def training(bench: Bench) -> Part:
    """Training steps of the published networks, and of the authors' code on the same device."""
    builds, variants, speeds = {}, {}, {}
    start_originals(bench)
    for dtype, precision, per_call in _VARIANTS[: 1 if bench.small else None]:
        for network in NETWORKS:
            name = f"{network} {dtype} {precision} x{per_call}"
            config = configuration(bench.small, network, training__dtype=dtype)
            variants[name] = network, dtype, precision
            builds[name] = lambda c=config, p=precision, k=per_call: compile_step(bench, c, p, k)
    left = bench.ends - time.monotonic()
    programs = compile_all(bench, builds, bench.ends - 0.45 * left)

    def measure(names: list[str]) -> Part:
        for name in names:
            network, dtype, precision = variants[name]
            time_it = lambda p, v=variants[name]: time_step(bench, v[0], p, *v[1:])  # noqa: E731
            figures = figures_of(bench, programs.pop(name, None), time_it)
            if "steps/s" in figures and precision == "default":
                speeds.setdefault((network, dtype), figures["steps/s"])
            yield name, figures

    # One step per call in both types, as the authors' code has it, and then the others.
    first = 2 * len(NETWORKS)
    yield from measure([*variants][:first])
    yield from _time_originals(bench, "train", speeds)
    yield from measure([*variants][first:])


def compile_sampler(bench: Bench, config, method: str) -> Program:
    """Compiles annealed Langevin dynamics, or Heun's method, of a batch."""
    started = time.perf_counter()
    ladder = build.make_sigmas(config)
    ends = config.model.sigma_begin, config.model.sigma_end
    chosen = config.sampling

    def sample(params, seed, x):
        numbers = jnp.arange(x.shape[0])
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(numbers)
        score = build.make_score_fn(config, params)[0]
        if method == "Heun":
            return heun(keys, score, x, sigmas.karras(*ends, _LEVELS_OF_HEUN, chosen.rho))[0]
        settings = {"epsilon": chosen.epsilon, "steps_per_level": chosen.steps_per_level}
        return annealed_langevin(keys, score, x, ladder, **settings)

    params = jax.eval_shape(build.make_init(config), jax.random.key(0)).params
    batch = (4 if bench.small else _BATCH, *build.image_shape(config))
    shapes = params, jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct(batch, jnp.float32)
    compiled = jax.jit(sample).lower(*shapes).compile(options(bench))
    return Program(compiled, shapes, time.perf_counter() - started)


def sampling(bench: Bench) -> Part:
    """1,000 steps of annealed Langevin dynamics and 35 evaluations of Heun's method."""
    builds, settings, speeds = {}, {}, {}
    for dtype in ("float32", "bfloat16")[: 1 if bench.small else None]:
        for network, method in (("mnist", "Langevin"), ("cifar10", "Langevin"), ("ncsnpp", "Heun")):
            config = configuration(bench.small, network, sampling__dtype=dtype)
            steps = config.model.num_levels * config.sampling.steps_per_level
            steps = 2 * _LEVELS_OF_HEUN - 1 if method == "Heun" else steps
            name = f"{network} {method} {dtype}"
            settings[name] = network, dtype, steps
            builds[name] = lambda c=config, m=method: compile_sampler(bench, c, m)
    left = bench.ends - time.monotonic()
    programs = compile_all(bench, builds, bench.ends - 0.6 * left)

    def measure(program: Program, network: str, dtype: str, steps: int) -> dict[str, float]:
        params = random_params(program.shapes[0])
        x = jnp.full(program.shapes[2].shape, 0.5)
        seconds = seconds_per_call(lambda: program.compiled(params, np.uint32(0), x))
        speeds[network, dtype] = rate = steps / seconds
        figures = {"seconds": seconds, "steps": steps, "steps/s": rate}
        return figures | {"compile s": program.seconds}

    for name, setting in settings.items():
        time_it = lambda program, s=setting: measure(program, *s)  # noqa: E731
        yield name, figures_of(bench, programs.get(name), time_it)
    yield from _time_originals(bench, "sample", speeds)
    stop_originals(bench)
