"""The parts of `benchmarks.accelerator` that measure: the machine's rates, goldens, training steps.

A part is a generator of (name, figures). It compiles one program at a time, because XLA tries out
algorithms on the GPU while compiling. It starts nothing that would not end in time.
"""

import dataclasses
import functools
import importlib
import os
import pathlib
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine, original, original_gpu
from benchmarks.operations import step_operations
from benchmarks.workers import ROOT, MeasurementError, Worker
from ncsn_jax import convert, models, scores
from ncsn_jax.app import build, samplers
from ncsn_jax.sampling import annealed_langevin, langevin

# The published networks: NCSN's, which the authors' code has too, and NCSN++.
_NCSN = ("mnist", "cifar10")
_NETWORKS = (*_NCSN, "score_sde.ve_cifar10_ncsnpp_continuous")
# A training step's type, precision and steps per call, most important first.
_KINDS = (
    ("float32", "default", 1),
    ("bfloat16", "default", 1),
    ("float32", "high", 1),
    ("float32", "default", 10),
)
# Makes a network and its chains tiny, for CPUs.
_SMALL = {
    "data.image_size": 8,
    "model.features": 4,
    "ncsnpp.ch_mult": (1, 2),
    "ncsnpp.num_res_blocks": 1,
    "training.batch_size": 4,
    "sampling.steps_per_level": 1,
}
# Seconds to time a call; seconds the authors' code needs to start and time its steps, or its samplers.
_TIMED, _AUTHORS, _AUTHORS_SAMPLERS = 1.5, 20, 60
# Seconds that a batch's chain may take.
_CHAIN = 15
# Steps of Heun's method; all but the last take two evaluations.
_HEUN = 18

Part = Iterator[tuple[str, dict[str, Any]]]


@dataclasses.dataclass
class Bench:
    """What the parts share.

    Attributes:
      out, scratch: the directories for the results, and for everything else.
      reference: a checkout of the authors' code, or None.
      data_dir: the directory of prepared datasets, or None.
      small: whether networks and jobs are tiny.
      ends: when the running part should end, in `time.monotonic`'s seconds.
      compile_seconds: how long the last network took to compile; a guess before the first.
      peaks: the matrix product's TFLOP/s, by type.
      job_seconds: how long the main job took.
    """

    out: pathlib.Path
    scratch: pathlib.Path
    reference: str | None
    data_dir: str | None
    small: bool
    ends: float = 0.0
    compile_seconds: float = 10.0
    peaks: dict[str, float] = dataclasses.field(default_factory=dict)
    job_seconds: float | None = None


def lacks_time(bench: Bench, needed: float) -> str | None:
    """Returns why something that needs `needed` seconds is skipped, or None if there is time."""
    left = max(0.0, bench.ends - time.monotonic())
    return f"{left:.0f} s left, about {needed:.0f} needed" if left < needed else None


def one_line(error: Exception) -> str:
    """Returns an error's type and the beginning of its message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def figures_of(bench: Bench, needed: float, measure: Callable[[], dict]) -> dict[str, Any]:
    """Returns what `measure()` returns, or figures that say why there are none."""
    if reason := lacks_time(bench, needed):
        return {"skipped": reason}
    try:
        return measure()
    except Exception as error:
        return {"failed": one_line(error)}


def compiled(bench: Bench, function: Callable, shapes: tuple, precision: str, **options: Any):
    """Compiles a network's program, and records in `bench` how long it took."""
    started = time.perf_counter()
    # The speed of a tiny network does not matter.
    quickly = {"xla_backend_optimization_level": 0} if bench.small else None
    with jax.default_matmul_precision(precision):
        program = jax.jit(function, **options).lower(*shapes).compile(quickly)
    bench.compile_seconds = time.perf_counter() - started
    return program


def seconds_per_call(call: Callable[[], Any], seconds: float = _TIMED) -> float:
    """Returns the median over three rounds of asynchronous calls, which take `seconds` in all."""

    def round_of(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            result = call()
        jax.block_until_ready(result)
        return (time.perf_counter() - started) / count

    round_of(1)  # to warm up
    count = max(1, int(seconds / 3 / round_of(2)))
    return statistics.median(round_of(count) for _ in range(3))


def ceilings(bench: Bench) -> Part:
    """Yields the versions, the card, and the highest rates of arithmetic and memory it reached."""
    card = "none"
    if jax.default_backend() == "gpu":
        query = "--query-gpu=name,driver_version,memory.total,clocks.sm"
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        card = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    flags = os.environ.get("XLA_FLAGS") or "none, so that GPU autotuning is at its default level 4"
    yield "machine", {"card": card, "host": "; ".join(machine.describe()), "XLA flags": flags}
    side = 256 if bench.small else 4096
    numbers = np.random.default_rng(0).standard_normal((2, side, side), np.float32)
    kinds = ("bfloat16", "default"), ("float32", "default"), ("float32", "highest")
    for dtype, precision in kinds:
        a, b = jnp.asarray(numbers, dtype)
        with jax.default_matmul_precision(precision):
            product = jax.jit(jnp.matmul).lower(a, b).compile()
        seconds = seconds_per_call(lambda product=product, a=a, b=b: product(a, b), 0.3)
        rate = 2 * side**3 / seconds / 1e12
        bench.peaks.setdefault(dtype, rate)
        yield f"matmul {dtype} {precision}", {"side": side, "TFLOP/s": rate}
    x = jnp.ones(2**20 if bench.small else 2**29)
    seconds = seconds_per_call(lambda: jnp.copy(x), 0.3)
    yield "copy", {"GB": x.nbytes / 1e9, "GB/s read and written": 2 * x.nbytes / seconds / 1e9}


def goldens(bench: Bench) -> Part:
    """Yields errors against the original implementations' figures, relative to the largest value."""
    for precision in ("default", "highest", "high"):
        measure = lambda p=precision: {"relative error": golden_network(bench, p)}  # noqa: E731
        figures = figures_of(bench, 1.2 * bench.compile_seconds, measure)
        if "relative error" in figures:
            figures["compile s"] = bench.compile_seconds
        yield f"NCSN, 28x28, {precision}", figures
    measure = lambda: {"relative error": golden_chain()}  # noqa: E731
    yield "annealed Langevin, default", figures_of(bench, 2, measure)


def _stored(name: str) -> dict[str, np.ndarray]:
    with np.load(ROOT / "tests" / "data" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def golden_network(bench: Bench, precision: str) -> float:
    """Returns the largest error of three scores of the authors' network, relative to each one's maximum."""
    g, model = _stored("ncsn_v1_28"), models.NCSN(8, 10)
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    inputs = convert.from_torch(state, model), g["in/x"].transpose(0, 2, 3, 1), g["in/y"]
    expected, axes = g["out/score"].transpose(0, 2, 3, 1), (1, 2, 3)
    found = compiled(bench, model.apply, inputs, precision)(*inputs)
    errors = np.abs(np.asarray(found) - expected).max(axes) / np.abs(expected).max(axes)
    return float(errors.max())


def golden_chain() -> float:
    """Returns the error in the states of an annealed Langevin chain with the authors' noise."""
    g, module = _stored("ald"), importlib.import_module(langevin.__module__)
    noise = jnp.asarray(g["in/gmm/noise"]).reshape(20, 6, 2)
    mixture = scores.gaussian_mixture([[-5.0, -5.0], [5.0, 5.0]], [1.0, 1.0], [0.2, 0.8])
    with (
        mock.patch.object(module, "fold_in", lambda key, index: index),
        mock.patch.object(module, "normal_like", lambda index, x: noise[index]),
    ):
        _, info = annealed_langevin(
            jax.random.key(0),
            mixture.score,
            jnp.asarray(g["in/gmm/x0"]),
            jnp.asarray(g["in/gmm/sigmas"]),
            epsilon=0.1,
            steps_per_level=5,
            return_info=True,
            num_frames=20,
        )
    expected = g["out/gmm/paper/x"][-20:]
    return float(np.abs(np.asarray(info.samples) - expected).max() / np.abs(expected).max())


def configuration(small: bool, network: str):
    """Returns a published configuration, or its tiny one."""
    config = importlib.import_module(f"configs.{network}").get_config()
    config.update_from_flattened_dict(_SMALL if small else {})
    return config


def training(bench: Bench) -> Part:
    """Times training steps of the published networks, and of the authors' code on the same card."""
    ours, compile_seconds = {}, {}
    for dtype, precision, steps in _KINDS:
        for network in _NETWORKS:
            # A new network may take twice as long to compile as the one before.
            needed = compile_seconds.get(network, 2 * bench.compile_seconds) + 2 * _TIMED
            measure = functools.partial(time_step, bench, network, dtype, precision, steps)
            figures = figures_of(bench, needed, measure)
            if "compile s" in figures:
                compile_seconds[network] = figures["compile s"]
            yield f"{network} {dtype} {precision}, {steps} a call, ours", figures
            if (dtype, precision, steps) != _KINDS[0]:
                continue
            ours[network] = figures.get("steps/s")
            if network in _NCSN:
                yield from _time_authors(bench, network, ours[network])


def sampling(bench: Bench) -> Part:
    """Times 1,000 annealed Langevin steps and 35 Heun evaluations, with our network and the authors'."""
    seconds = {}
    for method in ("annealed_langevin", "heun"):
        measure = functools.partial(time_sampler, bench, method)
        needed = bench.compile_seconds + (0 if bench.small else _CHAIN)
        figures = figures_of(bench, needed, measure)
        seconds[method] = figures.get("seconds")
        yield f"{method}, ours", figures
    yield from _time_authors_samplers(bench, seconds)


def time_sampler(bench: Bench, method: str) -> dict[str, Any]:
    """Returns the figures of a batch of samples of the published MNIST network, with random weights."""
    config = configuration(bench.small, "mnist")
    config.sampling.update(method=method, num_steps=_HEUN)
    sampler, count = samplers.make(config), config.training.batch_size
    keys = jax.random.split(jax.random.key(0), count)
    params = _random(jax.eval_shape(build.make_init(config), jax.random.key(0)).params)
    x, steps = sampler.start(keys), (np.int32(0), np.int32(sampler.num_steps))
    program = compiled(bench, sampler.advance, (keys, params, x, steps), "default")
    jax.block_until_ready(program(keys, params, x, (np.int32(0), np.int32(1))))  # to warm up
    started = time.perf_counter()
    jax.block_until_ready(program(keys, params, x, steps))
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "evaluations": sampler.evaluations,
        "samples": count,
        "compile s": bench.compile_seconds,
    }


def _random(shapes: Any) -> Any:
    """Draws parameters on the host, since initialising them would compile a hundred programs."""
    rng = np.random.default_rng(0)
    draw = lambda a: np.float32(0.02) * rng.standard_normal(a.shape, np.float32)  # noqa: E731
    return jax.device_put(jax.tree.map(draw, shapes))


def time_step(bench: Bench, network: str, dtype: str, precision: str, steps: int) -> dict[str, Any]:
    """Returns the figures of a training step on random weights and images, `steps` per call."""
    config, rng = configuration(bench.small, network), np.random.default_rng(0)
    config.training.update(dtype=dtype, precision=precision)
    shape, size = build.image_shape(config), config.training.batch_size
    shapes, seed = jax.eval_shape(build.make_init(config), jax.random.key(0)), np.uint32(0)
    images = jax.device_put(rng.integers(0, 256, (steps, size, *shape), np.uint8))
    step, arguments = build.make_train_steps(config), (shapes, images, seed)
    program = compiled(bench, step, arguments, "default", donate_argnums=0)
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    state = jax.device_put(zeros._replace(params=_random(shapes.params)))

    def call():
        nonlocal state
        state, metrics = program(state, images, seed)
        return metrics.loss

    rate = steps / seconds_per_call(call)
    model = build.make_model(config)
    operations = step_operations(model, shapes.params, shape)
    tflops, peak = rate * size * operations / 1e12, bench.peaks.get(dtype)
    memory = program.memory_analysis()
    needed = memory and memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return {
        "steps/s": rate,
        "TFLOP/s": tflops,
        "share of matmul": peak and tflops / peak,
        "program GB": needed and needed / 1e9,
        "compile s": bench.compile_seconds,
        "loss": float(np.mean(call())),
    }


def _time_authors(bench: Bench, network: str, ours: float | None) -> Part:
    """Yields the figures of the authors' training step with TF32, and under bfloat16 autocast."""

    def measure(worker: Worker, suffix: str) -> dict[str, Any]:
        times = worker.ask("time", task="train" + suffix, warm_up=0.3, seconds=_TIMED)
        rate, memory = 1 / statistics.median(times), worker.ask("device_memory")
        figures = {"steps/s": rate, "program GB": memory and memory / 1e9}
        return figures | ({"ours in float32, times as fast": ours / rate} if ours else {})

    yield from _ask_authors(bench, network, _AUTHORS, measure)


def _time_authors_samplers(bench: Bench, ours: dict[str, float | None]) -> Part:
    """Yields the authors' network's seconds for both samplers; their code lacks Heun's method."""

    def measure(worker: Worker, suffix: str) -> dict[str, Any]:
        (chain,) = worker.ask("time", task="sample" + suffix, warm_up=0, seconds=0)
        evaluations = worker.ask("time", task="evaluate" + suffix, warm_up=0.3, seconds=_TIMED)
        evaluated = (2 * _HEUN - 1) * statistics.median(evaluations)
        figures = {"annealed Langevin s": chain, f"{2 * _HEUN - 1} evaluations s": evaluated}
        for (what, theirs), mine in zip(tuple(figures.items()), ours.values(), strict=True):
            figures |= {f"ours in float32, times as fast: {what}": theirs / mine} if mine else {}
        return figures

    yield from _ask_authors(bench, "mnist", _AUTHORS_SAMPLERS, measure)


def _ask_authors(
    bench: Bench, network: str, needed: float, measure: Callable[[Worker, str], dict]
) -> Part:
    """Starts the authors' code and yields what `measure(worker, suffix of the task)` returns, by type."""
    reason = lacks_time(bench, 0 if bench.small else needed)
    if bench.reference is None or original.missing_file(bench.reference):
        reason = "no --reference"
    if reason:
        yield f"{network}, authors", {"skipped": reason}
        return
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
        "steps_per_level": config.sampling.steps_per_level,
    }
    try:
        with Worker("benchmarks.original_gpu", settings) as worker:
            for dtype, suffix in (("float32", ""), ("bfloat16", original_gpu.AUTOCAST)):
                yield f"{network} {dtype}, authors", measure(worker, suffix)
    except MeasurementError as error:
        yield f"{network}, authors", {"failed": str(error)[:300]}
