"""A cache of decoded images: uint8 arrays in files that are mapped into memory.

The directory is `$NCSN_JAX_CACHE`, or else `ncsn_jax` under `$XDG_CACHE_HOME` or `~/.cache`. An entry's
name holds a digest of everything that determines its content, so that an entry is never stale; it is
written under a temporary name and renamed, so that it is complete or absent. Where the directory
cannot be written the images stay in memory. Everything in it may be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable

import numpy as np


def directory() -> str:
    """Returns the cache directory, whether or not it exists."""
    if chosen := os.environ.get("NCSN_JAX_CACHE"):
        return chosen
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "ncsn_jax")


def images(name: str, key: object, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns the cached array, or makes and keeps it.

    Args:
      name: a readable prefix of the file's name.
      key: a JSON-serialisable description of everything that determines the content.
      make: returns the array when there is no entry yet.

    Returns:
      The array, read-only and mapped into memory wherever that is possible.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = os.path.join(directory(), f"{name}-{digest}.npy")
    with contextlib.suppress(OSError, ValueError):
        return np.load(path, mmap_mode="r")
    array = make()
    temporary = None
    try:
        os.makedirs(directory(), exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=directory(), suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            np.save(file, array)
        os.replace(temporary, path)
        return np.load(path, mmap_mode="r")
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.remove(temporary)
        return array
