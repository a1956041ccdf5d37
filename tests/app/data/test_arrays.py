"""Tests users' arrays: reading files, the test split, and one-line errors."""

import hashlib
import os
import tracemalloc
import zlib

import ml_dtypes
import numpy as np
import pytest

from ncsn_jax.app import units
from ncsn_jax.app.data import arrays
from ncsn_jax.app.data.batches import Batches
from ncsn_jax.app.data.holdout import is_held_out
from ncsn_jax.app.data.images import Images
from ncsn_jax.errors import UserError
from tests.conftest import DATA

CASES = DATA / "cases"
RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (40, 4, 6, 3), dtype=np.uint8)
FLOATS = RNG.standard_normal((40, 4, 6, 2))


def test_the_example_arrays_are_read_unchanged():
    images = arrays.load(str(CASES / "images_uint8_24x40.npy"), (24, 40, 3), ())
    assert images.shape == (12, 24, 40, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images, np.load(CASES / "images_uint8_24x40.npy"))
    for name in ("kelvin_float32.npz:temperature", "kelvin_float32.npz"):
        kelvin = arrays.load(str(CASES / name), (16, 16, 5), (260, 320))
        assert kelvin.shape == (12, 16, 16, 5) and kelvin.dtype == np.float32
        kelvin = kelvin[:]
        assert 260 < kelvin.min() < 261 and 322 < kelvin.max() < 323


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, ">f4", np.float64, ml_dtypes.bfloat16])
def test_every_float_type_is_accepted_and_missing_channels_mean_one(dtype, tmp_path):
    images = RNG.integers(0, 100, (7, 4, 6)).astype(dtype)
    value_range = () if dtype == np.uint8 else (0, 100)
    found = arrays.load(images, (4, 6, 1), value_range)
    assert found.dtype == images.dtype
    np.testing.assert_array_equal(found, images[..., None])


@pytest.mark.parametrize("stored", ["FILE.npy", "FILE.npz", "FILE.npz:b", "FILE.npz:odd:key"])
def test_an_array_is_chosen_by_file_and_key(stored, tmp_path):
    path, key = str(tmp_path / stored.split(":")[0]), stored.partition(":")[2]
    if path.endswith(".npy"):
        np.save(path, BYTES)
    else:
        np.savez(path, **({key: BYTES, "a": BYTES[:2]} if key else {"only": BYTES}))
    name = str(tmp_path / stored)
    assert arrays.is_array(name)
    np.testing.assert_array_equal(arrays.load(name, (4, 6, 3), ()), BYTES)


def test_other_names_are_not_array_files():
    for name in ("digits", "image_folder", "npy", "a.npyx", "a.npz/b", ".npy"):
        assert not arrays.is_array(name)


def test_the_test_split_is_chosen_by_content(tmp_path):
    """It does not depend on the order or on other images, and the two splits make up the array."""
    path = str(tmp_path / "x.npy")
    np.save(path, FLOATS)
    held_out = np.array([is_held_out(hashlib.sha256(x.tobytes()).digest(), 0.3) for x in FLOATS])
    assert 0 < held_out.sum() < 40
    for source, there in ((path, FLOATS), (FLOATS, FLOATS), (FLOATS[::-1], FLOATS[::-1])):
        which = held_out if there is FLOATS else held_out[::-1]
        for split, expected in (("train", there[~which]), ("test", there[which])):
            found = arrays.load(source, (4, 6, 2), (-5, 5), split=split, holdout=0.3)
            assert (found.shape, len(found)) == (expected.shape, len(expected))
            np.testing.assert_array_equal(np.asarray(found), expected)
            np.testing.assert_array_equal(found[1], expected[1])
            np.testing.assert_array_equal(found[::2], expected[::2])
            rows = Batches(found, seed=3, batch_size=4)
            np.testing.assert_array_equal(rows(0)[0], expected[rows.indices(0)])


def test_the_examination_of_a_file_is_cached_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path / "cache"))
    looked, real = [], arrays._examine
    monkeypatch.setattr(arrays, "_examine", lambda *a: looked.append(1) or real(*a))
    path = str(tmp_path / "x.npy")
    load = lambda holdout: arrays.load(path, (4, 6, 2), (-5, 5), holdout=holdout)
    np.save(path, FLOATS)
    first = load(0.3)
    np.testing.assert_array_equal(np.asarray(load(0.3)), np.asarray(first))
    assert len(looked) == 1
    assert len(load(0.6)) < len(first) and len(looked) == 2
    bad = FLOATS.copy()
    bad[31, 2, 3, 1] = np.nan
    np.save(path, bad)
    os.utime(path, ns=(1, 1))  # the clock may be coarse
    with pytest.raises(UserError, match="holds a non-finite value in image 31"):
        load(0.3)


def test_a_mapped_array_uses_memory_only_for_the_rows_read(tmp_path):
    """The file is a sparse quarter of a gigabyte of zeros."""
    path = str(tmp_path / "large.npy")
    np.lib.format.open_memmap(path, "w+", np.float32, (1000, 256, 256, 1))
    tracemalloc.start()
    images = arrays.load(path, (256, 256, 1), (-1, 1))
    batch = units.to_input(Batches(images, 0, 8)(3), (-1, 1))
    images.describe()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batch.shape == (1, 8, 256, 256, 1) and (batch == 0.5).all()
    assert peak < 60e6 < images.nbytes / 4


def test_the_checksum_of_a_mapped_array_equals_that_of_its_rows():
    images = RNG.integers(0, 256, (2500, 2, 2, 1), dtype=np.uint8)
    expected = {"shape": [2500, 2, 2, 1], "crc32_of_a_thousand": zlib.crc32(images[::2].tobytes())}
    rows = np.arange(2500)
    assert Images(images).describe() == Images(images, rows=rows).describe() == expected
    assert Images(arrays.Rows(images, rows, "x")).describe() == expected


def not_finite(value):
    images = FLOATS.copy()
    images[7, 1, 1, 1] = value
    return images


@pytest.mark.parametrize(
    ("images", "shape", "value_range", "message"),
    [
        (
            BYTES.astype(np.int32),
            (4, 6, 3),
            (),
            "images has type int32, but must be uint8 or floating",
        ),
        (BYTES > 0, (4, 6, 3), (), "images has type bool, but must be"),
        (BYTES + 0j, (4, 6, 3), (), "images has type complex128, but must be"),
        (BYTES.astype(object), (4, 6, 3), (), "images has type object, but must be"),
        ([[1.0], [1.0, 2.0]], (4, 6, 3), (), "is not an array (ValueError)"),
        (
            BYTES[0, 0],
            (4, 6, 3),
            (),
            "images has shape (6, 3), but must be [N, H, W] or [N, H, W, C]",
        ),
        (BYTES[None], (4, 6, 3), (), "images has shape (1, 40, 4, 6, 3), but must be"),
        (BYTES[:0], (4, 6, 3), (), "images has shape (0, 4, 6, 3), but must be"),
        (BYTES, (4, 6, 1), (), "data.channels=1, but images has 3 channels"),
        (
            BYTES,
            (6, 4, 3),
            (),
            "data.image_size=(6, 4), but images has images of (4, 6) (height",
        ),
        (
            BYTES,
            (4, 6, 3),
            (0, 1),
            "data.value_range=(0, 1) must be () for images, which has type",
        ),
        (FLOATS, (4, 6, 2), (), f"which range from {FLOATS.min():g} to {FLOATS.max():g}"),
        (not_finite(np.nan), (4, 6, 2), (-5, 5), "holds a non-finite value in image 7"),
        (not_finite(-np.inf), (4, 6, 2), (-5, 5), "holds a non-finite value in image 7"),
        (not_finite(np.nan), (4, 6, 2), (), "holds a non-finite value in image 7"),
        (not_finite(1e300), (4, 6, 2), (-5, 5), "holds a non-finite value in image 7"),
    ],
)
def test_an_invalid_array_is_refused_on_one_line(images, shape, value_range, message):
    with pytest.raises(UserError) as refused:
        arrays.load(images, shape, value_range)
    assert message in str(refused.value)


def test_an_invalid_array_file_is_refused_on_one_line(tmp_path):
    np.savez(tmp_path / "two.npz", a=BYTES, b=BYTES)
    np.save(tmp_path / "object.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "int.npy", BYTES.astype(int))
    (tmp_path / "torn.npy").write_bytes((tmp_path / "int.npy").read_bytes()[:200])
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "empty.npy", BYTES[:0])
    (tmp_path / "folder.npy").mkdir()
    for name, message in {
        "no.npy": "cannot be read: No such file or directory",
        "folder.npy": "cannot be read: Is a directory",
        "two.npz": "must name one of the file's arrays, as in FILE.npz:KEY: a, b",
        "two.npz:c": "the file has no array 'c', only: a, b",
        "object.npy": "cannot be read as an array (ValueError",
        "torn.npy": "cannot be read as an array (ValueError",
        "text.npz": "cannot be read as an array",
        "int.npy": "has type int64, but must be uint8 or floating point",
        "empty.npy": "has shape (0, 4, 6, 3), but must be",
    }.items():
        with pytest.raises(UserError) as refused:
            arrays.load(str(tmp_path / name), (4, 6, 3), ())
        text = str(refused.value)
        assert text.startswith(f"data.dataset={str(tmp_path / name)!r}") and message in text


def test_a_split_without_images_is_refused():
    with pytest.raises(
        UserError, match="data.holdout=0 must be above 0, such as 0.1, for an array"
    ):
        arrays.load(BYTES, (4, 6, 3), (), split="test")
    with pytest.raises(
        UserError, match="data.holdout=1e-09 leaves no image of images for the test"
    ):
        arrays.load(BYTES, (4, 6, 3), (), split="test", holdout=1e-9)
