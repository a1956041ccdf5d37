"""Where a run's numbers go: TensorBoard events, `metrics.jsonl` and the log.

`Writer` has the methods of `clu.metric_writers.MetricWriter` that the application calls, on
TensorBoard's own record format: clu's writers import TensorFlow, which costs seconds and half a
gigabyte of memory, also where it is installed.
"""

import json
import os
import time
from collections.abc import Mapping

import numpy as np


class Writer:
    """Writes scalars and images of a run below its work directory, always appending.

    Args:
      workdir: the work directory, which exists.
    """

    def __init__(self, workdir: str):
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{int(time.time()):010d}.{os.getpid()}"
        self._events = RecordWriter(open(os.path.join(workdir, name), "ab"))
        self._lines = open(os.path.join(workdir, "metrics.jsonl"), "a", encoding="utf-8")
        version = event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2")
        self._events.write(version.SerializeToString())

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes named numbers of one step."""
        from tensorboard.compat.proto import summary_pb2

        values = [
            summary_pb2.Summary.Value(tag=tag, simple_value=float(v)) for tag, v in scalars.items()
        ]
        self._write(step, values)
        # JSON has no NaN and no infinity.
        line = {k: float(v) if np.isfinite(v) else None for k, v in scalars.items()}
        self._lines.write(json.dumps({"step": step, **line}) + "\n")

    def write_images(self, step: int, images: Mapping[str, bytes], shape: tuple[int, ...]) -> None:
        """Writes named pictures, given as PNG files, of height, width and channels `shape`."""
        from tensorboard.compat.proto import summary_pb2

        height, width, channels = shape
        values = [
            summary_pb2.Summary.Value(
                tag=tag,
                image=summary_pb2.Summary.Image(
                    height=height, width=width, colorspace=channels, encoded_image_string=png
                ),
            )
            for tag, png in images.items()
        ]
        self._write(step, values)

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        self._events.flush()
        self._lines.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        self.flush()
        self._events.close()
        self._lines.close()

    def _write(self, step, values) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        summary = summary_pb2.Summary(value=values)
        event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary)
        self._events.write(event.SerializeToString())
