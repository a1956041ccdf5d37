"""Compiled programs on disk, so that a run like an earlier one calls them without tracing a network.

JAX's own cache knows a program by its text, for which the network has to be traced and lowered again. Here
it is known by all that it is made of: a description by the caller, the source of this package, versions, the
settings of JAX, Flax and XLA, the processor and the devices. Where any of it differs there is no such
program, and the caller compiles one. Hidden here are what all that is, and the files, which lie below JAX's
cache and may be deleted at any time. Only for CPUs and a process on its own: elsewhere, and where JAX's cache
is off, nothing is found and nothing is kept. What fails here is told at the level DEBUG and costs time only.

A file is as trustworthy as JAX's cache around it: loading it runs what is in it.
"""

import contextlib
import functools
import hashlib
import json
import logging
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

from ncsn_jax import _memory, launch, storage

# Below the directory of JAX's cache; of its files the least recently used are removed.
_FOLDER, _MOST_FILES = "ncsn_jax", 32
# In a file, before the program.
_DIGEST_SIZE = hashlib.sha256().digest_size

# What JAX tells when it has found a program in its cache, and when it has written one that XLA compiled.
_FOUND, _COMPILED = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"

# An option that XLA does not look at on CPUs. With it a program is in JAX's cache only if it was kept here:
# otherwise what JAX finds, which cannot be kept, it would find in every later run, too.
_UNUSED_OPTION = "xla_gpu_algorithm_denylist_path"

# The beginnings of variables that XLA and Flax read; JAX's are among its settings.
_VARIABLES = ("XLA_", "FLAX_", "PJRT_", "NPROC")

_CPU_INFO = pathlib.Path("/proc/cpuinfo")
_OF_CPU = r"^(?:model name|flags|Features|CPU \w+)\s*:.*$"

_log = logging.getLogger(__name__)
_keeping: list[threading.Thread] = []


class _Heard(threading.local):
    """What JAX has told in this thread."""

    found = 0
    compiled = 0


_heard = _Heard()


def _source() -> str:
    """Returns a digest of what programs are traced from: this package, and the application around it."""
    digest = hashlib.sha256()
    package = pathlib.Path(__file__).parent
    for file in [*sorted(package.rglob("*.py")), package.parent / "run_lib.py"]:
        with contextlib.suppress(OSError):
            content = file.read_bytes()
            name = file.relative_to(package.parent)
            digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


# As it is imported, and not as it may have become when the first program is asked for.
_SOURCE = _source()


def find(description: str | None) -> Callable[[], Any] | None:
    """Reads the program with a description, and returns what loads it, or None if there is none.

    Loading takes seconds, in which Python can do something else; it returns a `jax.stages.Compiled`, or None
    for what XLA refuses.
    """
    path = _path(description)
    if path is None or not os.path.isfile(path):
        return None
    # A damaged file raises all kinds of exceptions, and is as good as none.
    try:
        content = memoryview(pathlib.Path(path).read_bytes())
        digest, payload = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
        if hashlib.sha256(payload).digest() != digest:
            raise ValueError("a checksum differs")
        parts = pickle.loads(payload)
    except Exception as error:
        _log.debug("%s is as good as none: %r", path, error)
        return None
    with contextlib.suppress(OSError):  # of others, or read-only
        os.utime(path)
    return functools.partial(_load, path, *parts)


def load(description: str | None) -> Any | None:
    """Returns the program with a description, or None: what `find` reads, loaded."""
    found = find(description)
    return None if found is None else found()


def _load(path: str, program: bytes, inputs: Any, outputs: Any) -> Any | None:
    try:
        return serialize_executable.deserialize_and_load(program, inputs, outputs)
    except Exception as error:
        _log.debug("%s cannot be loaded: %r", path, error)
        with contextlib.suppress(OSError):
            os.unlink(path)
        return None


def options(description: str | None) -> dict[str, str]:
    """Returns the compiler's options that `make` wants, in addition to others."""
    path = _path(description)
    return {} if path is None else {_UNUSED_OPTION: os.path.basename(path)}


def make(description: str | None, compile_: Callable[[], Any]) -> Any:
    """Compiles a program, and keeps it, in a thread that ends before the process does.

    Args:
      description: of the program; None not to keep it.
      compile_: returns a `jax.stages.Compiled` for all devices, compiled with `options(description)`; it must
        compile nothing else.
    """
    path = _path(description)
    if path is None:
        return compile_()
    _listen()
    _heard.found = _heard.compiled = 0
    program = compile_()
    # XLA cannot serialize once more what JAX has found in its cache: functions would be missing. So only
    # what is known to be new is kept.
    if (_heard.found, _heard.compiled) == (0, 1):
        thread = threading.Thread(target=_keep, args=(path, program), name="keep a program")
        thread.start()
        _keeping.append(thread)
    return program


def wait() -> None:
    """Waits until what was made is kept. A process that ends as usual does so itself."""
    while _keeping:
        _keeping.pop().join()


@functools.cache
def _listen() -> None:
    def hear(event: str, **_) -> None:
        _heard.found += event == _FOUND
        _heard.compiled += event == _COMPILED

    jax.monitoring.register_event_listener(hear)


def _keep(path: str, program: Any) -> None:
    _memory.release()  # Serializing takes as much again as is left of compiling.
    _serialize(path, program)
    _memory.release()


def _serialize(path: str, program: Any) -> None:
    folder = pathlib.Path(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _source() != _SOURCE:
            raise ValueError("the source has changed since it was imported")
        payload = pickle.dumps(serialize_executable.serialize(program))
        storage.remove_leftovers(str(folder))
        storage.write(path, hashlib.sha256(payload).digest() + payload)
    # Not every program can be serialized, and what is raised for those is not said anywhere.
    except Exception as error:
        _log.debug("%s cannot be kept: %r", path, error)
        return
    _remove_oldest(folder)


def _remove_oldest(folder: pathlib.Path) -> None:
    times = {}
    for file in folder.glob("[0-9a-f]" * 2 * _DIGEST_SIZE):
        with contextlib.suppress(OSError):  # another process may have removed it
            times[file] = file.stat().st_mtime
    for file in sorted(times, key=times.get)[:-_MOST_FILES]:
        with contextlib.suppress(OSError):
            file.unlink()


def _path(description: str | None) -> str | None:
    """Returns the file of a program, or None where none are kept."""
    cache = jax.config.jax_compilation_cache_dir
    if description is None or not cache or not jax.config.jax_enable_compilation_cache:
        return None
    if storage.is_remote(cache) or jax.default_backend() != "cpu" or jax.process_count() > 1:
        return None
    settings = getattr(jax.config, "values", None)
    if settings is None:
        _log.debug("no program is kept: this JAX does not tell its settings")
        return None
    settings = {k: repr(v) for k, v in settings.items() if "cache" not in k}
    of_flax = {k: repr(getattr(flax.config, k)) for k in dir(flax.config) if "flax_" in k}
    variables = {k: v for k, v in os.environ.items() if k.startswith(_VARIABLES)}
    everything = [description, settings, of_flax, variables, _SOURCE, _surroundings()]
    digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
    return os.path.join(cache, _FOLDER, digest)


@functools.cache
def _surroundings() -> list:
    """Returns what does not change within a process: versions, processor and devices."""
    libraries = [module.__version__ for module in (jax, jaxlib, flax, optax, np)]
    processor = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):  # only Linux tells more
        processor += sorted(set(re.findall(_OF_CPU, _CPU_INFO.read_text(), re.M)))
    devices = [jax.local_device_count(), os.cpu_count(), launch.cores()]
    return [sys.version, libraries, processor, devices]
