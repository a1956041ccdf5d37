"""The loops behind the modes of `main.py`: load, compile, train, log, save, sample.

Meant to be read from top to bottom. The mathematics is in `ncsn_jax.training` and `ncsn_jax.sampling`,
everything about devices in `ncsn_jax.parallel`, and every file format has a module of its own.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
from clu import parameter_overview

from ncsn_jax import (
    checkpoints,
    data,
    images,
    models,
    parallel,
    report,
    sampling,
    sigmas,
    training,
)
from ncsn_jax import config as configuration
from ncsn_jax.data import cache
from ncsn_jax.errors import UserError
from ncsn_jax.metrics import Writer
from ncsn_jax.samples import SampleStore

_log = logging.getLogger("ncsn_jax")

# What the random numbers of a run are for, folded into the key of the seed.
_FOR_PARAMETERS, _FOR_SAMPLES = 0, 2

# After how many calls of the compiled step the length of the run is estimated.
_CALLS_TO_ESTIMATE = 5

# Of the images, as bytes; compared as floats, twice, they take eight times as much.
_BYTES_TO_COMPARE = 500_000_000


def train(config, workdir: str) -> None:
    """Trains, or continues, up to `config.training.num_steps`, and then samples."""
    configuration.check(config)
    configuration.compare_workdir(config, workdir)
    configuration.make_workdir(workdir)
    with configuration.lock_workdir(workdir):
        _start(workdir)
        dataset = configuration.load_images(config)
        configuration.claim_images(dataset, workdir)
        configuration.write_config(config, workdir)
        with (
            checkpoints.Checkpoints(workdir, config.training.checkpoints_kept) as store,
            Writer(workdir) as writer,
        ):
            step, state = _restore_or_init(config, store)
            _log.info("%d images of shape %s, from step %d", len(dataset), dataset.shape[1:], step)
            _describe(config, state, with_table=step == 0)
            if step > config.training.num_steps:
                _log.info("already beyond config.training.num_steps=%d", config.training.num_steps)
            state = parallel.replicate(state)
            sampler = _make_sampler(config)
            if step < config.training.num_steps:
                batches = data.Batches(dataset, config.seed, config.training.batch_size)
                state = _train_loop(config, workdir, step, state, batches, store, writer, sampler)
                step = config.training.num_steps
        _write_samples(config, workdir, step, state.ema_params or state.params, sampler)


def _restore_or_init(config, store) -> tuple[int, training.TrainState]:
    """Returns the newest checkpoint, or the state before the first step."""
    key = jax.random.fold_in(jax.random.key(config.seed), _FOR_PARAMETERS)
    init = configuration.make_init(config)
    found = store.restore_latest(jax.eval_shape(init, key))
    return (0, init(key)) if found is None else found


def sample(config, workdir: str) -> None:
    """Samples from the newest checkpoint of a work directory."""
    configuration.check(config)
    configuration.require_run(config, workdir)
    _start(workdir)
    step, state = configuration.load_newest(config, workdir)
    params = parallel.replicate(state.ema_params or state.params)
    _write_samples(config, workdir, step, params, _make_sampler(config))


def suggest(config) -> None:
    """Prints the ladder and the step size that suit the configuration's images."""
    configuration.check(config)
    dataset = configuration.load_images(config)
    # As many as fit into memory as floats, evenly spaced.
    stride = -(-dataset.nbytes // _BYTES_TO_COMPARE)
    points = dataset[::stride]
    print(
        f"{len(dataset)} images of shape {dataset.shape[1:]} in [0, 1]; comparing all pairs"
        + (f" of {len(points)} of them, evenly spaced" if stride > 1 else ""),
        flush=True,
    )
    model, sampling_ = config.model, config.sampling
    try:
        found = sigmas.suggest(
            points / np.float32(255),
            sigma_end=model.sigma_end,
            steps_per_level=sampling_.steps_per_level,
        )
    except ValueError as error:
        raise UserError(
            f"config.model.sigma_end={model.sigma_end}, for these images: {error}"
        ) from None
    ladder = " ".join(f"{sigma:.4g}" for sigma in found.sigmas)
    here = configuration.make_sigmas(config)
    for line in (
        f"largest distance between two images: {found.largest_distance:.4g} (NCSNv2, technique 1)",
        f"ratio of neighbouring sigmas in {points[0].size} dimensions: {found.ratio:.5g} (technique 2)",
        f"variance after a level, for {sampling_.steps_per_level} steps, in units of its noise: "
        f"{found.variance_ratio:.4g} (technique 4)",
        f"ladder: {ladder}",
        "",
        f"--config.model.sigma_begin={found.sigmas[0]:.4g} "
        f"--config.model.num_levels={len(found.sigmas)} "
        f"--config.model.sigma_end={model.sigma_end!r} --config.sampling.epsilon={found.epsilon:.4g} "
        f"--config.sampling.steps_per_level={sampling_.steps_per_level}",
        "",
        f"a sample takes {len(found.sigmas) * sampling_.steps_per_level} network evaluations then; "
        "another --config.sampling.steps_per_level gives another epsilon",
        *(
            [
                "sigmas this large want a network that is divided by sigma: --config.model.name=ncsnv2"
            ]
            if found.sigmas[0] > 2 and model.name == "ncsn"
            else []
        ),
        f"the configuration has {here[0]:.4g} to {here[-1]:.4g} in {len(here)} levels, "
        f"epsilon {sampling_.epsilon:.4g}",
    ):
        print(line)


def _train_loop(config, workdir, step, state, batches, store, writer, sampler):
    """Runs from `step` to the last one and returns the final replicated state."""
    options = config.training
    per_call, last = options.steps_per_call, options.num_steps
    seed = np.uint32(config.seed)
    window = _Window(configuration.make_sigmas(config), configuration.image_shape(config), step)
    p_steps = parallel.map_train_steps(configuration.make_train_steps(config))
    compiled, in_flight, calls = None, None, 0

    while step < last:
        started = time.perf_counter()
        batch = parallel.spread(batches(step, per_call))
        window.input_seconds += time.perf_counter() - started
        if compiled is None:
            _log.info("compiling the training step")
            compiled = p_steps.lower(state, batch, seed).compile()
            _describe_memory(compiled, time.perf_counter() - started)
            window.restart(step)
        state, metrics = compiled(state, batch, seed)
        step, calls = step + per_call, calls + 1

        # One call stays in flight, so that the next batch is made while this one is computed.
        if in_flight is not None:
            window.add(*in_flight, store)
        in_flight = (step, metrics)
        if calls == _CALLS_TO_ESTIMATE:
            window.add(*in_flight, store)
            in_flight = None
            _log.info(
                "estimate: %s for the other %d steps, without samples",
                window.time_for(last - step),
                last - step,
            )
        due = {
            name: step == last or (every and step % every == 0)
            for name, every in (
                ("log", options.log_every),
                ("save", options.checkpoint_every),
                ("sample", options.sample_every),
            )
        }
        if any(due.values()) and in_flight is not None:
            window.add(*in_flight, store)
            in_flight = None
        if due["log"]:
            scalars = window.scalars()
            writer.write_scalars(step, scalars)
            writer.flush()
            _log.info("%s", window.line(step, last, scalars))
            window.restart(step)
        if due["save"]:
            store.save(step, parallel.to_host(state))
        if due["sample"] and step < last:
            with window.paused():
                params = state.ema_params or state.params
                _write_preview(config, workdir, step, params, writer, sampler)
    return state


@dataclasses.dataclass
class _Window:
    """What happened since the last line of the log."""

    sigmas: jax.Array
    image_shape: tuple[int, int, int]
    first_step: int

    def __post_init__(self):
        self.restart(self.first_step)

    def restart(self, step: int) -> None:
        self.first_step = self.step = step
        self.started = time.perf_counter()
        self.input_seconds = 0.0
        self.losses, self.grad_norms = [], []
        self.level_loss = np.zeros(len(self.sigmas))
        self.level_count = np.zeros(len(self.sigmas))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps the clock from running."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def add(self, step: int, metrics: training.Metrics, store: checkpoints.Checkpoints) -> None:
        """Waits for a call's metrics, ending at `step`, and takes them in; stops if not finite."""
        metrics = parallel.to_host(metrics)
        sound = np.isfinite(metrics.loss) & np.isfinite(metrics.grad_norm)
        if not sound.all():
            bad = int(np.argmin(sound))
            store.wait()
            good = store.steps()
            raise UserError(
                f"the loss is {metrics.loss[bad]} and the gradient's norm {metrics.grad_norm[bad]} "
                f"at step {step - len(sound) + bad + 1}; stopped, the last good checkpoint is "
                + (f"that of step {good[0]}" if good else "none")
            )
        self.step = step
        self.losses.extend(metrics.loss)
        self.grad_norms.extend(metrics.grad_norm)
        self.level_loss += metrics.level_loss.sum(axis=0)
        self.level_count += metrics.level_count.sum(axis=0)

    def scalars(self) -> dict[str, float]:
        """Returns the means over the window, and the loss by level as a share of a zero score's."""
        elapsed = time.perf_counter() - self.started
        scalars = {
            "loss": np.mean(self.losses),
            "grad_norm": np.mean(self.grad_norms),
            "steps_per_second": (self.step - self.first_step) / elapsed,
            "input_share": self.input_seconds / elapsed,
        }
        groups = np.array_split(np.arange(len(self.sigmas)), min(len(self.sigmas), 10))
        for group in groups:
            if count := self.level_count[group].sum():
                name = f"loss_by_level/{group[0]:04d}_sigma_{self.sigmas[group[0]]:.3g}"
                zero_score_loss = 0.5 * np.prod(self.image_shape)
                scalars[name] = self.level_loss[group].sum() / count / zero_score_loss
        return scalars

    def time_for(self, steps: int) -> str:
        """Returns how long so many steps take at the window's speed, as text."""
        elapsed = time.perf_counter() - self.started
        return report.human_time(steps * elapsed / (self.step - self.first_step))

    def line(self, step: int, last: int, scalars: dict[str, float]) -> str:
        return (
            f"step {step}/{last}  loss {scalars['loss']:.4g}  grad {scalars['grad_norm']:.3g}  "
            f"{scalars['steps_per_second']:.3g} steps/s  "
            f"input {100 * scalars['input_share']:.2g} %  {self.time_for(last - step)} left"
        )


def _make_sampler(config):
    """Returns the mapped sampler: (replicated params, seed, indices `[devices, b]`) to images."""
    model, sigmas = configuration.make_model(config), configuration.make_sigmas(config)
    options, shape = config.sampling, configuration.image_shape(config)

    def sampler(params, seed, indices):
        key = jax.random.fold_in(jax.random.key(seed), _FOR_SAMPLES)
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(indices)
        x = sampling.initial_samples(
            keys[:, 0], (len(indices), *shape), options.init, scale=config.model.sigma_begin
        )
        return sampling.annealed_langevin(
            keys[:, 1],
            models.score_fn(model, params, sigmas),
            x,
            sigmas,
            epsilon=options.epsilon,
            steps_per_level=options.steps_per_level,
            denoise=options.denoise,
            clip=tuple(options.clip) or None,
        )

    return parallel.map_sampler(sampler)


def _sample_batch(config, sampler, params, indices: list[int], size: int) -> np.ndarray:
    """Makes the samples of the given indices, at most `size`, in a batch of `size`, rounded up to
    the devices: uint8 `[n, H, W, C]`.
    """
    devices = jax.local_device_count()
    per_device = -(-size // devices)
    padded = np.resize(np.asarray(indices, np.uint32), (devices, per_device))
    x = sampler(params, np.uint32(config.seed), padded)
    x = np.asarray(x).reshape(-1, *x.shape[2:])[: len(indices)]
    if not np.isfinite(x).all():
        raise UserError(
            f"the samples are not finite: config.sampling.epsilon={config.sampling.epsilon} is too large"
        )
    return images.to_uint8(x)


def _write_samples(config, workdir, step, params, sampler) -> None:
    """Writes the samples that are missing to `samples/step_<step>/`."""
    name = f"step_{step}" + (f"_{config.sampling.name}" if config.sampling.name else "")
    directory = os.path.join(workdir, "samples", name)
    fields = ("method", "epsilon", "steps_per_level", "denoise", "clip", "init")
    flat = configuration.flatten(config)
    settings = {f"sampling.{f}": flat[f"sampling.{f}"] for f in fields}
    settings |= {"seed": config.seed, "step": step}
    store = SampleStore(directory, settings, configuration.image_shape(config))

    count, size = config.sampling.num_samples, config.sampling.batch_size
    missing = store.missing(count)
    evaluations = config.model.num_levels * config.sampling.steps_per_level
    evaluations += bool(config.sampling.denoise)
    _log.info(
        "sampling %d images in batches of %d, %d network evaluations each",
        len(missing),
        size,
        evaluations,
    )
    started = time.perf_counter()
    for first in range(0, len(missing), size):
        indices = missing[first : first + size]
        store.add(indices, _sample_batch(config, sampler, params, indices, size))
        done = first + len(indices)
        left = (time.perf_counter() - started) / done * (len(missing) - done)
        _log.info("%d/%d samples  %s left", done, len(missing), report.human_time(left))
    store.finish()
    _log.info("wrote %s and grid.png", os.path.join(directory, "samples.npz"))


def _write_preview(config, workdir, step, params, writer, sampler) -> None:
    """Writes a small grid of samples to `samples/step_<step>/preview.png` and to TensorBoard."""
    size = config.sampling.preview_samples
    try:
        samples = _sample_batch(config, sampler, params, list(range(size)), size)
    except UserError as error:  # Sampling settings must not end a training run.
        _log.warning("no preview of step %d: %s", step, error)
        return
    grid = images.grid(samples)
    png = images.encode_png(grid, min_side=200)
    directory = os.path.join(workdir, "samples", f"step_{step}")
    os.makedirs(directory, exist_ok=True)
    images.write_atomically(os.path.join(directory, "preview.png"), png)
    writer.write_images(step, {"samples": png}, grid.shape)


def _describe(config, state, *, with_table: bool) -> None:
    """Logs the parameter table, the network's cost and the devices."""
    if with_table:
        table = parameter_overview.get_parameter_overview(state.params, include_stats=False)
        _log.debug("%s", table)
    model = configuration.make_model(config)
    example = jax.ShapeDtypeStruct((1, *configuration.image_shape(config)), np.float32)
    level = jax.ShapeDtypeStruct((1,), np.int32)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state.params)
    macs = report.count_multiply_adds(model.apply, shapes, example, level)
    count = sum(a.size for a in jax.tree.leaves(state.params))
    _log.info("%d parameters, %.4g multiply-adds per image and evaluation", count, macs)
    _log.info("devices: %s", report.describe_devices())


def _describe_memory(compiled, seconds: float) -> None:
    """Logs how long the step took to compile and how much memory it needs on each device."""
    memory = compiled.memory_analysis()
    if memory is None:  # Some backends do not tell.
        _log.info("compiled in %s", report.human_time(seconds))
        return
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    _log.info(
        "compiled in %s; memory per device, estimated by the compiler: %s (%s of it state and batch)",
        report.human_time(seconds),
        report.human_bytes(total),
        report.human_bytes(memory.argument_size_in_bytes),
    )


def _start(workdir: str) -> None:
    """Sends the log to standard output and to `<workdir>/log.txt`, and turns the compile cache on."""
    _log.setLevel(logging.DEBUG)
    _log.propagate = False
    try:
        file = logging.FileHandler(os.path.join(workdir, "log.txt"), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{workdir}/log.txt cannot be written: {error.strerror}") from None
    output = logging.StreamHandler(sys.stdout)
    output.setLevel(logging.INFO)  # the table of parameters is for the file
    _log.handlers = [output, file]
    if jax.process_count() > 1:
        raise UserError(
            f"{jax.process_count()} hosts are there; runs on several hosts do not work yet"
        )
    checkpoints.quiet_orbax()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        machine = hashlib.sha256(f"{platform.node()} {platform.machine()}".encode()).hexdigest()[:8]
        directory = os.path.join(cache.directory(), f"compiled-{machine}")
        jax.config.update("jax_compilation_cache_dir", directory)
