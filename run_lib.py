"""The loops behind the modes of `main.py`: load, compile, train, log, save, sample.

Meant to be read from top to bottom. The mathematics is in `ncsn_jax.training` and `ncsn_jax.sampling`,
everything about devices in `ncsn_jax.parallel`, and every file format has a module of its own.
"""

import hashlib
import logging
import os
import platform
import sys
import time
import zlib

import jax
import numpy as np
from clu import parameter_overview

from ncsn_jax import (
    chains,
    checkpoints,
    data,
    images,
    inpainting,
    neighbours,
    parallel,
    report,
    sigmas,
    training,
)
from ncsn_jax import config as configuration
from ncsn_jax.data import cache
from ncsn_jax.errors import UserError
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
            runner = chains.Chains(config)
            if step < config.training.num_steps:
                batches = data.Batches(dataset, config.seed, config.training.batch_size)
                state = _train_loop(config, workdir, step, state, batches, store, writer, runner)
                step = config.training.num_steps
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
    configuration.require_run(config, workdir)
    _start(workdir)
    step, state = configuration.load_newest(config, workdir)
    params = parallel.replicate(state.ema_params or state.params)
    _write_samples(config, workdir, step, params, chains.Chains(config))


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


def _train_loop(config, workdir, step, state, batches, store, writer, runner):
    """Runs from `step` to the last one and returns the final replicated state."""
    options = config.training
    per_call, last = options.steps_per_call, options.num_steps
    seed = np.uint32(config.seed)
    window = Window(
        configuration.make_sigmas(config),
        configuration.image_shape(config),
        step,
        options.skip_nonfinite,
    )
    p_steps = parallel.map_train_steps(
        configuration.make_train_steps(config), keep_barriers=options.remat
    )
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
                _write_preview(config, workdir, step, params, writer, runner)
    return state


def _write_samples(config, workdir, step, params, runner) -> np.ndarray:
    """Writes the samples that are missing to `samples/step_<step>/`, and returns all of them."""
    directory = _directory(config, workdir, "samples", step)
    store = SampleStore(directory, _settings(config, step), configuration.image_shape(config))

    count, size = config.sampling.num_samples, config.sampling.batch_size
    missing = store.missing(count)
    batches = [missing[first : first + size] for first in range(0, len(missing), size)]
    if missing:
        _log.info(
            "sampling %d images in batches of %d, %d network evaluations each",
            len(missing),
            size,
            runner.num_steps,
        )
    else:
        _log.info("the samples are all there")
    with report.progress("sampling", len(batches) * runner.num_steps) as advanced:
        for indices in batches:
            store.add(indices, runner.run(params, indices, size, advanced=advanced)[0])
    samples = store.finish()
    _log.info("wrote %s and grid.png", os.path.join(directory, "samples.npz"))
    if config.sampling.gif:
        indices = list(range(min(count, size, _GIF_SAMPLES)))
        with report.progress("filming", runner.num_steps) as advanced:
            _, taken = runner.run(params, indices, size, num_frames=_GIF_FRAMES, advanced=advanced)
        columns = int(np.ceil(np.sqrt(len(indices))))
        gif = images.encode_gif(np.stack([images.grid(f, columns) for f in taken]), min_side=400)
        images.write_atomically(os.path.join(directory, "annealing.gif"), gif)
        strip = images.filmstrip(taken, rows=8, columns=12)
        images.write_png(os.path.join(directory, "filmstrip.png"), strip)
        _log.info("wrote annealing.gif and filmstrip.png there")
    return samples


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
    configuration.require_run(config, workdir)
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
    _start(workdir)
    step, state = configuration.load_newest(config, workdir)
    params = parallel.replicate(state.ema_params or state.params)
    runner = chains.Chains(config, chains.FOR_INPAINTING)

    each, size = options.num_completions, config.sampling.batch_size
    directory = _directory(config, workdir, "inpainting", step)
    settings = _settings(config, step) | {
        "inpainting.keep_observed": options.keep_observed,
        "inpainting.scheme": options.scheme,
        "inpainting.num_completions": each,
        "images and masks": zlib.crc32(masks.tobytes(), zlib.crc32(originals.tobytes())),
    }
    store = SampleStore(os.path.join(directory, "samples"), settings, shape)
    missing = store.missing(len(originals) * each)
    batches = [missing[first : first + size] for first in range(0, len(missing), size)]
    _log.info("completing %d images, %d times each, from step %d", len(originals), each, step)
    if left_out:
        _log.warning("%s: %s", options.images, left_out)
    with report.progress("inpainting", len(batches) * runner.num_steps) as advanced:
        for batch in batches:
            image = np.asarray(batch) // each
            observed = originals[image] / np.float32(255)
            found, _ = runner.run(params, batch, size, observed, masks[image], advanced=advanced)
            store.add(batch, found)
    completions = store.finish().reshape(len(originals), each, *shape)

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
    configuration.require_run(config, workdir)
    dataset = configuration.load_images(config)
    configuration.claim_images(dataset, workdir, read_only=True)
    _start(workdir)
    step, state = configuration.load_newest(config, workdir)
    params = parallel.replicate(state.ema_params or state.params)
    samples = _write_samples(config, workdir, step, params, chains.Chains(config))
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


def _write_preview(config, workdir, step, params, writer, runner) -> None:
    """Writes a small grid of samples to `samples/step_<step>/preview.png` and to TensorBoard."""
    size = config.sampling.preview_samples
    try:
        samples, _ = runner.run(params, list(range(size)), size)
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
    for handler in _log.handlers:
        handler.close()
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
