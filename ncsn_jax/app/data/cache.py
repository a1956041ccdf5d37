"""Caches arrays, such as decoded images, in files that are mapped into memory.

The directory is `$NCSN_JAX_CACHE`, or else `ncsn_jax` under `$XDG_CACHE_HOME` or `~/.cache`. An entry's
name holds a digest of everything that determines its content, with the version of the decoding. An entry is
complete or absent. If the directory is not writable, arrays stay in memory. Its files may be deleted at any
time.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator

import numpy as np

from ncsn_jax.app import storage

# By default, larger datasets are not cached but decoded on demand.
CACHE_BYTES = 4 * 10**9
# Part of every entry's name. Raise it whenever decoding, cropping or resizing changes.
_VERSION = 3


def directory() -> str:
    """Returns the cache directory, which need not exist."""
    if chosen := os.environ.get("NCSN_JAX_CACHE"):
        return storage.path(chosen)
    return os.path.join(storage.path(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "ncsn_jax")


def array(
    name: str, key: object, make: Callable[[], tuple[np.ndarray, str]]
) -> tuple[np.ndarray, str]:
    """Returns the cached array and its note, or makes and caches them.

    Args:
      name: a readable prefix of the files' names.
      key: a JSON-serialisable description of everything that determines the content.
      make: returns the array and a note, possibly empty, when there is no entry yet.

    Returns:
      The array, read-only and mapped into memory if possible, and the note.
    """
    base = _base(name, key)
    # A damaged entry can raise any exception, and is made again.
    with contextlib.suppress(Exception):
        return _load(base)
    made, note = make()
    try:
        with _replacing(f"{base}.npy") as file:
            np.save(file, made)
        with storage.replacing(f"{base}.txt") as file:
            file.write(note.encode(errors="backslashreplace"))
        return _load(base)
    except OSError:
        return made, note


def images(
    name: str,
    key: object,
    shape: tuple[int, ...],
    dtype: np.dtype,
    make: Callable[[], Iterator[np.ndarray]],
    describe: Callable[[], str],
) -> tuple[np.ndarray, str]:
    """Returns a cached array of images as `array` does; it may be larger than memory.

    Args:
      name, key: see `array`.
      shape, dtype: the array's.
      make: yields its parts, `[n, ...]`, in order.
      describe: returns the note once all parts are made.
    """
    base = _base(name, key)
    with contextlib.suppress(Exception):
        return _load(base)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    try:
        with _replacing(f"{base}.npy") as file:
            np.lib.format.write_array_header_2_0(file, header)
            for part in make():
                file.write(np.ascontiguousarray(part))
        with storage.replacing(f"{base}.txt") as file:
            file.write(describe().encode())
        return _load(base)
    except OSError:
        made, done = np.empty(shape, dtype), 0
        for part in make():
            made[done : done + len(part)] = part
            done += len(part)
        return made, describe()


def _replacing(path: str) -> contextlib.AbstractContextManager:
    """Opens a cache file for writing, and makes the directory if need be."""
    os.makedirs(directory(), exist_ok=True)
    storage.remove_leftovers(directory())
    return storage.replacing(path)


def _base(name: str, key: object) -> str:
    return os.path.join(directory(), f"{name.replace('/', '_')}-{digest([_VERSION, key])}")


def _load(base: str) -> tuple[np.ndarray, str]:
    with open(f"{base}.txt", encoding="utf-8") as file:
        return np.load(f"{base}.npy", mmap_mode="r"), file.read()


def digest(value: object) -> str:
    """Returns a digest of a JSON-serialisable value, as 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
