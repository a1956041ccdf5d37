"""A cache of arrays, such as decoded images, in files that are mapped into memory.

The directory is `$NCSN_JAX_CACHE`, or else `ncsn_jax` under `$XDG_CACHE_HOME` or `~/.cache`. An entry's
name holds a digest of everything that determines its content, with the version of the decoding. An entry is
complete or absent. Where the directory cannot be written, the arrays stay in memory. Everything in it may be
deleted at any time.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator

import numpy as np

from ncsn_jax.app import storage

# Part of every entry's name: to be raised whenever images are decoded, cropped or resized differently.
_VERSION = 3


def directory() -> str:
    """Returns the cache directory, whether or not it exists."""
    if chosen := os.environ.get("NCSN_JAX_CACHE"):
        return storage.path(chosen)
    return os.path.join(storage.path(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "ncsn_jax")


def array(
    name: str, key: object, make: Callable[[], tuple[np.ndarray, str]]
) -> tuple[np.ndarray, str]:
    """Returns the cached array and the note that belongs to it, or makes and keeps them.

    Args:
      name: a readable prefix of the files' names.
      key: a JSON-serialisable description of everything that determines the content.
      make: returns the array and a note, possibly empty, when there is no entry yet.

    Returns:
      The array, read-only and mapped into memory wherever that is possible, and the note.
    """
    base = _base(name, key)
    # A damaged entry raises all kinds of exceptions, and is made again.
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
    """Returns a cached array of images, as `array` does, which may be larger than the memory.

    Args:
      name, key: see `array`.
      shape, dtype: of the array.
      make: yields parts of it, `[n, ...]`, in order.
      describe: returns the note, when all parts are made.
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
    """Opens a file of the cache for writing, and makes the directory if need be."""
    os.makedirs(directory(), exist_ok=True)
    storage.remove_leftovers(directory())
    return storage.replacing(path)


def _base(name: str, key: object) -> str:
    return os.path.join(directory(), f"{name.replace('/', '_')}-{digest([_VERSION, key])}")


def _load(base: str) -> tuple[np.ndarray, str]:
    with open(f"{base}.txt", encoding="utf-8") as file:
        return np.load(f"{base}.npy", mmap_mode="r"), file.read()


def digest(value: object) -> str:
    """Returns 16 hexadecimal digits that tell JSON-serialisable values apart."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
