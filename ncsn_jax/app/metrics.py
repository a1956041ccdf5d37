"""Writes a run's metrics to TensorBoard events, `metrics.jsonl` and the log.

TensorBoard's `RecordWriter` writes the events. Its `EventFileWriter` and clu's writers import TensorFlow
if it is installed, which costs seconds and half a gigabyte of memory.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from ncsn_jax import training
from ncsn_jax.app import checkpoints, devices, distributed, storage
from ncsn_jax.app.progress import human_time
from ncsn_jax.errors import UserError

# In object storage, a file of events larger than this is followed by another.
_MAX_EVENTS = 2**20


class Writer:
    """Appends a run's scalars and images to files in its work directory.

    Use it as a context manager, which closes the files. Only the first process writes.

    Args:
      workdir: the work directory, which exists.
    """

    def __init__(self, workdir: str):
        self._workdir = workdir if distributed.is_first() else ""
        self._lines = self._grow("metrics.jsonl")
        self._name, self._files = f"events.out.tfevents.{int(time.time()):010d}.{os.getpid()}", 0
        self._begin_events()

    def _grow(self, name: str) -> storage.Growing:
        return storage.Growing(os.path.join(self._workdir, name) if self._workdir else os.devnull)

    def _begin_events(self) -> None:
        # TensorBoard reads the event files of a directory in the order of their names.
        self._file = self._grow(f"{self._name}.{self._files:06d}")
        self._files, self._size = self._files + 1, 0
        self._add(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def _add(self, event: event_pb2.Event) -> None:
        data = event.SerializeToString()
        RecordWriter(self._file).write(data)
        self._size += len(data)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            with contextlib.closing(self._lines), contextlib.closing(self._file):
                self.flush()
        except OSError:
            if error is None:
                raise

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one step's numbers, by name."""
        values = [
            summary_pb2.Summary.Value(tag=tag, simple_value=float(v)) for tag, v in scalars.items()
        ]
        self._write(step, values)
        # JSON has neither NaN nor infinity.
        line = {k: float(v) if np.isfinite(v) else None for k, v in scalars.items()}
        self._lines.write((json.dumps({"step": step, **line}) + "\n").encode())

    def write_image(self, step: int, tag: str, png: bytes, shape: tuple[int, int, int]) -> None:
        """Writes a named picture, a PNG file of height, width and channels `shape`."""
        height, width, channels = shape
        image = summary_pb2.Summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=png
        )
        self._write(step, [summary_pb2.Summary.Value(tag=tag, image=image)])

    def write_text(self, step: int, tag: str, text: str) -> None:
        """Writes a named text in Markdown."""
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[text.encode()])
        tensor.tensor_shape.dim.add(size=1)
        value = summary_pb2.Summary.Value(
            tag=tag, metadata=summary_pb2.SummaryMetadata(plugin_data=plugin), tensor=tensor
        )
        self._write(step, [value])

    def flush(self, *, now: bool = False) -> None:
        """Flushes everything written so far; to object storage only now and then, unless `now`."""
        self._file.flush(now=now)
        self._lines.flush(now=now)

    def _write(self, step, values) -> None:
        summary = summary_pb2.Summary(value=values)
        self._add(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))
        # An object is written as a whole. If that fails, the next event tries again.
        if storage.is_remote(self._workdir) and self._size > _MAX_EVENTS:
            with contextlib.suppress(OSError):
                self._file.flush(now=True)
                self._begin_events()


@dataclasses.dataclass
class Window:
    """Collects metrics between two lines of the log.

    Args:
      sigmas: the sigmas of the objective's bins.
      image_shape: (H, W, C).
      first_step: the step before the first.
      skip_nonfinite: how many steps in a row may be non-finite; training skips them, and they are counted.
    """

    sigmas: np.ndarray
    image_shape: tuple[int, int, int]
    first_step: int
    skip_nonfinite: int = 0

    def __post_init__(self):
        self.skipped_in_a_row = 0  # also across windows
        self.restart(self.first_step)

    def restart(self, step: int) -> None:
        """Forgets what happened before a step."""
        self.first_step = self.step = step
        self.started = time.perf_counter()
        self.losses, self.grad_norms, self.skipped = [], [], 0
        self.level_loss = np.zeros(len(self.sigmas))
        self.level_count = np.zeros(len(self.sigmas))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def add(self, step: int, metrics: training.Metrics, store: checkpoints.Checkpoints) -> None:
        """Waits for the metrics of a call that ends at `step`, and adds them.

        Raises:
          UserError: if more steps in a row are non-finite than allowed.
        """
        metrics = devices.to_host(metrics)
        finite = np.isfinite(metrics.loss) & np.isfinite(metrics.grad_norm)
        for bad, is_finite in enumerate(finite):
            self.skipped_in_a_row = 0 if is_finite else self.skipped_in_a_row + 1
            if self.skipped_in_a_row <= self.skip_nonfinite:
                continue
            store.wait()
            good = store.steps()
            message = (
                f"the loss is {metrics.loss[bad]} and the gradient norm is {metrics.grad_norm[bad]} "
                f"at step {step - len(finite) + bad + 1}"
            )
            if distributed.is_first():
                kept = f"step {good[0]}" if good else "none"
                message += f"; last good checkpoint: {kept}"
            raise UserError(message)
        self.step = step
        self.skipped += int(np.sum(~finite))
        self.losses.extend(metrics.loss[finite])
        self.grad_norms.extend(metrics.grad_norm[finite])
        self.level_loss += metrics.level_loss[finite].sum(axis=0)
        self.level_count += metrics.level_count[finite].sum(axis=0)

    def scalars(self, waited: float) -> dict[str, float]:
        """Returns the means over the window, and the loss by level relative to that of a zero score.

        `waited` is the time in seconds that steps spent waiting for their batches.

        Skipped steps count in `skipped` only, which is present if steps may be skipped.
        """
        elapsed = time.perf_counter() - self.started
        scalars = {
            "loss": np.mean(self.losses) if self.losses else np.nan,
            "grad_norm": np.mean(self.grad_norms) if self.losses else np.nan,
            "steps_per_second": (self.step - self.first_step) / elapsed,
            "input_share": waited / elapsed,
        }
        if self.skip_nonfinite:
            scalars["skipped"] = self.skipped
        groups = np.array_split(np.arange(len(self.sigmas)), min(len(self.sigmas), 10))
        for group in groups:
            if count := self.level_count[group].sum():
                name = f"loss_by_level/{group[0]:04d}_sigma_{self.sigmas[group[0]]:.3g}"
                zero_score_loss = 0.5 * np.prod(self.image_shape)
                scalars[name] = self.level_loss[group].sum() / count / zero_score_loss
        return scalars

    def time_for(self, steps: int) -> str:
        """Returns how long this many steps take at the window's speed, as text."""
        elapsed = time.perf_counter() - self.started
        return human_time(steps * elapsed / (self.step - self.first_step))

    def line(self, step: int, last: int, scalars: dict[str, float]) -> str:
        """Returns the line of the log."""
        return (
            f"step {step}/{last}  loss {scalars['loss']:.4g}  grad {scalars['grad_norm']:.3g}  "
            f"{scalars['steps_per_second']:.3g} steps/s  "
            f"input {100 * scalars['input_share']:.0f} %  {self.time_for(last - step)} left"
        )
