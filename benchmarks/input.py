"""Measures how many images per second each kind of source gives, and how many the training step takes.

    python -m benchmarks.input --config=configs/cifar10.py --topology=v5e:2x4 [--hosts=N] [--directory=DIR]
    python -m benchmarks.input --config=configs/digits.py --images=200000 --config.data.image_size=128

The second command makes a dataset of that many synthetic images, trains on it with `main.py` for a few
steps, and prints the memory and the time to the first step. The step is measured here if the network is
small, or planned for a TPU topology if one is given, as by `--mode=plan`. The input is that of one process;
its processor time excludes the stand-in for `gs://`.
"""

import contextlib
import math
import os
import statistics
import sys
import tempfile
from typing import NamedTuple

from absl import flags

from benchmarks import machine, startup, table
from benchmarks.session import ENVIRONMENT
from benchmarks.workers import MeasurementError, Worker
from ncsn_jax.app import cli, cpu

_CONFIG = cli.define_config()
_DIRECTORY = cli.define_path("directory", "Keeps the pictures for the next time.")
_TOPOLOGY = flags.DEFINE_string("topology", "", "Plan the step for it, as config.plan.topology.")
_HOSTS = flags.DEFINE_integer("hosts", 0, "By default those of the topology.", lower_bound=0)
_SIDE = flags.DEFINE_integer("side", 0, "Shorter side of the pictures before the crop.")
_IMAGES = flags.DEFINE_integer("images", 0, "Of a large dataset to train on.", lower_bound=0)
_COUNT = flags.DEFINE_integer("count", 2000, "Of pictures in each source.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 3.0, "Of each measurement.", lower_bound=0.0)
flags.adopt_module_key_flags(cli)

_STEPS = 10  # for a large dataset
# A larger step, in features² x pixels x batch, takes seconds on two cores.
_LARGEST_STEP = 2**24
_BUCKET = "bucket"


class _Source(NamedTuple):
    """Where images come from: `data.dataset`, `data.data_dir`, and other fields."""

    title: str
    dataset: str
    path: str
    cache_bytes: int = 0
    in_memory: bool = False


def _sources(files: str, dataset: str) -> list[_Source]:
    folder, large = f"{files}/folder", 10**12

    def there(path: str) -> str:
        return f"gs://{_BUCKET}/{os.path.basename(path)}"

    return [
        _Source("array in memory", "image_folder", folder, large, in_memory=True),
        _Source("decoded once, mapped", "image_folder", folder, large),
        _Source("array_record", "synthetic", dataset),
        _Source("image folder", "image_folder", folder),
        _Source("tar file", "image_folder", f"{files}/images.tar"),
        _Source("zip file", "image_folder", f"{files}/images.zip"),
        _Source("array_record on `gs://`", "synthetic", there(dataset)),
        _Source("image folder on `gs://`", "image_folder", f"{there(files)}/folder"),
        _Source("tar file on `gs://`", "image_folder", f"{there(files)}/images.tar"),
    ]


def _picture_size(config, side: int) -> tuple[int, int]:
    """Returns height and width of pictures with the given shorter side, whose crop is then resized."""
    from ncsn_jax.app.data import transforms

    height, width = transforms.sides(config.data.image_size)
    least = min(height, width)
    scale = (side or (config.data.crop_size if config.data.crop_size > 0 else least)) / least
    return round(scale * height), round(scale * width)


def _measure(source: _Source, fields: dict, threads: list[int], environment: dict) -> dict:
    """Returns images per second by number of threads, processor seconds, and memory."""
    fields = fields | {
        "data.dataset": source.dataset,
        "data.data_dir": source.path,
        "data.cache_bytes": source.cache_bytes,
    }
    settings = {"fields": fields, "in_memory": source.in_memory}
    with Worker("benchmarks.reader", settings, environment) as reader:
        found = [
            reader.ask("rate", threads=n, seconds=_SECONDS.value)
            for n in (threads[:1] if source.cache_bytes else threads)
        ]
        before, peak = reader.ask("memory")
    # One thread is disturbed least.
    return {
        "rates": [rate for rate, _ in found],
        "seconds": found[min(1, len(found) - 1)][1],
        "memory": f"{table.megabytes(peak)} ({table.megabytes(before)})",
    }


def _row(title: str, measured: dict | str, columns: int, needed: float) -> str:
    """Returns a line of the table; `needed` is the images per second of a host, or NaN."""
    if isinstance(measured, str):
        return f"| {title} | {measured} |" + " |" * (columns + 2)
    rates = [f"{rate:,.0f}" for rate in measured["rates"]]
    rates += ["the same"] * (columns - len(rates))
    cores = needed * measured["seconds"]
    return (
        f"| {title} | {' | '.join(rates)} | {table.number(1e3 * measured['seconds'])} | "
        f"{'' if math.isnan(cores) else table.number(cores)} | {measured['memory']} |"
    )


def _step(config, fields: dict) -> tuple[float, int, str]:
    """Returns the training step's images per second, or NaN; hosts; and how that is known."""
    from ncsn_jax.app import build
    from ncsn_jax.app.modes import plan

    batch = config.training.batch_size
    if _TOPOLOGY.value:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                seconds, hosts = plan.step_seconds(config, _TOPOLOGY.value)
        except plan.TooLarge as error:
            return math.nan, 1, f"on {_TOPOLOGY.value} it {error}"
        return batch / seconds, hosts, f"planned for {_TOPOLOGY.value}"
    if config.model.features**2 * math.prod(build.image_shape(config)) * batch > _LARGEST_STEP:
        return (
            math.nan,
            1,
            "not known: it is too large to be measured here, and --topology is not given",
        )
    settings = {"config": "default", "overrides": fields, "devices": None}
    with Worker("benchmarks.ours", settings, ENVIRONMENT) as ours:
        times = ours.ask("time", task="train", warm_up=0.5, seconds=1.0)
    return batch / statistics.median(times), 1, "measured here"


def _compare(config, fields: dict, parent: str) -> list[str]:
    """Measures all sources, and returns the lines to print."""
    from benchmarks import synthetic
    from ncsn_jax.app.progress import progress

    pictures = _picture_size(config, _SIDE.value), config.data.channels, _COUNT.value
    files, dataset = (
        make(parent, *pictures) for make in (synthetic.make_files, synthetic.make_dataset)
    )
    threads = [0, *(2**i for i in range(cpu.cores().bit_length()))]
    # Only the CPU is needed.
    environment = os.environ | {"NCSN_JAX_CACHE": f"{parent}/cache", "JAX_PLATFORMS": "cpu"}
    measured = []
    sources = _sources(files, dataset)
    with (
        Worker("benchmarks.fake_gcs", {"directories": [files, dataset], "bucket": _BUCKET}) as gcs,
        progress("measuring", len(sources), "sources") as advanced,
    ):
        environment |= gcs.ask("environment")
        busy = machine.busy_cores(0.3)
        for source in sources:
            try:
                measured.append(_measure(source, fields, threads, environment))
            except MeasurementError as error:
                measured.append(f"failed: {error}")
            advanced(1)
    rate, hosts, how = _step(config, fields)
    hosts = _HOSTS.value or hosts
    size = os.path.getsize(f"{files}/images.zip") / _COUNT.value
    height, width = pictures[0]
    head = ["source", *(f"images/s, workers={n}" for n in threads), "CPU ms an image"]
    head += [f"cores of each of {hosts} host(s)", "peak memory (before the images)"]
    return [
        f"- pictures of {width}x{height}, JPEG of {size / 1e3:.1f} kB; image_size "
        f"{config.data.image_size}, batch {config.training.batch_size}, prefetch {config.data.prefetch}",
        f"- cores that other processes used at the beginning: {'unknown' if busy is None else f'{busy:.1f}'}",
        f"- training step: {how}" + ("" if math.isnan(rate) else f", {rate:,.0f} images/s"),
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(
            _row(source.title, found, len(threads), rate / hosts)
            for source, found in zip(sources, measured, strict=True)
        ),
    ]


def _train_on_many(config, fields: dict, parent: str) -> list[str]:
    """Trains on a large dataset, and returns the lines to print."""
    from benchmarks import synthetic
    from configs import default
    from ncsn_jax.app import schema

    size = _picture_size(config, _SIDE.value or 128)
    path = synthetic.make_dataset(parent, size, config.data.channels, _IMAGES.value)
    usual = schema.flatten(default.get_config())
    fields = fields | {"data.dataset": synthetic.NAME, "data.data_dir": path, "data.crop_size": -1}
    changed = [f"--config.{n}={value}" for n, value in fields.items() if value != usual[n]]
    started = startup.first_steps(
        ["--config=configs/default.py", *changed], f"{parent}/cache", _STEPS
    )
    return [
        "",
        "| what | |",
        "|---|---|",
        f"| images, their size | {_IMAGES.value:,}, {size[1]}x{size[0]} |",
        f"| peak resident memory of training up to step {_STEPS} | {table.megabytes(started.peak_memory)} |",
        f"| the same when the step begins to compile | {table.megabytes(started.memory_before)} |",
        f"| from the start to the end of the first step | {table.duration(started.seconds)} |",
        f"| from the compiled step to the end of the first | {table.duration(started.after_compiling)} |",
        f"| the log | `{started.line}` |",
    ]


def main(_) -> None:
    """Measures and prints."""
    from ncsn_jax.app import schema
    from ncsn_jax.app.modes import plan

    config = _CONFIG.value
    if _TOPOLOGY.value:  # fail before measuring
        plan.find_devices(_TOPOLOGY.value)
    schema.check(config)
    fields = schema.flatten(config)
    with contextlib.ExitStack() as stack:
        parent = _DIRECTORY.value or stack.enter_context(tempfile.TemporaryDirectory())
        work = _train_on_many if _IMAGES.value else _compare
        lines = work(config, fields, os.path.abspath(parent))
    print("\n".join([*(f"- {line}" for line in machine.describe()), *lines]))


if __name__ == "__main__":
    cli.run(
        main,
        _CONFIG,
        lambda: (_CONFIG,),
        program="python -m benchmarks.input",
        interrupted="nothing was printed",
    )
