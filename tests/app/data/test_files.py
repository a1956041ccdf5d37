"""Tests which files are found in a directory, a tar or a zip file, and what is read from them."""

import errno
import io
import os
import struct
import tarfile
import zipfile

import pytest

from ncsn_jax.app.data import files, image_folder
from ncsn_jax.errors import UserError

# The order of their names, in which "!" comes before "/".
CONTENT = {"a!.png": b"first", "a/b.png": b"", "a/z": 9000 * b"long", "c d é.png": b"fourth"}
HIDDEN = {".x.png": b"hidden", "a/.hidden/x.png": b"hidden"}


def write_folder(path, content=CONTENT):
    for name, data in (content | HIDDEN).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    (path / "link.png").symlink_to("nowhere")
    os.mkfifo(path / "pipe.png")
    return path


def write_tar(path, content=CONTENT, **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, data in reversed((content | HIDDEN).items()):
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, kind in (("link.png", tarfile.SYMTYPE), ("d.png", tarfile.DIRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a/z"
            archive.addfile(member)
    return path


def write_zip(path, method=zipfile.ZIP_STORED, content=CONTENT, extra=b""):
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("a")
        for name, data in reversed((content | HIDDEN).items()):
            member = zipfile.ZipInfo(name)
            member.extra = extra
            archive.writestr(member, data, method)
    return path


def found(path):
    return {file.name: file.read() for file in files.find(str(path), "x").files}


# The header of this member extends beyond the first read of a small member.
LONG = struct.pack("<HH", 0xCAFE, 5000) + bytes(5000)
WRITERS = {
    "folder": lambda path: write_folder(path / "x"),
    "ustar": lambda path: write_tar(path / "x.tar", format=tarfile.USTAR_FORMAT),
    "gnu": lambda path: write_tar(path / "x.TAR", format=tarfile.GNU_FORMAT),
    "pax": lambda path: write_tar(path / "x.tar", format=tarfile.PAX_FORMAT),
    "stored": lambda path: write_zip(path / "x.zip"),
    "deflated": lambda path: write_zip(path / "x.ZIP", zipfile.ZIP_DEFLATED),
    "long": lambda path: write_zip(path / "x.zip", extra=LONG),
    "long and deflated": lambda path: write_zip(path / "x.zip", zipfile.ZIP_DEFLATED, extra=LONG),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_files_are_listed_by_name_and_read_unchanged(kind, tmp_path):
    """The listing omits hidden files, dangling links and anything that is not a file."""
    path = WRITERS[kind](tmp_path)
    assert list(found(path).items()) == list(CONTENT.items())
    assert list(found(path).items()) == list(CONTENT.items())  # from the cached list


def test_archives_inside_a_directory_count_as_directories(tmp_path):
    (tmp_path / "x" / "a").mkdir(parents=True)
    (tmp_path / "x" / "notes.txt").write_bytes(b"notes")
    write_tar(tmp_path / "x" / "a.tar")
    write_zip(tmp_path / "x" / "a" / "b.zip", zipfile.ZIP_DEFLATED)
    (tmp_path / "x" / ".hidden.zip").write_bytes(b"no archive")
    inside = {f"{a}/{name}": data for a in ("a.tar", "a/b.zip") for name, data in CONTENT.items()}
    assert list(found(tmp_path / "x").items()) == sorted(({"notes.txt": b"notes"} | inside).items())


def test_archives_beside_images_are_refused(tmp_path):
    write_folder(tmp_path / "x")
    write_tar(tmp_path / "x" / "a.tar")
    assert "holds images and the archive a.tar, which may hold the same ones" in refusal(
        tmp_path / "x"
    )


def test_long_member_names_are_complete(tmp_path):
    content = {f"{'d' * 90}/{'e' * 90}/{'f' * 90}.png": b"deep"}
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert found(write_tar(tmp_path / f"{kind}.tar", content, format=kind)) == content


def test_the_identity_depends_only_on_names_and_sizes(tmp_path):
    """This includes compressed members and excludes files that are not images."""
    identity = lambda path: image_folder.Folder(str(path), 8, 1, 0).identity
    there = identity(write_folder(tmp_path / "a"))
    other = CONTENT | {"a!.png": b"FIRST", "notes.txt": b"no image"}
    same = [
        write_folder(tmp_path / "b", other),
        write_tar(tmp_path / "x.tar", other),
        write_zip(tmp_path / "x.zip", content=other),
        write_zip(tmp_path / "y.zip", zipfile.ZIP_DEFLATED, other),
    ]
    assert {identity(path) for path in same} == {there}
    renamed = {name.replace("!", '"'): data for name, data in CONTENT.items()}
    others = [CONTENT | {"a!.png": b"longer"}, renamed, CONTENT | {"e.png": b""}]
    found = {identity(write_folder(tmp_path / f"{i}", c)) for i, c in enumerate(others)}
    assert len(found | {there}) == 4


def test_the_version_changes_with_the_location_and_when_a_file_is_rewritten(tmp_path):
    version = lambda path: files.find(str(path), "x").version
    paths = [write_folder(tmp_path / "a"), write_tar(tmp_path / "x.tar")]
    before = [version(path) for path in paths]
    assert [version(path) for path in paths] == before
    assert version((tmp_path / "a").rename(tmp_path / "b")) != before[0]
    (tmp_path / "b").rename(tmp_path / "a")
    (tmp_path / "a" / "a!.png").write_bytes(b"FIRST")
    write_tar(tmp_path / "x.tar")
    for name in ("a/a!.png", "x.tar"):
        os.utime(tmp_path / name, ns=(1, 1))  # the clock may be coarse
    assert not set(before) & {version(path) for path in paths}


def test_a_rewritten_archive_is_listed_again(tmp_path):
    """Also one of the same size."""
    renamed = {name.replace("a", "A"): data for name, data in CONTENT.items()}
    for i, content in enumerate((CONTENT, renamed)):
        os.utime(write_zip(tmp_path / "x.zip", content=content), ns=(i, i))
        assert found(tmp_path / "x.zip") == content


def refusal(path):
    with pytest.raises(UserError) as refused:
        files.find(str(path), "data.data_dir")
    assert str(refused.value).isprintable()
    return str(refused.value)


@pytest.mark.parametrize("where", ["itself", "inside"])
def test_unreadable_archives_are_reported_on_one_line(where, tmp_path):
    """The message names the archive, also if it lies inside the directory."""

    def line(path):
        return refusal(path if where == "itself" else tmp_path)

    path = write_tar(tmp_path / "x.tar")
    whole, begin = path.read_bytes(), f"data.data_dir={str(path)!r} cannot be read as an archive: "
    for data, message in (
        (whole[:-1], "it is damaged or truncated"),
        (whole[: 3 * 512], ""),
        (whole[:100] + b"\xff" + whole[101:], ""),
        (whole[:1024] + bytes(512) + whole[1536:], "it is damaged or truncated"),
        (whole[:1024] + bytes(2**20) + whole[1024:], "it is damaged or truncated"),
        (
            whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512),
            "it is damaged or truncated",
        ),
        (b"no archive", ""),
    ):
        path.write_bytes(data)
        assert line(path).startswith(begin + message)
    path.unlink()
    path = write_zip(tmp_path / "x.zip")
    whole, begin = path.read_bytes(), f"data.data_dir={str(path)!r} cannot be read as an archive: "
    for data in (whole[:-1], whole[:100], b"", b"no archive"):
        path.write_bytes(data)
        assert line(path).startswith(begin + "File is not a zip file")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        write_zip(path, method)
        assert "a/.hidden/x.png is encrypted, or compressed by a method other than" in line(path)
    data, entry = bytearray(whole), b"PK\x01\x02"
    data[data.index(entry, data.index(entry) + 1) + 8] |= 1  # in the first member that is a file
    path.write_bytes(data)
    assert begin in line(path) and "is encrypted, or compressed by a method other than" in line(
        path
    )


def test_a_damaged_zip_file_is_one_line_or_a_damaged_member(tmp_path):
    """Cases: a size beyond the archive, an invalid local header, and no content."""
    path = write_zip(tmp_path / "x.zip", zipfile.ZIP_DEFLATED, {"a.png": b"a" * 99, "b.png": b""})
    whole = path.read_bytes()
    entry = whole.index(b"a.png", whole.index(b"PK\x01\x02")) - 46
    path.write_bytes(whole[: entry + 20] + b"\xff\xff\xff\x0f" + whole[entry + 24 :])
    assert "a.png is larger than the archive" in refusal(path)
    start = whole.index(b"a.png") - 30
    path.write_bytes(whole[:start] + b"xx" + whole[start + 2 :])
    a, b = (file for file in files.find(str(path), "x").files if not file.name.startswith("a/"))
    with pytest.raises(ValueError, match="its header is damaged"):
        a.read()
    assert (a.name, b.name, b.read()) == ("a.png", "b.png", b"")


def test_names_with_dots_are_relative_to_the_archive(tmp_path):
    for name in ("./a.png", "../im/a.png"):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr(name, b"content")
        os.utime(tmp_path / "x.zip", ns=(len(name), 1))
        (expected,) = found(tmp_path / "x.zip")
        assert expected == name.replace("../", "").replace("./", "")


def test_an_unreadable_directory_is_reported_on_one_line(tmp_path, monkeypatch):
    """It works for every user, although root may read everything."""
    write_folder(tmp_path / "x")
    real = os.listdir

    def listdir(path):
        if str(path).endswith("/a"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    assert "cannot be read: Permission denied" in refusal(tmp_path / "x")


def test_a_path_that_is_neither_directory_nor_archive_is_reported_on_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    for name, reason in (("no.tar", "No such file or dir"), ("pipe.tar", "Not a directory")):
        message = f"data.data_dir={str(tmp_path / name)!r} cannot be read: {reason}"
        assert refusal(tmp_path / name).startswith(message)
    (tmp_path / "x.tar.gz").write_bytes(b"")
    for name, message in (
        ("x.tar.gz", "x.tar.gz' is neither a directory nor a .tar or .zip file; unpack"),
        ("nowhere", "nowhere' does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            image_folder.Folder(str(tmp_path / name), 8, 1, 0)
