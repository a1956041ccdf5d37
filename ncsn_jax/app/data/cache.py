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
import shutil
import sys
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath

from ncsn_jax.app import storage
from ncsn_jax.errors import UserError

# Part of every entry's name: to be raised whenever images are decoded, cropped or resized differently.
_VERSION = 2


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
    digest = hashlib.sha256(json.dumps([_VERSION, key], sort_keys=True).encode()).hexdigest()[:16]
    base = os.path.join(directory(), f"{name.replace('/', '_')}-{digest}")
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


def local(data_dir: str, below: str = "") -> str:
    """Returns a directory of data on the disk: itself, or a copy in the cache if it is in object storage.

    Args:
      data_dir: a directory, or the URL of one.
      below: the part of it that suffices.

    Raises:
      UserError: if the URL cannot be read, or holds no file.
    """
    if storage.is_remote(data_dir):
        storage.check(data_dir, "data.data_dir")
        data_dir = _copy(data_dir, below)
    return os.path.abspath(storage.path(data_dir))


def _copy(url: str, below: str) -> str:
    """Returns a directory of the cache with the files of a URL, of which the missing ones are fetched."""
    digest = hashlib.sha256(f"{url} {below}".encode()).hexdigest()[:16]
    target = os.path.join(directory(), f"copy-{digest}")
    manifest = os.path.join(target, ".copied.json")
    had = {}
    with contextlib.suppress(OSError, ValueError), open(manifest, encoding="utf-8") as file:
        had = json.load(file)
    try:
        found = dict(_walk(epath.Path(url) / below, below))
        missing = [
            name
            for name, version in found.items()
            if had.get(name) != version or not os.path.isfile(os.path.join(target, name))
        ]
        if missing:
            print(f"copying {len(missing)} files from {url}", file=sys.stderr)
        for name in missing:
            path = os.path.join(target, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with storage.replacing(path) as file, (epath.Path(url) / name).open("rb") as source:
                shutil.copyfileobj(source, file)
        for name in had.keys() - found.keys():
            with contextlib.suppress(OSError):  # another process may have done it
                os.remove(os.path.join(target, name))
        if missing or had.keys() - found.keys():
            storage.write(manifest, json.dumps(found).encode())
    # The clients of object storage raise exceptions of their own.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"data.data_dir={url!r} cannot be copied to {target}: {reason}") from None
    if not found:
        raise UserError(f"data.data_dir={os.path.join(url, below)!r} holds no file")
    return target


def _walk(url: epath.Path, prefix: str) -> Iterator[tuple[str, list[int]]]:
    """Yields relative name, and size and time of change, of all files below a URL."""
    for entry in url.iterdir():
        name = os.path.join(prefix, entry.name)
        if entry.is_dir():
            yield from _walk(entry, name)
        else:
            status = entry.stat()
            yield name, [status.length, int(status.mtime)]
