"""A cache of decoded images: uint8 arrays in files that are mapped into memory.

The directory is `$NCSN_JAX_CACHE`, or else `ncsn_jax` under `$XDG_CACHE_HOME` or `~/.cache`. An entry's
name holds a digest of everything that determines its content, with the version of the decoding. An entry is
complete or absent. Where the directory cannot be written, the images stay in memory. Everything in it may be
deleted at any time.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable

import numpy as np

from ncsn_jax.app import storage

# Part of every entry's name: to be raised whenever images are decoded, cropped or resized differently.
_VERSION = 3


def directory() -> str:
    """Returns the cache directory, whether or not it exists."""
    if chosen := os.environ.get("NCSN_JAX_CACHE"):
        return storage.path(chosen)
    return os.path.join(storage.path(os.environ.get("XDG_CACHE_HOME") or "~/.cache"), "ncsn_jax")


def images(
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
    base = os.path.join(directory(), f"{name.replace('/', '_')}-{digest([_VERSION, key])}")
    # A damaged entry raises all kinds of exceptions, and is made again.
    with contextlib.suppress(Exception), open(f"{base}.txt", encoding="utf-8") as file:
        return np.load(f"{base}.npy", mmap_mode="r"), file.read()
    array, note = make()
    try:
        os.makedirs(directory(), exist_ok=True)
        storage.remove_leftovers(directory())
        with storage.replacing(f"{base}.npy") as file:
            np.save(file, array)
        with storage.replacing(f"{base}.txt") as file:
            file.write(note.encode(errors="backslashreplace"))
        return np.load(f"{base}.npy", mmap_mode="r"), note
    except OSError:
        return array, note


def digest(value: object) -> str:
    """Returns 16 hexadecimal digits that tell JSON-serialisable values apart."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
