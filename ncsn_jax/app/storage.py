"""Reads and writes files on a disk or in object storage, such as gs://BUCKET/PATH, by the same calls.

`etils.epath` reads and writes both kinds (gs:// needs the package gcsfs). This module adds three things. A
file on a disk takes its name when it is complete, as an object does. A log can grow, although an object
cannot. Every failure is an OSError with a name. The module also handles users' paths, and locks.
"""

import contextlib
import errno
import functools
import io
import json
import logging
import os
import platform
import re
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from ncsn_jax.app.signals import say
from ncsn_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

# Object storage takes about one write per second to one object, and each write sends all of it.
_SECONDS_BETWEEN_WRITES = 10.0

# An object that is read from start to end is fetched in blocks of this many bytes.
_BLOCK = 2**20


def is_remote(path: str) -> bool:
    """Returns whether a path is in object storage."""
    return "://" in path


def path(text: str) -> str:
    """Expands `~` in a path that the user wrote in a flag, a field or the environment."""
    return text if is_remote(text) else os.path.expanduser(text)


def lock(file: io.IOBase, *, wait: bool) -> None:
    """Locks an open file until it is closed, if the system and the file system support locks.

    Raises:
      BlockingIOError: if another process holds the lock and `wait` is false.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        pass


def check(path: str, name: str) -> None:
    """Raises UserError, which calls the path `name`, if it looks like a URL that cannot be used here."""
    if not re.match(r"\w+:/", path):
        return
    if not re.match(r"\w+://[^/]", path):
        raise UserError(f"{name}={path!r} must be a path, or a URL such as gs://BUCKET/PATH")
    say(f"checking {path}")
    try:
        exists(path)
    except OSError as error:
        raise UserError(f"{name}={path!r} cannot be used: {error.strerror}") from None


def exists(path: str) -> bool:
    """Returns whether the path exists."""
    with at(path) as there:
        return there.exists()


def list_names(path: str) -> list[str]:
    """Returns the sorted names in a directory; none if it does not exist."""
    with at(path) as there:
        return sorted(entry.name for entry in there.iterdir()) if there.is_dir() else []


def make_directory(path: str) -> None:
    """Makes a directory and its parents, if the storage has directories."""
    with at(path) as there:
        there.mkdir(parents=True, exist_ok=True)


def remove_directory(path: str) -> None:
    """Removes a directory and its contents, as far as possible."""
    with contextlib.suppress(OSError), at(path) as there:
        there.rmtree()


def read(path: str) -> bytes:
    """Returns the content of a file."""
    with at(path) as there:
        return there.read_bytes()


def read_part(path: str, start: int, size: int) -> bytes:
    """Returns `size` bytes of a file from `start`, or fewer at its end; an object takes one request."""
    if is_remote(path):
        with at(path):
            system, name = _object(path)
            return system.cat_file(name, start, start + size)
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


@contextlib.contextmanager
def reading(path: str) -> Iterator[io.BufferedIOBase]:
    """Opens a file for reading from start to end; an object is read a megabyte at a time."""
    if is_remote(path):
        with at(path):
            system, name = _object(path)
            with system.open(name, "rb", block_size=_BLOCK, cache_type="readahead") as file:
                yield file
    else:
        with open(path, "rb") as file:
            yield file


def find_objects(url: str) -> list[tuple[str, int, str]]:
    """Returns relative name, size and version of all objects below a URL, or of the one object at it."""
    with at(url):
        system, root = _object(url)
        found = system.find(root, detail=True)
        versions = ("generation", "etag", "ETag", "updated", "LastModified", "mtime")
        return [
            (
                name.removeprefix(root).strip("/"),
                item["size"],
                next((str(item[version]) for version in versions if version in item), ""),
            )
            for name, item in found.items()
        ]


def read_json(path: str) -> dict | None:
    """Returns the object in a JSON file, or None if there is no such file.

    Raises:
      UserError: if the file cannot be read or holds anything else.
    """
    try:
        found = json.loads(read(path).decode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read: it does not hold a JSON object")
    return found


def write(path: str, payload: bytes) -> None:
    """Writes a file completely or not at all.

    Raises:
      OSError: with the file's name, if it cannot be written.
    """
    if is_remote(path):
        with at(path) as there:
            there.write_bytes(payload)
    else:
        with replacing(path) as file:
            file.write(payload)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[io.BufferedWriter]:
    """Opens a file on a disk for writing; it takes its name when it is complete.

    Raises:
      OSError: with the file's name, if it cannot be written; nothing is left behind.
    """
    temporary = f"{path}.{platform.node()}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, path) from None
        raise


def remove_leftovers(directory: str) -> None:
    """Removes what killed processes of this machine left in a directory while in `replacing`."""
    if is_remote(directory):
        return
    pattern = re.compile(rf".*\.{re.escape(platform.node())}\.(\d+)\.tmp")
    for name in list_names(directory):
        if found := pattern.fullmatch(name):
            with contextlib.suppress(OSError, OverflowError):
                try:
                    os.kill(int(found[1]), 0)  # only asks whether the process exists
                except ProcessLookupError:
                    os.remove(os.path.join(directory, name))


class Growing:
    """A binary file that grows, also across processes: what `open(path, "ab")` is on a disk.

    In object storage, memory holds the whole file. `flush` writes it, at most every ten seconds unless `now`,
    and so does `close`. Only these two can fail then.

    Args:
      path: the file.

    Raises:
      OSError: from any method, with the file's name, if it cannot be written.
    """

    def __init__(self, path: str):
        self._path = path
        self._remote = is_remote(path)
        self._written = 0.0
        self._file = io.BytesIO() if self._remote else open(path, "ab")
        if self._remote and exists(path):
            self._file.write(read(path))

    def write(self, data: bytes) -> int:
        """Appends to the file."""
        with at(self._path):
            return self._file.write(data)

    def flush(self, *, now: bool = False) -> None:
        """Hands what was appended to the operating system; to object storage if it is time, or `now`."""
        if not self._remote:
            with at(self._path):
                self._file.flush()
        elif now:
            self._upload()
        elif time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            with contextlib.suppress(OSError):  # the next one may succeed
                self._upload()

    def close(self) -> None:
        """Writes the rest."""
        if self._remote and not self._file.closed:
            self._upload()
        with at(self._path):
            self._file.close()

    def _upload(self) -> None:
        self._written = time.monotonic()
        write(self._path, self._file.getvalue())


@contextlib.contextmanager
def at(path: str) -> Iterator[epath.Path]:
    """Gives the epath of a path; turns whatever the block raises into an OSError with a name."""
    try:
        if is_remote(path):
            _prepare()
        yield epath.Path(path)
    except FileNotFoundError as error:
        if error.strerror:
            raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
    except KeyError:
        raise OSError(None, "unknown kind of storage", path) from None
    # Clients of object storage raise their own exceptions, and Python may omit the name.
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise OSError(getattr(error, "errno", None), reason or repr(error), path) from None


def _object(url: str) -> tuple[Any, str]:
    """Returns an object's fsspec file system, and its name there."""
    import fsspec

    protocol, _, name = url.partition("://")  # fsspec's own function interprets "::" in a name
    return fsspec.filesystem(protocol), name


@functools.cache
def _prepare() -> None:
    """Stops gcsfs from caching listings, which other processes may change, and from logging errors."""
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
