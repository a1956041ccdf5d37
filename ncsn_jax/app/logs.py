"""Sets up a run's log, and writes its first lines.

The first process writes it to standard output and to the work directory's `log.txt`.
"""

import contextlib
import logging
import math
import os
import sys

import jax
from clu import parameter_overview

from ncsn_jax.app import build, cpu, devices, distributed, storage
from ncsn_jax.app.data import Images
from ncsn_jax.app.progress import human_bytes, human_count, human_time
from ncsn_jax.errors import UserError
from ncsn_jax.training import TrainState

# If the final EMA holds a larger share of the initial parameters, the samples are spoiled.
_MAX_INITIAL_SHARE = 0.05

_log = logging.getLogger("ncsn_jax")


def start(workdir: str | None) -> None:
    """Sends the log to standard output and, if there is a work directory, to `<workdir>/log.txt`.

    Only the first process has a log.
    """
    for handler in list(_log.handlers):
        handler.close()
    _log.setLevel(logging.DEBUG)
    _log.propagate = False
    _log.handlers = [logging.NullHandler()]
    if distributed.is_first():
        output = logging.StreamHandler(sys.stdout)
        output.setLevel(logging.INFO)  # only the file gets the table of parameters
        handlers = [output]
        if workdir is not None:
            try:
                handlers.append(_LogFile(os.path.join(workdir, "log.txt")))
            except OSError as error:
                raise UserError(f"{workdir}/log.txt cannot be written: {error.strerror}") from None
        _log.handlers = handlers


def warn_of_average(config) -> None:
    """Warns if a run is so short that the EMA, which samples use, stays near the initial weights."""
    model, steps, batch = config.model, config.training.num_steps, config.training.batch_size
    field, value, better = "ema_decay", model.ema_decay, 0.01 ** (1 / steps)
    share = value**steps
    if model.ema_halflife and not model.ema_rampup:  # a ramp-up forgets the initial parameters
        field, value = "ema_halflife", model.ema_halflife
        share, better = 2 ** (-batch * steps / value), batch * steps / math.log2(100)
    if share > _MAX_INITIAL_SHARE:
        _log.warning(
            "config.model.%s=%g is too large for %d steps: the initial parameters will make up "
            "%.0f %% of the EMA, which samples use; take about %.3g",
            field,
            value,
            steps,
            100 * share,
            better,
        )


def advise_on_input(config, dataset: Images, share: float) -> None:
    """Warns that steps wait for their images, and suggests a remedy."""
    if dataset.source is None:
        advice = "they are mapped from a file: use a faster disk, or enough memory to hold them all"
    else:
        advice = (
            f"{build.num_workers(config)} config.data.workers decode them on {cpu.cores()} cores. Store them "
            "at the size that training uses; set config.data.cache_bytes above "
            f"{dataset.nbytes}, so that each is decoded only once; or use more workers if cores are idle "
            "(docs/input.md)"
        )
    _log.warning("steps spend %.0f %% of the time waiting for images: %s", 100 * share, advice)


def describe(config, state: TrainState, *, with_table: bool) -> None:
    """Logs the table of parameters, the size of the state, and the devices."""
    if with_table:
        table = parameter_overview.get_parameter_overview(state.params, include_stats=False)
        _log.debug("%s", table)
    leaves, kinds = jax.tree.leaves(state.params), jax.devices()
    _log.info(
        "%s parameters; with gradient, optimizer and EMA %s per device; devices: %d x %s on %d host(s)",
        f"{sum(a.size for a in leaves):,}",
        human_bytes(sum(a.nbytes for a in [*leaves, *jax.tree.leaves(state)])),
        len(kinds),
        kinds[0].device_kind,
        jax.process_count(),
    )
    options = config.training
    if options.dtype != "float32" or options.microbatches > 1:
        _log.info(
            "training computes in %s, with %d microbatch(es)", options.dtype, options.microbatches
        )


def describe_executable(steps: devices.TrainSteps, microbatches: int, seconds: float) -> None:
    """Logs the training step's compile time, its operations, and its memory on each device.

    Args:
      steps: the compiled step.
      microbatches: how many it has. XLA counts a loop's body once, both over steps and over microbatches.
      seconds: above 0.
    """
    line = f"training step compiled in {human_time(seconds)}"
    if steps.operations is not None:  # some backends report neither
        line += f"; about {human_count(microbatches * steps.operations)}FLOP per step and device"
    if steps.memory is not None:
        state = steps.memory.argument_size_in_bytes
        line += (
            f"; memory per device, estimated by the compiler: "
            f"{human_bytes(state + steps.memory.temp_size_in_bytes)} "
            f"(of which {human_bytes(state)} state and batch)"
        )
    _log.info("%s", line)


class _LogFile(logging.Handler):
    """Logs to a file, with the time. On a full disk it stops; writes that matter raise their own errors."""

    def __init__(self, path: str):
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._file = storage.Growing(path)

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the file is closed
            self._file.write((self.format(record) + "\n").encode(errors="backslashreplace"))
            self._file.flush()

    def close(self) -> None:
        _log.removeHandler(self)
        with contextlib.suppress(OSError):
            self._file.close()
        super().close()
