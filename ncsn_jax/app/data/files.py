"""Finds files in directory trees and in tar and zip archives, on a disk or in object storage.

An archive stands for a directory of its members, unless images lie beside it, which may be the same ones. A
file is read when it is asked for, an object or a member of an archive by its range of bytes. Nothing is
copied.
"""

import collections
import contextlib
import hashlib
import json
import os
import stat
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ncsn_jax.app import storage
from ncsn_jax.app.data import cache, reading
from ncsn_jax.errors import UserError

_ARCHIVES = (".tar", ".zip")

# The kinds of files: one, a member of a tar file, and the methods of zip that are read.
_PLAIN, _TAR, _STORED, DEFLATED = -2, -1, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
# In a zip file a member follows a header of so many bytes, a name and extra fields, usually below a kilobyte.
_HEADER, _EXTRA = 30, 1024


class File(NamedTuple):
    """A file, or a member of an archive.

    Attributes:
      name: relative to what was searched, with `/`; of a member, that of the archive comes first.
      path: of the file, or of the archive.
      size: in bytes, of a member as it is stored.
      start: where in the archive it begins; 0 for a file.
      kind: of a file, of a member of a tar file, or the method of a zip file.
    """

    name: str
    path: str
    size: int
    start: int = 0
    kind: int = _PLAIN

    def read(self) -> bytes:
        """Returns the content.

        Raises:
          OSError: if the file cannot be read.
          Exception: of other kinds, if a member is damaged.
        """
        if self.kind < _STORED:
            return self._part(self.start, self.size)
        head = storage.read_part(self.path, self.start, _HEADER + _EXTRA + self.size)
        begin = _HEADER + sum(struct.unpack("<2H", head[26:_HEADER]))
        data = head[begin : begin + self.size]
        if len(data) < self.size:
            data = self._part(self.start + begin, self.size)
        return data if self.kind == _STORED else zlib.decompress(data, -zlib.MAX_WBITS)

    def _part(self, start: int, size: int) -> bytes:
        data = storage.read_part(self.path, start, size)
        if len(data) < size:
            raise OSError("the file is shorter than it was")
        return data


class Listing(NamedTuple):
    """What was found.

    Attributes:
      files: in the order of their names.
      identity: a digest of names and sizes, which is the same wherever the files lie.
      version: a digest that also changes with the place, and when a file is written again.
    """

    files: list[File]
    identity: str
    version: str


def is_archive(path: str) -> bool:
    """Returns whether a file is an archive, by its name."""
    return path.lower().endswith(_ARCHIVES)


def find(path: str, field: str) -> Listing:
    """Returns the files below a directory, or in an archive; hidden ones and dangling links are ignored.

    Args:
      path: of the directory or the archive, or its URL.
      field: where the path comes from, for messages.

    Raises:
      UserError: if there is no such directory, or an archive cannot be read.
    """
    found, full = [], path
    version = hashlib.sha256(path.encode(errors="surrogateescape"))
    try:
        entries = list(_entries(path))
        has_images = any(name.lower().endswith(reading.SUFFIXES) for name, *_ in entries)
        for name, size, changed in entries:
            full = os.path.join(path, name) if name else path
            version.update(f"{name} {size} {changed}\0".encode(errors="surrogateescape"))
            if is_archive(full) and not has_images:
                found += _members(full, name, [size, changed])
            else:
                found.append(File(name, full, size))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{field}={full!r} cannot be read as an archive: {error}") from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{field}={path!r} cannot be read: {reason}") from None
    found.sort()
    identity = hashlib.sha256()
    for file in found:
        identity.update(f"{file.name} {file.size}\0".encode(errors="surrogateescape"))
    return Listing(found, identity.hexdigest()[:16], version.hexdigest()[:16])


def _entries(path: str) -> Iterator[tuple[str, int, object]]:
    """Yields relative name, size, and what changes when it is written, of each file; "" for one itself."""
    if storage.is_remote(path):
        for name, size, changed in storage.find_objects(path):
            if not any(part.startswith(".") for part in name.split("/")):
                yield name, size, changed
    elif os.path.isfile(path):
        status = os.stat(path)
        yield "", status.st_size, status.st_mtime_ns
    else:
        os.scandir(path).close()  # It says why, if that cannot be read.
        for folder, names in walk(path):
            for full in (os.path.join(folder, name) for name in names if not name.startswith(".")):
                with contextlib.suppress(OSError):  # such as a dangling link
                    status = os.stat(full)
                    if not stat.S_ISREG(status.st_mode):
                        continue
                    name = os.path.relpath(full, path).replace(os.sep, "/")
                    yield name, status.st_size, status.st_mtime_ns


def walk(directory: str, ignored: tuple[str, ...] = (".",)) -> Iterator[tuple[str, list[str]]]:
    """Yields every directory of a tree with the sorted names of what is no directory in it.

    Links are followed and every directory is visited once, so that links upwards end; directories that
    cannot be read, and those whose names begin with one of `ignored`, are left out.
    """
    waiting, seen = collections.deque([directory]), set()
    while waiting:
        folder = waiting.popleft()  # by depth, so that of two ways the shorter is taken
        try:
            status = os.stat(folder)
            names = sorted(os.listdir(folder))
        except (OSError, ValueError):  # ValueError: a name that no file system has
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        is_folder = {name: os.path.isdir(os.path.join(folder, name)) for name in names}
        yield folder, [name for name in names if not is_folder[name]]
        below = [name for name in names if is_folder[name] and not name.startswith(ignored)]
        waiting += [os.path.join(folder, name) for name in below]


def _members(path: str, prefix: str, version: list) -> list[File]:
    """Returns the members of an archive; that list is kept in the cache, as a tar file has none."""

    def make() -> tuple[np.ndarray, str]:
        print(f"listing {path}", file=sys.stderr)
        found = [
            member
            for member in (_in_zip if path.lower().endswith(".zip") else _in_tar)(path, version[0])
            if not any(part.startswith(".") for part in member[0].split("/"))
        ]
        numbers = np.array([member[1:] for member in found], np.int64).reshape(-1, 3)
        return numbers, json.dumps([member[0] for member in found])

    numbers, names = cache.images("archive", [path, version], make)
    prefix = f"{prefix}/" if prefix else ""
    return [
        File(f"{prefix}{name}", path, size, start, kind)
        for name, (start, size, kind) in zip(json.loads(names), numbers.tolist(), strict=True)
    ]


def _in_tar(path: str, length: int) -> Iterator[tuple[str, int, int, int]]:
    """Yields name, start, size and kind of each regular file in a tar file."""
    if length % tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is cut short")
    with storage.reading(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # It would keep them all.
            if member.isreg() and not member.issparse():
                yield member.name.removeprefix("./"), member.offset_data, member.size, _TAR


def _in_zip(path: str, length: int) -> Iterator[tuple[str, int, int, int]]:
    """Yields name, start, size and kind of each file in a zip file."""
    with storage.reading(path) as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            if member.flag_bits & 1 or member.compress_type not in (_STORED, DEFLATED):
                raise zipfile.BadZipFile(
                    f"{member.filename} is encrypted, or compressed by another method than deflate"
                )
            yield member.filename, member.header_offset, member.compress_size, member.compress_type
