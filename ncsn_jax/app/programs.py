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
import math
import os
import pathlib
import pickle
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import flax
import jax
import jax.monitoring
import jaxlib
import numpy as np
import optax
from jax.experimental import serialize_executable

from ncsn_jax.app import _memory, launch, storage

# Below the directory of JAX's cache; of its files the least recently used are removed.
_FOLDER, _MOST_FILES = "ncsn_jax", 32
# In a file, before the program.
_DIGEST_SIZE = hashlib.sha256().digest_size

# What JAX tells when it looks for a program in its cache, and when it has found it there.
_SOUGHT = "/jax/compilation_cache/compile_requests_use_cache"
_FOUND = "/jax/compilation_cache/cache_hits"

# JAX writes what took longer to compile to its cache.
_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"

# The beginnings of variables that XLA and Flax read; JAX's are among its settings.
_VARIABLES = ("XLA_", "FLAX_", "PJRT_", "NPROC")

_CPU_INFO = pathlib.Path("/proc/cpuinfo")
_OF_CPU = r"^(?:model name|flags|Features|CPU \w+)\s*:.*$"

_log = logging.getLogger(__name__)
# What is still to be kept, with its path; and what is being kept.
_made: list[tuple[str, Any]] = []
_keeping: list[threading.Thread] = []


class _Heard(threading.local):
    """What JAX has told in this thread."""

    sought = 0
    found = 0


_heard = _Heard()


def _source() -> str:
    """Returns a digest of what programs are traced from: this package, and the application around it."""
    digest = hashlib.sha256()
    package = pathlib.Path(__file__).parents[1]
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


def make(
    description: str | None, compile_: Callable[[], Any], meanwhile: Future | None = None
) -> Any:
    """Compiles a program, for `keep` to keep it; called from one thread at a time.

    JAX writes no copy of it to its own cache, for which a setting of the whole process is changed meanwhile.

    Args:
      description: of the program; None not to keep it.
      compile_: returns a `jax.stages.Compiled` for all devices; it must compile nothing else.
      meanwhile: what another thread does, of whose programs JAX is to write copies, if there is one. If it
        ends after the compilation, JAX writes a copy of this program, too.
    """
    path = _path(description)
    if path is None:
        return compile_()
    _listen()
    _heard.sought = _heard.found = 0
    with _unwritten(meanwhile):
        program = compile_()
    # XLA cannot serialize once more what JAX has found in its cache: functions would be missing. So only
    # what is known to be new is kept. It may have been sought with options that XLA refused.
    if _heard.sought and not _heard.found:
        _made.append((path, program))
    else:
        _log.debug("not kept: JAX has sought %d and found %d", _heard.sought, _heard.found)
    return program


def keep(program: Any, computed: Any = None) -> None:
    """Keeps a program, if `make` has just made it, in a thread that the process waits for when it ends.

    Unless a signal ends it: then the next run compiles once more.

    Args:
      program: as returned by `make`, or any other.
      computed: arrays that are not donated. Serializing waits until they are computed, and does not delay
        them.
    """
    for made in [made for made in _made if made[1] is program]:
        _made.remove(made)
        thread = threading.Thread(target=_keep, args=(*made, computed), name="keep a program")
        thread.start()
        _keeping.append(thread)


def wait() -> None:
    """Waits until what `keep` was called for is kept."""
    while _keeping:
        _keeping.pop().join()


def keep_all() -> None:
    """Keeps all that was made, and waits until it is kept."""
    for _, program in list(_made):
        keep(program)
    wait()


@functools.cache
def _listen() -> None:
    def hear(event: str, **_) -> None:
        _heard.sought += event == _SOUGHT
        _heard.found += event == _FOUND

    jax.monitoring.register_event_listener(hear)


@contextlib.contextmanager
def _unwritten(meanwhile: Future | None) -> Iterator[None]:
    """Keeps JAX from writing what is compiled to its cache, from when `meanwhile` is done."""
    before = getattr(jax.config, _LEAST_SECONDS)
    lock, ended = threading.Lock(), False

    def begin(_: Future | None) -> None:
        with lock:
            if not ended:
                jax.config.update(_LEAST_SECONDS, math.inf)

    if meanwhile is None:
        begin(None)
    else:
        meanwhile.add_done_callback(begin)
    try:
        yield
    finally:
        with lock:
            ended = True
            jax.config.update(_LEAST_SECONDS, before)


def _keep(path: str, program: Any, computed: Any) -> None:
    with contextlib.suppress(RuntimeError):  # which the caller sees, too
        jax.block_until_ready(computed)
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
