"""Compiled programs on disk, so that a run like an earlier one calls them without tracing a network.

JAX's own cache knows a program by its text, for which the network has to be traced and lowered again. Here
it is known by all that it is made of: a description of its purpose with the configuration, the source of
this package, versions, JAX's settings, the processor and the devices. Where any of it differs there is no
such program, and the caller compiles one. Hidden here are what all that is, and the files, which lie below
JAX's cache and may be deleted at any time. Only for CPUs and a process on its own: elsewhere, and where JAX's
cache is off, nothing is found and nothing is kept.

A file is as trustworthy as JAX's cache around it: loading it runs what is in it.
"""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import pickle
import platform
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.monitoring
import jaxlib
import numpy as np
import optax
from jax.experimental import serialize_executable

from ncsn_jax import config as configuration
from ncsn_jax import launch, objectives, storage

# Fields that no program is made of; a seed is an argument, and so are images.
_UNUSED = (
    "seed",
    "data.data_dir",
    "data.dataset",
    "data.crop_size",
    "training.num_steps",
    "training.checkpoint_every",
    "training.log_every",
    "training.sample_every",
    "training.checkpoints_kept",
    "training.keep_every",
    "sampling.num_samples",
    "sampling.batch_size",
    "sampling.preview_samples",
    "sampling.gif",
    "sampling.name",
)

# Below the directory of JAX's cache; of its files the least recently used are removed.
_FOLDER, _MOST_FILES = "ncsn_jax", 32

# In a file, before the program.
_DIGEST_SIZE = hashlib.sha256().digest_size

_CPU_INFO = pathlib.Path("/proc/cpuinfo")

# What JAX tells when it has written to its cache what XLA compiled.
_COMPILED = "/jax/compilation_cache/cache_misses"


def describe(config, *purpose: str | int, without: tuple[str, ...] = ()) -> str | None:
    """Returns a text that differs between programs that may differ, or None for one that nobody can tell.

    Which is one with a network or a loss that is not of this package.

    Args:
      config: the configuration.
      *purpose: what else the program is made of.
      without: how the names of fields begin that it is not made of.
    """
    parts = configuration.MODELS[config.model.name], objectives.LOSSES[config.training.loss]
    if not all(_is_own(part) for part in parts):
        return None
    without += _UNUSED
    fields = {k: v for k, v in configuration.flatten(config).items() if not k.startswith(without)}
    return json.dumps([fields, *purpose], sort_keys=True)


def _is_own(part: Any) -> bool:
    return part.__module__.startswith(f"{__package__}.")


def find(description: str | None) -> Callable[[], Any] | None:
    """Reads the program with a description, and returns what loads it, or None if there is none.

    Loading takes seconds, in which Python can do something else, and returns None for a program that XLA
    refuses.
    """
    path = _path(description)
    if path is None:
        return None
    # A damaged file raises all kinds of exceptions, and is as good as none.
    with contextlib.suppress(Exception):
        content = pathlib.Path(path).read_bytes()
        digest, payload = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
        if hashlib.sha256(payload).digest() == digest:
            os.utime(path)
            return functools.partial(_load, *pickle.loads(payload))
    return None


def _load(program: bytes, inputs: Any, outputs: Any) -> Any | None:
    with contextlib.suppress(Exception):
        return serialize_executable.deserialize_and_load(program, inputs, outputs)
    return None


def make(description: str | None, compile_: Callable[[], Any]) -> Any:
    """Compiles a program, and keeps it beside whatever follows.

    Args:
      description: of the program; None not to keep it.
      compile_: returns a `jax.stages.Compiled`, for all devices.
    """
    path = _path(description)
    if path is None:
        return compile_()
    _listen()
    before = _heard.count = getattr(_heard, "count", 0)
    program = compile_()
    # XLA cannot serialize once more what JAX has found in its cache: functions would be missing. So only
    # what is known to be new is kept.
    if _heard.count > before:
        thread = threading.Thread(target=_keep, args=(path, program), name="keep a program")
        thread.start()
        _keeping.append(thread)
    return program


def wait() -> None:
    """Waits until what was made is kept, as a process does before it ends."""
    while _keeping:
        _keeping.pop().join()


_keeping: list[threading.Thread] = []

# How many programs JAX has compiled, in each thread.
_heard = threading.local()


@functools.cache
def _listen() -> None:
    def hear(event: str, **_) -> None:
        if event == _COMPILED:
            _heard.count = getattr(_heard, "count", 0) + 1

    jax.monitoring.register_event_listener(hear)


def _keep(path: str, program: Any) -> None:
    try:
        payload = pickle.dumps(serialize_executable.serialize(program))
    # Not every program can be, and what is raised for those is not said anywhere.
    except Exception:
        return
    folder = pathlib.Path(path).parent
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        storage.remove_leftovers(str(folder))
        storage.write(path, hashlib.sha256(payload).digest() + payload)
        files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
        for file in files[:-_MOST_FILES]:
            file.unlink()


def _path(description: str | None) -> str | None:
    """Returns the file of a program, or None where none are kept."""
    cache = jax.config.jax_compilation_cache_dir
    if description is None or not cache or not jax.config.jax_enable_compilation_cache:
        return None
    if storage.is_remote(cache) or jax.default_backend() != "cpu" or jax.process_count() > 1:
        return None
    settings = getattr(jax.config, "values", None)
    if settings is None:  # JAX does not promise to tell them
        return None
    settings = {k: repr(v) for k, v in settings.items() if "cache" not in k}
    variables = {k: v for k, v in os.environ.items() if k.startswith(("XLA_", "JAX_"))}
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)
    everything = [description, settings, variables, _surroundings()]
    digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
    return os.path.join(cache, _FOLDER, digest)


@functools.cache
def _surroundings() -> list:
    """Returns what does not change within a process: source, versions, processor and devices."""
    source = hashlib.sha256()
    package = pathlib.Path(__file__).parent
    for file in sorted(package.rglob("*.py")):
        content = file.read_bytes()
        source.update(f"{file.relative_to(package)} {len(content)} ".encode() + content)
    libraries = [module.__version__ for module in (jax, jaxlib, flax, optax, np)]
    processor = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):  # only Linux tells more
        text = _CPU_INFO.read_text()
        processor += sorted(set(re.findall(r"^(?:model name|flags|Features)\s*:.*$", text, re.M)))
    devices = [jax.local_device_count(), os.cpu_count(), launch.cores()]
    return [source.hexdigest(), sys.version, libraries, processor, devices]
