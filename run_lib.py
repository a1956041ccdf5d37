"""The modes of `main.py`. This file trains, from start to samples: read it from top to bottom.

The mathematics is in `ncsn_jax.training` and `ncsn_jax.sampling`, everything about devices in
`ncsn_jax.app.devices`, and the other modes in `ncsn_jax.app.modes`.
"""

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from ncsn_jax import training
from ncsn_jax._random import Stream, stream_key
from ncsn_jax.app import (
    build,
    checkpoints,
    data,
    devices,
    distributed,
    logs,
    pictures,
    run_samplers,
    samplers,
    schema,
    signals,
    storage,
    units,
    watching,
    workdirs,
)
from ncsn_jax.app.feed import Feed
from ncsn_jax.app.metrics import Window, Writer
from ncsn_jax.app.modes import shared
from ncsn_jax.app.modes.average import average
from ncsn_jax.app.modes.classifier import classconditional, classifier
from ncsn_jax.app.modes.complete import colorize, inpaint
from ncsn_jax.app.modes.evaluate import evaluate, statistics
from ncsn_jax.app.modes.interpolate import interpolate
from ncsn_jax.app.modes.likelihood import likelihood
from ncsn_jax.app.modes.nearest import nearest
from ncsn_jax.app.modes.plan import plan
from ncsn_jax.app.modes.restore import restore
from ncsn_jax.app.modes.sample import sample, write_samples
from ncsn_jax.app.modes.suggest import suggest
from ncsn_jax.errors import UserError

__all__ = [
    "average",
    "classconditional",
    "classifier",
    "colorize",
    "evaluate",
    "inpaint",
    "interpolate",
    "likelihood",
    "nearest",
    "plan",
    "restore",
    "sample",
    "statistics",
    "suggest",
    "train",
]

_log = logging.getLogger("ncsn_jax")

# After this many seconds the length of the run is estimated, unless a line of the log has given it.
_SECONDS_TO_ESTIMATE = 20

# If steps wait for images for a larger share of the time, the log suggests a remedy.
_MAX_WAITING = 0.05


@devices.jax_defaults()
def train(config, workdir: str, images: np.ndarray | None = None) -> None:
    """Trains, or continues, up to `config.training.num_steps`, and then samples.

    Args:
      config: the configuration.
      workdir: the run's directory.
      images: an array to train on in place of `config.data.dataset`, `[N, H, W]` or `[N, H, W, C]`:
        uint8, or floating point with `config.data.value_range`. To continue the run, pass it again.

    Raises:
      SystemExit: if SIGTERM or Ctrl-C ended training and the state is saved; only after
        `signals.install`, which `main.py` calls.
      KeyboardInterrupt: likewise after Ctrl-C in a notebook.
    """
    schema.check(config)
    samplers.check(config)
    shared.agree(config, "train")
    options = config.training
    with contextlib.ExitStack() as stack:

        def open_workdir() -> None:
            workdirs.compare(config, workdir)
            workdirs.make(workdir)
            samples = os.path.join(workdir, "samples")
            names = [os.path.join(samples, name) for name in storage.list_names(samples)]
            for directory in (workdir, *names):
                storage.remove_leftovers(directory)
            stack.enter_context(workdirs.lock(workdir))

        distributed.on_first("to open the work directory", open_workdir)
        logs.start(workdir)
        logs.warn_of_average(config)
        devices.keep_compiled()
        dataset = shared.load_images(config, workdir, images=images)
        labels = build.load_classes(config, given=images is not None)
        workdirs.claim_images(dataset, workdir, given=images is not None)
        distributed.on_first("to begin", lambda: workdirs.write_config(config, workdir))
        kept = options.checkpoints_kept, options.keep_every, options.keep_best
        with checkpoints.Checkpoints(workdir, *kept) as store, Writer(workdir) as writer:
            step, state = _first_state(config, store, dataset)
            writer.write_text(step, "configuration", _table(config))
            runner = run_samplers.Chains(config)
            watch = watching.Watch(
                config, dataset, store, writer, runner, has_array=images is not None
            )
            if watch.is_missing(step):
                watch(step, training.sampling_params(state))
            if step < options.num_steps:
                preview = functools.partial(_write_preview, config, workdir, writer, runner)
                if _lacks_preview(config, workdir, step):
                    preview(step, training.sampling_params(state))
                looks = preview, watch
                with _feed(config, dataset, labels, step) as feed:
                    train_steps = _compile(config, state)
                    # Rebinding frees the host arrays of the first state; those on the devices are donated.
                    state = train_steps.to_devices(state)
                    state = _train_loop(
                        config, dataset, feed, train_steps, step, state, store, writer, looks
                    )
                step = options.num_steps
            params = devices.replicate(training.sampling_params(state))
            del state
            samples = write_samples(shared.Loaded(config, workdir, step, params), runner)
            if samples is not None:
                shown = units.to_picture(samples[:100], config.data.value_range)
                grid = pictures.grid(shown)
                writer.write_image(step, "grid", pictures.encode_png(grid), grid.shape)
        if images is None:
            then = f"python main.py --workdir={workdir} --mode=nearest"
        else:
            then = f"run_lib.nearest(config, {workdir!r}, images=images)"
        _log.info(
            "done. Next: %s (or inpaint, interpolate, likelihood), or ncsn_jax.load_run(%r) in Python",
            then,
            workdir,
        )


def _first_state(config, store, dataset: data.Images) -> tuple[int, training.TrainState]:
    """Returns the first (step, state), from the newest checkpoint or for a new run."""
    key, init = stream_key(config.seed, Stream.PARAMETERS), build.make_init(config)
    if distributed.on_first("to look for checkpoints", store.steps):
        step, state = store.load(jax.eval_shape(init, key))
    else:
        step, state = 0, init(key)
    threads = build.num_workers(config)
    _log.info(
        "%d images of shape %s%s, from step %d",
        len(dataset),
        dataset.shape[1:],
        f", decoded on demand by {threads} worker(s)" if dataset.source else "",
        step,
    )
    logs.describe(config, state, with_table=step == 0)
    if step > config.training.num_steps:
        _log.info("already past config.training.num_steps=%d", config.training.num_steps)
    return step, state


def _table(config) -> str:
    """Returns the fields as a Markdown table."""
    rows = (f"| {name} | `{value!r}` |" for name, value in schema.flatten(config).items())
    return "\n".join(["| field | value |", "|---|---|", *rows])


def _feed(config, dataset: data.Images, labels, step: int) -> Feed:
    """Returns this process's batches from a step on, as the training step takes them."""
    options, index, count = config.training, jax.process_index(), distributed.count()
    batches = data.Batches(dataset, config.seed, options.batch_size, index, count, labels)

    def prepare(batch):
        if labels is not None:
            return devices.shard_batch(batch)  # bytes, as only these have labels
        return devices.shard_batch(units.to_input(batch, config.data.value_range))

    threads, ahead = build.num_workers(config), config.data.prefetch
    stream = batches.between(
        step, options.num_steps, options.steps_per_call, threads=threads, ahead=ahead
    )
    return Feed(stream, prepare)


def _train_loop(config, dataset, feed, train_steps, step, state, store, writer, looks):
    """Trains from `step` to the last one with `state` on the devices; returns the last state on the host."""
    options = config.training
    per_call, last = options.steps_per_call, options.num_steps
    sigmas = build.make_objective(config).sigmas
    learning_rate = build.make_schedule(config)
    window = Window(sigmas, build.image_shape(config), step, options.skip_nonfinite)
    in_flight, stop, estimated, advised, windows = None, 0, False, False, 0
    complete = pending = step
    preview, watch = looks

    def settle() -> None:
        """Waits for the call in flight, and finds out whether any process must stop."""
        nonlocal in_flight, stop
        if in_flight is not None:
            at, metrics, stop_signals = in_flight
            with distributed.limit("in a training step", factor=per_call):
                window.add(at, metrics, store)
                stop = int(np.max(devices.to_host(stop_signals)))
            in_flight = None

    def save(then: Sequence[Callable] = ()) -> None:
        nonlocal complete, pending
        saved = train_steps.to_host(state)
        store.save(step, saved)  # waits for the previous save
        complete, pending = pending, step
        if then:
            # A look may take long, so make sure that the checkpoint is on disk first.
            store.wait()
            complete = step
            with window.paused(), signals.at_once():
                for look in then:
                    look(step, training.sampling_params(saved))

    def last_saved() -> str:
        return f"the last checkpoint known to be complete is step {complete}"

    window.restart(step)
    with signals.deferred(last_saved):
        while step < last and not stop:
            batch = feed.take(in_flight and in_flight[1].loss)
            stop_signal = signals.requested() or 0
            state, metrics, stop_signals = train_steps(state, batch, stop_signal)
            step += per_call

            # One call stays in flight, so that the next batch is made meanwhile.
            settle()
            in_flight = (step, metrics, stop_signals)
            if not estimated and time.perf_counter() - window.started > _SECONDS_TO_ESTIMATE:
                estimated = True
                settle()
                _log.info(
                    "estimate: %s for the remaining %d steps, excluding samples",
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
            # Several processes learn of a signal with the metrics, so all stop after the same call.
            if any(due.values()) or (stop_signal and distributed.count() == 1):
                settle()
            if due["log"]:
                estimated = True
                # The host that waits longest delays all others.
                waited, feed.waited = distributed.gather(np.float32(feed.waited)).max(), 0.0
                scalars = window.scalars(waited)
                scalars["learning_rate"] = float(learning_rate(step - 1))
                if damaged := shared.name_damaged(dataset):
                    scalars["damaged_images"] = damaged
                writer.write_scalars(step, scalars)
                _log.info("%s", window.line(step, last, scalars))
                windows += 1
                # The first window includes the start of the input.
                if scalars["input_share"] > _MAX_WAITING and windows > 1 and not advised:
                    advised = True
                    logs.advise_on_input(config, dataset, scalars["input_share"])
                window.restart(step)
            if due["log"] or due["save"]:
                writer.flush(now=due["save"])
            then = [preview] if due["sample"] and step < last else []
            then += [watch] if watch.is_due(step) else []
            if due["save"] or then:
                save([] if stop else then)
        settle()
        if stop and step not in store.steps():
            save()
        store.wait()
        stop = int(distributed.gather(np.int32(stop or signals.requested() or 0)).max())
        if stop:
            _log.info("stopped after step %d, which is saved", step)
            signals.stop(stop)
    return train_steps.to_host(state)


def _compile(config, state) -> devices.TrainSteps:
    """Compiles the training step for states like `state`, and logs the compiler's figures."""
    _log.info("compiling the training step")
    started = time.perf_counter()
    options = config.training
    size = options.batch_size // distributed.count()
    dtype = units.dtype(config.data.value_range)
    batch = np.empty((options.steps_per_call, size, *build.image_shape(config)), dtype)
    if config.data.labels:
        batch = batch, np.zeros(batch.shape[:2], np.int32)
    steps = devices.TrainSteps(
        build.make_train_steps(config),
        state,
        devices.shard_batch(batch),
        np.uint32(config.seed),
        remat=options.remat,
        packed=build.is_elementwise(config),
    )
    logs.describe_executable(steps, options.microbatches, time.perf_counter() - started)
    distributed.meet("to compile the training step")
    return steps


def _lacks_preview(config, workdir: str, step: int) -> bool:
    """Returns whether a killed run had saved a step but not yet written its preview."""
    every = config.training.sample_every
    path = _preview_path(workdir, step)
    return bool(step and every and step % every == 0) and distributed.on_first(
        "to look for the preview", lambda: not storage.exists(path)
    )


def _preview_path(workdir: str, step: int) -> str:
    return os.path.join(workdir, "samples", f"step_{step}", "preview.png")


def _write_preview(config, workdir, writer, runner, step, params) -> None:
    """Writes a small grid of samples to `samples/step_<step>/preview.png` and to TensorBoard."""
    size = config.sampling.preview_samples
    try:
        samples = runner.run(devices.replicate(params), list(range(size)), size).images
    except UserError as error:  # sampling settings must not end a training run
        _log.warning("no preview at step %d: %s", step, error)
        return
    if not distributed.is_first():
        return
    grid = pictures.grid(units.to_picture(samples, config.data.value_range))
    png = pictures.encode_png(grid, min_side=200)
    path = _preview_path(workdir, step)
    storage.make_directory(os.path.dirname(path))
    storage.write(path, png)
    writer.write_image(step, "samples", png, grid.shape)
