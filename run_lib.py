"""The loops behind the modes of `main.py`: load, compile, train, log, save, sample.

Meant to be read from top to bottom. The mathematics is in `ncsn_jax.training` and `ncsn_jax.sampling`,
everything about devices in `ncsn_jax.parallel`, and every file format has a module of its own.
"""

import contextlib
import functools
import hashlib
import logging
import os
import platform
import sys
import time
import zlib
from collections.abc import Callable

import jax
import numpy as np
from clu import parameter_overview

from ncsn_jax import (
    chains,
    checkpoints,
    data,
    hosts,
    images,
    inpainting,
    neighbours,
    parallel,
    report,
    sigmas,
    signals,
    storage,
    training,
)
from ncsn_jax import config as configuration
from ncsn_jax.data import cache
from ncsn_jax.errors import UserError, one_line
from ncsn_jax.metrics import Window, Writer
from ncsn_jax.samples import SampleStore

_log = logging.getLogger("ncsn_jax")

# What the first random numbers of a run are for, folded into the key of the seed.
_FOR_PARAMETERS = 0

# After how many calls of the compiled step the length of the run is estimated.
_CALLS_TO_ESTIMATE = 5

# Frames of a GIF, and samples in it; training images shown beside a sample, and samples compared at once.
_GIF_FRAMES, _GIF_SAMPLES = 60, 36
_NEIGHBOURS, _COMPARED_AT_ONCE = 6, 100

# Of the images, as bytes; compared as floats, twice, they take eight times as much.
_BYTES_TO_COMPARE = 500_000_000


def train(config, workdir: str) -> None:
    """Trains, or continues, up to `config.training.num_steps`, and then samples.

    Raises:
      signals.Stopped: if SIGTERM or Ctrl-C ended the training and the state is saved; only where
        `signals.install` was called, as by `main.py`.
    """
    configuration.check(config)
    _agree(config, "train")
    options = config.training
    with contextlib.ExitStack() as stack:

        def open_workdir() -> None:
            configuration.compare_workdir(config, workdir)
            configuration.make_workdir(workdir)
            samples = os.path.join(workdir, "samples")
            names = [os.path.join(samples, name) for name in storage.list_names(samples)]
            for directory in (workdir, *names):
                storage.remove_leftovers(directory)
            stack.enter_context(configuration.lock_workdir(workdir))

        hosts.on_first("to open the work directory", open_workdir)
        _start(workdir)
        dataset = configuration.load_images(config)
        configuration.claim_images(dataset, workdir)
        hosts.on_first("to begin", lambda: configuration.write_config(config, workdir))
        kept = options.checkpoints_kept, options.keep_every
        with checkpoints.Checkpoints(workdir, *kept) as store, Writer(workdir) as writer:
            step, state = _restore_or_init(config, store)
            _log.info("%d images of shape %s, from step %d", len(dataset), dataset.shape[1:], step)
            _describe(config, state, with_table=step == 0)
            if step > options.num_steps:
                _log.info("already beyond config.training.num_steps=%d", options.num_steps)
            state = parallel.replicate(state)
            runner = chains.Chains(config)
            if step < options.num_steps:
                preview = functools.partial(_write_preview, config, workdir, writer, runner)
                if _lacks_preview(config, workdir, step):
                    preview(step, state.ema_params or state.params)
                state = _train_loop(config, dataset, step, state, store, writer, preview)
                step = options.num_steps
        _write_samples(config, workdir, step, state.ema_params or state.params, runner)


def _restore_or_init(config, store) -> tuple[int, training.TrainState]:
    """Returns the newest checkpoint, or the state before the first step."""
    key = jax.random.fold_in(jax.random.key(config.seed), _FOR_PARAMETERS)
    init = configuration.make_init(config)
    found = store.restore_latest(jax.eval_shape(init, key))
    return (0, init(key)) if found is None else found


def sample(config, workdir: str) -> None:
    """Samples from the newest checkpoint of a work directory."""
    configuration.check(config)
    _agree(config, "sample")
    step, params = _load(config, workdir)
    _write_samples(config, workdir, step, params, chains.Chains(config))


def _agree(config, mode: str) -> None:
    """Raises UserError unless all processes were started to do the same."""
    fields = configuration.flatten(config)
    local = ("data.data_dir", "inpainting.images", "inpainting.mask")
    hosts.agree(
        "its configuration", {"mode": mode} | {f: fields[f] for f in fields if f not in local}
    )


def _load(config, workdir: str) -> tuple[int, dict]:
    """Returns step and replicated parameters of a work directory's newest checkpoint."""
    hosts.on_first("to find the run", lambda: configuration.require_run(config, workdir))
    _start(workdir)
    step, state = configuration.load_newest(config, workdir)
    return step, parallel.replicate(state.ema_params or state.params)


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


def _train_loop(config, dataset, step, state, store, writer, preview):
    """Runs from `step` to the last one and returns the final replicated state."""
    options = config.training
    per_call, last = options.steps_per_call, options.num_steps
    seed = np.uint32(config.seed)
    batches = data.Batches(
        dataset, config.seed, options.batch_size, jax.process_index(), hosts.count()
    )
    window = Window(
        configuration.make_sigmas(config),
        configuration.image_shape(config),
        step,
        options.skip_nonfinite,
    )
    train_steps = _compile(config, state, parallel.spread(batches(step, per_call)))
    in_flight, calls, stop = None, 0, 0

    def settle() -> None:
        """Waits for the call in flight, and hears whether any process is to stop."""
        nonlocal in_flight, stop
        if in_flight is not None:
            at, metrics, heard = in_flight
            with hosts.limit("in a training step", factor=per_call):
                window.add(at, metrics, store)
                stop = int(np.max(parallel.to_host(heard)))
            in_flight = None

    window.restart(step)
    with signals.deferred():
        while step < last and not stop:
            started = time.perf_counter()
            batch = parallel.spread(batches(step, per_call))
            window.input_seconds += time.perf_counter() - started
            wish = signals.requested() or 0
            state, metrics, heard = train_steps(state, batch, seed, wish)
            step, calls = step + per_call, calls + 1

            # One call stays in flight, so that the next batch is made while this one is computed.
            settle()
            in_flight = (step, metrics, heard)
            if calls == _CALLS_TO_ESTIMATE:
                settle()
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
            # Several processes stop after the same call, since all hear of it with its metrics.
            if any(due.values()) or (wish and hosts.count() == 1):
                settle()
            if due["log"]:
                scalars = window.scalars()
                writer.write_scalars(step, scalars)
                _log.info("%s", window.line(step, last, scalars))
                window.restart(step)
            if due["log"] or due["save"]:
                writer.flush(now=due["save"])
            if due["save"] or due["sample"]:
                store.save(step, parallel.to_host(state))
            if due["sample"] and step < last and not stop:
                # What is saved is not lost, and previews may take long.
                store.wait()
                with window.paused(), signals.at_once():
                    preview(step, state.ema_params or state.params)
        settle()
        if stop and step not in store.steps():
            store.save(step, parallel.to_host(state))
        store.wait()
        stop = int(hosts.gather(np.int32(stop or signals.requested() or 0)).max())
        if stop:
            _log.info("stopped after step %d, which is saved", step)
            raise signals.Stopped(stop, alone=False)
    return state


def _compile(config, state, batch) -> Callable:
    """Compiles the training step, and logs how long that took and what memory the step needs."""
    _log.info("compiling the training step")
    started = time.perf_counter()
    steps, memory = parallel.compile_train_steps(
        configuration.make_train_steps(config),
        state,
        batch,
        np.uint32(config.seed),
        remat=config.training.remat,
    )
    _describe_memory(memory, time.perf_counter() - started)
    hosts.meet("to compile the training step")
    return steps


def _write_samples(config, workdir, step, params, runner) -> np.ndarray | None:
    """Writes the samples that are missing to `samples/step_<step>/`; returns all, in process 0."""
    directory = _directory(config, workdir, "samples", step)
    count, size = config.sampling.num_samples, config.sampling.batch_size
    samples = _complete(
        "sampling",
        lambda: SampleStore(directory, _settings(config, step), configuration.image_shape(config)),
        count,
        size,
        runner,
        lambda indices, advanced: runner.run(params, indices, size, advanced=advanced)[0],
    )
    _log.info("wrote %s and grid.png", os.path.join(directory, "samples.npz"))
    if config.sampling.gif:
        indices = list(range(min(count, size, _GIF_SAMPLES)))
        with report.progress("filming", runner.num_steps) as advanced:
            _, taken = runner.run(params, indices, size, num_frames=_GIF_FRAMES, advanced=advanced)
        if hosts.is_first():
            _write_film(directory, taken)
    return samples


def _complete(
    what: str,
    open_store: Callable[[], SampleStore],
    count: int,
    size: int,
    runner: chains.Chains,
    make: Callable,
) -> np.ndarray | None:
    """Makes those of `count` samples that are missing, and returns all, in process 0.

    Args:
      what: it is, for the progress bar.
      open_store: returns where they are kept; called in process 0.
      count: how many there are to be.
      size: how many are made at once.
      runner: whose steps are counted.
      make: returns samples, `make(indices, advanced)`.
    """
    store = None

    def list_missing() -> list[int]:
        nonlocal store
        store = open_store()
        return store.missing(count)

    missing = hosts.on_first("to list the samples", list_missing)
    batches = [missing[first : first + size] for first in range(0, len(missing), size)]
    if missing:
        _log.info(
            "%s %d images in batches of %d, %d network evaluations each",
            what,
            len(missing),
            size,
            runner.num_steps,
        )
    else:
        _log.info("the samples are all there")
    with report.progress(what, len(batches) * runner.num_steps) as advanced:
        for indices in batches:
            samples = make(indices, advanced)
            if store is not None:
                store.add(indices, samples)
    return None if store is None else store.finish()


def _write_film(directory: str, taken: np.ndarray) -> None:
    """Writes `annealing.gif` and `filmstrip.png` of frames `[F, N, H, W, C]`."""
    columns = int(np.ceil(np.sqrt(taken.shape[1])))
    gif = images.encode_gif(np.stack([images.grid(f, columns) for f in taken]), min_side=400)
    storage.write(os.path.join(directory, "annealing.gif"), gif)
    strip = images.filmstrip(taken, rows=8, columns=12)
    images.write_png(os.path.join(directory, "filmstrip.png"), strip)
    _log.info("wrote annealing.gif and filmstrip.png there")


def _settings(config, step: int) -> dict:
    """Returns what determines every sample of a checkpoint."""
    flat = configuration.flatten(config)
    fields = ("method", "epsilon", "steps_per_level", "denoise", "clip", "init", "dtype")
    return {f"sampling.{f}": flat[f"sampling.{f}"] for f in fields} | {
        "seed": config.seed,
        "step": step,
    }


def _directory(config, workdir: str, kind: str, step: int) -> str:
    """Returns the directory for what is made from the checkpoint of a step."""
    name = f"step_{step}" + (f"_{config.sampling.name}" if config.sampling.name else "")
    return os.path.join(workdir, kind, name)


def inpaint(config, workdir: str) -> None:
    """Completes images of which a part is hidden, several times each."""
    configuration.check(config)
    _agree(config, "inpaint")
    hosts.on_first("to find the run", lambda: configuration.require_run(config, workdir))
    options, shape = config.inpainting, configuration.image_shape(config)
    if options.images:
        originals, left_out = inpainting.read_images(
            options.images,
            config.data.image_size,
            config.data.channels,
            config.data.crop_size or -1,
        )
    else:
        originals, left_out = configuration.load_images(config, "test"), ""
    originals = np.asarray(originals[: options.num_images])
    masks = inpainting.make_masks(options.mask, shape, len(originals), config.seed)
    step, params = _load(config, workdir)
    runner = chains.Chains(config, chains.FOR_INPAINTING)

    each, size = options.num_completions, config.sampling.batch_size
    directory = _directory(config, workdir, "inpainting", step)
    settings = _settings(config, step) | {
        "inpainting.keep_observed": options.keep_observed,
        "inpainting.scheme": options.scheme,
        "inpainting.num_completions": each,
        "images and masks": zlib.crc32(masks.tobytes(), zlib.crc32(originals.tobytes())),
    }
    hosts.agree("what it inpaints", settings)
    if hosts.is_first():
        storage.remove_leftovers(directory)
    _log.info("completing %d images, %d times each, from step %d", len(originals), each, step)
    if left_out:
        _log.warning("%s: %s", one_line(options.images), left_out)

    def make(indices: list[int], advanced: Callable[[int], None]) -> np.ndarray:
        image = np.asarray(indices) // each
        observed = originals[image] / np.float32(255)
        return runner.run(params, indices, size, observed, masks[image], advanced=advanced)[0]

    completions = _complete(
        "inpainting",
        lambda: SampleStore(os.path.join(directory, "samples"), settings, shape),
        len(originals) * each,
        size,
        runner,
        make,
    )
    if completions is None:
        return
    completions = completions.reshape(len(originals), each, *shape)
    images.write_npz(
        os.path.join(directory, "completions.npz"),
        originals=originals,
        masks=masks,
        completions=completions,
    )
    occluded = np.where(masks, originals, np.uint8(192))
    rows = np.concatenate([originals[:, None], occluded[:, None], completions], axis=1)
    picture = images.grid(rows.reshape(-1, *shape), columns=each + 2)
    images.write_png(os.path.join(directory, "completions.png"), picture)
    _log.info("wrote completions.npz and completions.png to %s", directory)


def nearest(config, workdir: str) -> None:
    """Shows samples of the newest checkpoint beside the nearest training images."""
    configuration.check(config)
    _agree(config, "nearest")
    step, params = _load(config, workdir)
    dataset = configuration.load_images(config)
    configuration.claim_images(dataset, workdir, read_only=True)
    samples = _write_samples(config, workdir, step, params, chains.Chains(config))
    if samples is None:
        return
    samples = samples[: config.sampling.num_samples]
    count = min(_NEIGHBOURS, len(dataset))
    with report.progress("comparing", len(samples)) as advanced:
        found = []
        for first in range(0, len(samples), _COMPARED_AT_ONCE):
            some = samples[first : first + _COMPARED_AT_ONCE]
            found.append(neighbours.nearest(some, dataset, count))
            advanced(len(some))
    indices, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
    directory = _directory(config, workdir, "samples", step)
    images.write_npz(os.path.join(directory, "nearest.npz"), indices=indices, distances=distances)
    shown = samples[: config.sampling.preview_samples]
    rows = [np.concatenate([s[None], dataset[i]]) for s, i in zip(shown, indices, strict=False)]
    picture = images.grid(np.concatenate(rows), columns=count + 1)
    images.write_png(os.path.join(directory, "nearest.png"), picture)
    _log.info(
        "distance to the nearest training image: smallest %.3g, median %.3g; wrote nearest.png and "
        "nearest.npz to %s",
        distances[:, 0].min(),
        np.median(distances[:, 0]),
        directory,
    )


def _lacks_preview(config, workdir: str, step: int) -> bool:
    """Whether a run that was killed had saved a step and not yet written its preview."""
    every = config.training.sample_every
    path = _preview_path(workdir, step)
    return bool(step and every and step % every == 0) and hosts.on_first(
        "to look for the preview", lambda: not storage.exists(path)
    )


def _preview_path(workdir: str, step: int) -> str:
    return os.path.join(workdir, "samples", f"step_{step}", "preview.png")


def _write_preview(config, workdir, writer, runner, step, params) -> None:
    """Writes a small grid of samples to `samples/step_<step>/preview.png` and to TensorBoard."""
    size = config.sampling.preview_samples
    try:
        samples, _ = runner.run(params, list(range(size)), size)
    except UserError as error:  # Sampling settings must not end a training run.
        _log.warning("no preview of step %d: %s", step, error)
        return
    if not hosts.is_first():
        return
    grid = images.grid(samples)
    png = images.encode_png(grid, min_side=200)
    path = _preview_path(workdir, step)
    storage.make_directory(os.path.dirname(path))
    storage.write(path, png)
    writer.write_images(step, {"samples": png}, grid.shape)


def _describe(config, state, *, with_table: bool) -> None:
    """Logs the parameter table, the network's cost and the devices."""
    if with_table:
        table = parameter_overview.get_parameter_overview(state.params, include_stats=False)
        _log.debug("%s", table)
    options = config.training
    model = configuration.make_model(config, dtype=options.dtype, remat=options.remat)
    cost = report.estimate_cost(
        model, configuration.image_shape(config), ema=config.model.ema_decay > 0
    )
    at_once = options.batch_size // (jax.device_count() * options.microbatches)
    _log.info("%s", report.describe_cost(cost, at_once))
    _log.info("devices: %s", report.describe_devices())
    if options.remat:
        _log.info("activations inside blocks are computed twice: about 4/3 of the operations")
    if options.dtype != "float32" or options.microbatches > 1:
        _log.info(
            "training computes in %s, in %d part(s) a batch", options.dtype, options.microbatches
        )


def _describe_memory(memory, seconds: float) -> None:
    """Logs how long the step took to compile and how much memory it needs on each device."""
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


class _LogFile(logging.Handler):
    """The log in a file. On a full disk it ends; what has to be written says so itself."""

    def __init__(self, path: str):
        super().__init__()
        self._file = storage.Growing(path)

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            self._file.write((self.format(record) + "\n").encode(errors="backslashreplace"))
            self._file.flush()

    def close(self) -> None:
        _log.removeHandler(self)
        with contextlib.suppress(OSError):
            self._file.close()
        super().close()


def _start(workdir: str) -> None:
    """Sends the log to standard output and to `<workdir>/log.txt`, and turns the compile cache on.

    Of several processes only the first has a log.
    """
    for handler in list(_log.handlers):
        handler.close()
    _log.setLevel(logging.DEBUG)
    _log.propagate = False
    _log.handlers = [logging.NullHandler()]
    if hosts.is_first():
        try:
            file = _LogFile(os.path.join(workdir, "log.txt"))
        except OSError as error:
            raise UserError(f"{workdir}/log.txt cannot be written: {error.strerror}") from None
        output = logging.StreamHandler(sys.stdout)
        output.setLevel(logging.INFO)  # the table of parameters is for the file
        _log.handlers = [output, file]
    checkpoints.quiet_orbax()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        machine = hashlib.sha256(f"{platform.node()} {platform.machine()}".encode()).hexdigest()[:8]
        directory = os.path.join(cache.directory(), f"compiled-{machine}")
        jax.config.update("jax_compilation_cache_dir", directory)
