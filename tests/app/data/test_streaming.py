"""Tests that images decoded on demand are bit-identical to images decoded once."""

import io
import logging
import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from ncsn_jax.app import data
from ncsn_jax.app.data import arrays, image_folder, sources
from ncsn_jax.app.data import images as images_of
from ncsn_jax.errors import UserError

INDICES = [3, -1, slice(None), slice(2, 30, 5), slice(25, 3, -2), np.array([7, 7, 0, 30])]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Returns forty pictures of several formats, one damaged, as a directory, three archives and an array."""
    root, rng = tmp_path_factory.mktemp("stored"), np.random.default_rng(0)
    (root / "folder" / "below").mkdir(parents=True)
    pixels = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    for i, grey in enumerate(pixels):
        suffix = [".png", ".jpg", ".bmp", ".webp"][i % 4]
        Image.fromarray(grey).save(root / "folder" / ["", "below"][i % 2] / f"{i:02d}{suffix}")
    path = root / "folder" / "20.png"
    path.write_bytes(path.read_bytes()[:60])
    for suffix, mode in ((".tar", "tar"), (".zip", "zip")):
        shutil.make_archive(str(root / "x"), mode, root / "folder")
        assert (root / f"x{suffix}").exists()
    with zipfile.ZipFile(root / "stored.zip", "w") as archive:
        for name in (root / "folder").rglob("*.*"):
            archive.write(name, name.relative_to(root / "folder"))
    np.save(root / "bytes.npy", pixels)
    np.save(root / "floats.npy", pixels[..., None] / np.float32(255))
    return root


def digits(root, **options):
    return data.load("digits", "", 4, 1, crop_size=-1, split="train[:40]", **options)


def folder(name, **more):
    return lambda root, **options: data.load(
        "image_folder", str(root / name), 4, 1, crop_size=-1, **more, **options
    )


def array(name, value_range, **more):
    return lambda root, **options: arrays.load(
        str(root / name), (8, 8, 1), value_range, **more, **options
    )


LOADS = {
    "digits": digits,
    "folder": folder("folder"),
    "train": folder("folder", holdout=0.4),
    "test": folder("x.zip", holdout=0.4, split="test"),
    "tar": folder("x.tar"),
    "deflated": folder("x.zip"),
    "stored": folder("stored.zip"),
    "bytes": array("bytes.npy", ()),
    "floats": array("floats.npy", (0, 1)),
    "test array": array("floats.npy", (0, 1), split="test", holdout=0.4),
}


@pytest.mark.parametrize("kind", LOADS)
def test_images_are_the_same_cached_or_decoded_on_demand(kind, stored):
    cached = LOADS[kind](stored, cache_bytes=10**9)
    streamed = LOADS[kind](stored, cache_bytes=0)
    assert cached.source is None and streamed.source is not None
    assert (streamed.shape, streamed.dtype) == (cached.shape, cached.dtype)
    assert streamed.describe() == cached.describe()
    count = len(cached)
    for which in INDICES:
        if isinstance(which, np.ndarray):
            which = which % count
        np.testing.assert_array_equal(streamed[which], cached[which])
    assert streamed.damaged == cached.damaged


def test_a_directory_and_its_archives_give_the_same_images(stored):
    """They come in the same order, by name, and can replace each other."""
    found = [LOADS[kind](stored) for kind in ("folder", "tar", "deflated", "stored")]
    for other in found[1:]:
        np.testing.assert_array_equal(other[:], found[0][:])
        assert list(other.damaged) == list(found[0].damaged) != []
    # Deflated members have other sizes.
    assert found[0].describe() == found[1].describe() == found[3].describe()


def test_one_damaged_picture_of_forty_is_named_and_replaced(stored, caplog):
    for cache_bytes in (0, 10**9):
        caplog.clear()
        found = folder("folder")(stored, cache_bytes=cache_bytes)
        ((row, _),) = found.damaged.items()
        np.testing.assert_array_equal(found[row], found[row + 1])
        (line,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
        assert line.startswith(f"data.data_dir={str(stored / 'folder')!r}: 1 damaged (20.png: ")
        assert found.newly_damaged(9) == []


def test_opening_a_large_dataset_examines_only_a_sample(stored, monkeypatch):
    """The sample is evenly spaced."""
    monkeypatch.setattr(sources, "_EXAMINED", 10)
    asked, real = [], image_folder.Folder.image
    monkeypatch.setattr(
        image_folder.Folder,
        "image",
        lambda self, index: asked.append(index) or real(self, index),
    )
    found = folder("folder")(stored, cache_bytes=0)
    assert sorted(asked) == list(range(0, 40, 4)) and found.source.remarks is None


def test_images_of_the_wrong_size_are_refused_on_opening(stored):
    for cache_bytes in (0, 10**9):
        with pytest.raises(
            UserError, match="more than a tenth of 40 .*[(]00.png, .*: is 8x8, not 4x4; set data"
        ):
            data.load("image_folder", str(stored / "folder"), 4, 1, cache_bytes=cache_bytes)


def test_a_vanished_file_is_reported_on_one_line(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"{i}.png")
    found = data.load("image_folder", str(tmp_path), 8, 1, cache_bytes=0)
    os.remove(tmp_path / "1.png")
    with pytest.raises(UserError, match="1.png cannot be read: No such file or directory"):
        found[:]


def test_a_non_finite_value_is_found_when_it_is_read(tmp_path):
    """Opening a large array examines only some images."""
    images = np.zeros((2500, 2, 2, 1), np.float32)
    images[1001, 1, 0, 0] = np.nan
    np.save(tmp_path / "x.npy", images)
    load = lambda **options: arrays.load(str(tmp_path / "x.npy"), (2, 2, 1), (0, 1), **options)
    message = "holds a non-finite value in image 1001"
    with pytest.raises(UserError, match=message):
        load()
    found = load(cache_bytes=0)
    assert not found[:1001].any()
    with pytest.raises(UserError, match=message):
        found[1000:1003]


def test_labels_are_the_same_cached_or_read_on_demand():
    for split in ("train", "test", "train[10%:20%]"):
        kept, classes = data.load_labels("digits", "", split=split)
        read, of_read = data.load_labels("digits", "", split=split, cache_bytes=0)
        assert not isinstance(read, np.ndarray) and of_read == classes == 10
        assert len(read) == len(kept)
        for which in (slice(None), np.array([5, 1, 5]), slice(20, 3, -4)):
            np.testing.assert_array_equal(read[which], kept[which])
            assert read[which].dtype == np.int32


def test_a_damaged_compressed_member_causes_no_traceback(tmp_path, monkeypatch):
    """Without a suffix it is skipped; with one it counts as damaged, also when a split reads all files."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(12):
            buffer = io.BytesIO()
            Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(buffer, "BMP")
            archive.writestr("a" if i == 0 else f"{i:02d}.bmp", buffer.getvalue())
        starts = {info.filename: info.header_offset for info in archive.infolist()}
    content = bytearray(path.read_bytes())
    for name in ("a", "03.bmp"):
        begin = starts[name] + 30 + len(name)
        content[begin : begin + 2] = b"\xff\xff"
    path.write_bytes(content)
    monkeypatch.setattr(images_of, "_MAX_DAMAGED", 0.5)  # applies to a split too
    for cache_bytes in (0, 10**9):
        found = folder("x.zip")(tmp_path, cache_bytes=cache_bytes)
        assert len(found) == 11 and list(found.damaged) == [2]
        np.testing.assert_array_equal(found[2], found[3])
        splits = [
            folder("x.zip", holdout=0.5, split=split)(tmp_path, cache_bytes=cache_bytes)
            for split in ("train", "test")
        ]
        assert sum(map(len, splits)) == 11


def test_an_impossible_size_in_a_header_is_reported_without_a_warning(tmp_path):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000000, 8, 8, 1)}\n"
    content = b"\x93NUMPY\x01\x00" + bytes([len(header), 0]) + header.encode() + bytes(64)
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as an array \(ValueError"):
        array("x.npy", ())(tmp_path)
