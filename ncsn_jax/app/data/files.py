"""Finds files in directory trees and in tar and zip archives, on a disk or in object storage.

An archive counts as a directory of its members. Files are read on demand, objects and members of archives by
their range of bytes. Nothing is copied.
"""

import collections
import errno
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

# A zip member begins with a fixed header, its name and extra fields, usually less than a kilobyte.
_HEADER, _EXTRA = 30, 1024

# The system's errors for a path that does not exist or cannot be named.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)

# The most zeros that may end a tar file.
_LONGEST_END = 2**20

_TRUNCATED = "the file has become shorter"


class File(NamedTuple):
    """A file, or a member of an archive.

    Attributes:
      name: its name relative to what was searched, with `/`; the archive's name precedes a member's.
      path: the path of the file or the archive.
      size: the size of the content, in bytes.
      start: where in the archive the member begins; 0 for a file.
      stored: how many bytes it takes there.
      method: a zip member's compression method; -1 for others, whose bytes are the content.
    """

    name: str
    path: str
    size: int
    start: int = 0
    stored: int = 0
    method: int = -1

    def read(self, most: int | None = None) -> bytes:
        """Returns the content, or at most its first `most` bytes.

        Raises:
          OSError: if the file cannot be read.
          Exception: any other, if a member is damaged.
        """
        size = self.size if most is None else min(self.size, most)
        if self.method < 0 or not size:  # Without a size, zlib would have no limit.
            return self._part(self.start, size)
        head = storage.read_part(self.path, self.start, _HEADER + _EXTRA + self.stored)
        if len(head) < _HEADER:
            raise OSError(_TRUNCATED)
        if head[:4] != b"PK\3\4":
            raise ValueError("its header is damaged")
        begin = _HEADER + sum(struct.unpack("<2H", head[26:_HEADER]))
        data = head[begin : begin + self.stored]
        if len(data) < self.stored:
            data = self._part(self.start + begin, self.stored)
        if self.method == zipfile.ZIP_STORED:
            return data[:size]
        # A damaged member may unpack to more.
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size)

    def _part(self, start: int, size: int) -> bytes:
        data = storage.read_part(self.path, start, size)
        if len(data) < size:
            raise OSError(_TRUNCATED)
        return data


class Listing(NamedTuple):
    """The files that were found.

    Attributes:
      files: the files in the order of their names.
      version: a digest that changes with the location, and when a file is rewritten.
    """

    files: list[File]
    version: str


def is_archive(path: str) -> bool:
    """Returns whether a file's name is that of an archive."""
    return path.lower().endswith(_ARCHIVES)


def find(path: str, field: str) -> Listing:
    """Returns the files below a directory or in an archive, without hidden ones and dangling links.

    Args:
      path: the path or URL of the directory or the archive.
      field: where the path comes from, for messages.

    Raises:
      UserError: if the directory does not exist, or an archive cannot be read.
    """
    found, version = [], hashlib.sha256(path.encode(errors="surrogateescape"))
    try:
        entries = list(list_files(path))
    except OSError as error:
        raise UserError(f"{field}={path!r} cannot be read: {error.strerror or error}") from None
    archives = [name for name, *_ in entries if is_archive(name)]
    if archives and any(name.lower().endswith(reading.SUFFIXES) for name, *_ in entries):
        raise UserError(
            f"{field}={path!r} holds images and the archive {archives[0]}, which may hold the same ones: "
            "name only one of the two"
        )
    for name, size, changed in entries:
        full = os.path.join(path, name) if name else path
        version.update(f"{name} {size} {changed}\0".encode(errors="surrogateescape"))
        if is_archive(full):
            found += _members(full, name, size, changed, field)
        else:
            found.append(File(name, full, size))
    return Listing(sorted(found), version.hexdigest()[:16])


def list_files(
    path: str, ignored: tuple[str, ...] = (".",)
) -> Iterator[tuple[str, int, int | str]]:
    """Yields (relative name, size, version) of each file; the name is "" if `path` is a file itself.

    Args:
      path: the path or URL of a directory or a file.
      ignored: prefixes of the names of files and directories to leave out.

    Raises:
      OSError: if it is not there, or cannot be read.
    """
    if storage.is_remote(path):
        for name, size, changed in storage.find_objects(path):
            if not any(part.startswith(ignored) for part in name.split("/")):
                yield name, size, changed
    elif os.path.isfile(path):
        status = os.stat(path)
        yield "", status.st_size, status.st_mtime_ns
    else:
        os.scandir(path).close()  # raises if the directory is not there; `walk` would skip it
        for folder, names in walk(path, ignored):
            for full in (
                os.path.join(folder, name) for name in names if not name.startswith(ignored)
            ):
                try:
                    status = os.stat(full)
                except OSError as error:
                    if error.errno in _ABSENT:  # a dangling link
                        continue
                    raise
                if stat.S_ISREG(status.st_mode):
                    name = os.path.relpath(full, path).replace(os.sep, "/")
                    yield name, status.st_size, status.st_mtime_ns


def walk(directory: str, ignored: tuple[str, ...] = (".",)) -> Iterator[tuple[str, list[str]]]:
    """Yields every directory of a tree with the sorted names of everything in it but directories.

    It follows links and visits every directory once, so links upwards end. It leaves out directories whose
    names begin with one of `ignored`.

    Raises:
      OSError: if a directory is there and cannot be read.
    """
    waiting, seen = collections.deque([directory]), set()
    while waiting:
        folder = waiting.popleft()  # breadth first, which takes the shorter of two paths
        try:
            status = os.stat(folder)
            names = sorted(os.listdir(folder))
        except ValueError:  # a name no file system allows
            continue
        except OSError as error:
            if error.errno in _ABSENT:
                continue
            raise
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        is_folder = {name: os.path.isdir(os.path.join(folder, name)) for name in names}
        yield folder, [name for name in names if not is_folder[name]]
        below = [name for name in names if is_folder[name] and not name.startswith(ignored)]
        waiting += [os.path.join(folder, name) for name in below]


def _members(path: str, prefix: str, size: int, changed: object, field: str) -> list[File]:
    """Returns an archive's members, from the cache if they were listed before."""

    def make() -> tuple[np.ndarray, str]:
        print(f"listing {path}", file=sys.stderr)
        list_members = _in_zip if path.lower().endswith(".zip") else _in_tar
        # Damaged archives can raise any exception.
        try:
            found = []
            for name, *numbers in list_members(path, size):
                parts = [part for part in name.split("/") if part not in ("", ".", "..")]
                if not any(part.startswith(".") for part in parts):
                    found.append(("/".join(parts), *numbers))
            numbers = np.array([member[1:] for member in found], np.int64).reshape(-1, 4)
        except MemoryError:
            raise
        except Exception as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{field}={path!r} cannot be read as an archive: {reason}") from None
        return numbers, json.dumps([member[0] for member in found])

    numbers, names = cache.array("archive", [path, size, changed], make)
    prefix = f"{prefix}/" if prefix else ""
    return [
        File(f"{prefix}{name}", path, *member)
        for name, member in zip(json.loads(names), numbers.tolist(), strict=True)
    ]


def _in_tar(path: str, length: int) -> Iterator[tuple[str, int, int, int, int]]:
    """Yields name, size, start, size and -1 of each regular file in a tar file."""
    with storage.reading(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # tarfile would keep all in memory
            if member.size < 0:
                raise tarfile.ReadError("a size is negative")
            if member.isreg() and not member.issparse():
                size = member.size
                yield member.name, size, member.offset_data, size, -1
        # The list ends at the first unreadable header. If zeros follow it, the archive is complete.
        file.seek(archive.offset)
        end = file.read(_LONGEST_END)
        if length % tarfile.BLOCKSIZE or not end or any(end) or archive.offset + len(end) < length:
            raise tarfile.ReadError("it is damaged or truncated")


def _in_zip(path: str, length: int) -> Iterator[tuple[str, int, int, int, int]]:
    """Yields name, size, start, stored size and method of each file in a zip file."""
    with storage.reading(path) as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            method = member.compress_type
            if member.header_offset + member.compress_size > length:
                raise zipfile.BadZipFile(f"{member.filename} is larger than the archive")
            if member.flag_bits & 1 or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise zipfile.BadZipFile(
                    f"{member.filename} is encrypted, or compressed by a method other than deflate"
                )
            yield (
                member.filename,
                member.file_size,
                member.header_offset,
                member.compress_size,
                method,
            )
