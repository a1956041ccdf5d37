"""Tests images by index, from memory and decoded on demand, and the replacement of damaged ones."""

import threading
import zlib

import numpy as np
import pytest

from ncsn_jax.app.data import images
from ncsn_jax.app.data.images import Damaged, Images
from ncsn_jax.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (100, 2, 3, 1), dtype=np.uint8)


class Some(images.Source):
    """The first of `PIXELS`, of which some are damaged; records which are decoded."""

    dtype = np.dtype(np.uint8)

    def __init__(self, count=100, damaged=(), block=1):
        self.shape, self.what = (count, 2, 3, 1), "data.data_dir='there'"
        self.block = block
        self._damaged, self.decoded, self._lock = set(damaged), [], threading.Lock()

    def name(self, index):
        return f"{index}.png"

    def image(self, index):
        with self._lock:
            self.decoded.append(index)
        if index in self._damaged:
            raise Damaged(f"reason {index}")
        return PIXELS[index]


INDICES = [
    *(0, 7, -1, np.int64(3)),
    *(
        slice(None),
        slice(3, 50),
        slice(None, None, 7),
        slice(40, 2, -3),
        slice(5, 5),
        slice(90, 999),
    ),
    *(np.array([5, 1, 5, 99]), [4, 2], np.array([], int), np.arange(100) % 3 == 0),
]


@pytest.mark.parametrize("which", INDICES, ids=range(len(INDICES)))
def test_indexing_works_as_for_an_array(which):
    expected = PIXELS[which]
    rows = np.random.default_rng(1).permutation(100)
    shuffled = np.empty_like(PIXELS)
    shuffled[rows] = PIXELS
    for found in (Images(PIXELS), Images(Some()), Images(shuffled, rows=rows)):
        assert (found.shape, len(found), found.nbytes) == ((100, 2, 3, 1), 100, 600)
        assert found[which].dtype == np.uint8 and found[which].shape == expected.shape
        np.testing.assert_array_equal(found[which], expected)


def test_an_index_out_of_range_raises_as_for_an_array():
    for found in (Images(PIXELS), Images(Some())):
        for which in (100, -101, np.array([3, 100])):
            with pytest.raises(IndexError):
                found[which]


def test_an_image_is_decoded_once_per_request():
    source = Some()
    found = Images(source)
    found[np.array([5, 70, 5])], found[2]
    assert sorted(source.decoded) == [2, 5, 5, 70]


def test_conversion_to_an_array_copies_if_numpy_requires_it():
    mine = PIXELS.copy()
    copied, shared = np.array(Images(mine)), np.asarray(Images(mine))
    mine[:] = 0
    np.testing.assert_array_equal(copied, PIXELS)
    assert not shared.any()
    assert np.asarray(Images(Some(4)), np.float32).dtype == np.float32


@pytest.mark.parametrize("block", [1, 32])
def test_a_damaged_image_is_replaced_by_the_next_good_one(block):
    """The first follows the last."""
    expected = np.arange(100)
    expected[[0, 30, 31, 32, 98, 99]] = [1, 33, 33, 33, 1, 1]
    damaged = np.flatnonzero(expected != np.arange(100))
    source = Some(damaged=damaged, block=block)
    for rows in (np.arange(100), np.array([99, 31]), np.array([98]), np.array([30, 0, 30])):
        found = Images(source)
        np.testing.assert_array_equal(found[rows], PIXELS[expected[rows]])
        np.testing.assert_array_equal(found.replacements(rows), expected[rows])
    found = Images(Some(damaged=damaged))
    for row in range(100):
        np.testing.assert_array_equal(found[row], PIXELS[expected[row]])
    assert found.damaged == {row: f"reason {row}" for row in damaged}


def test_blocks_hold_the_single_images_in_order():
    found = Images(Some(damaged=[3, 40], block=32))
    rows = [*range(100), 7, 40]
    blocks = list(found.blocks(rows))
    assert [len(block) for block in blocks] == [32, 32, 32, 6]
    single = Images(Some(damaged=[3, 40]))
    np.testing.assert_array_equal(np.concatenate(blocks), [single.image(row) for row in rows])


def test_a_damaged_image_is_not_decoded_again():
    source = Some(damaged=[3])
    found = Images(source)
    for _ in range(3):
        found[3], found[1:5]
    assert source.decoded.count(3) == 1


def test_each_damaged_image_is_reported_once():
    found = Images(Some(damaged=[3, 40, 41]))
    assert found.newly_damaged(9) == []
    found[10], found[3], found[40]
    assert (
        found.newly_damaged(2) == [3, 40]
        and found.newly_damaged(2) == [41]
        and found.newly_damaged(2) == []
    )
    known = Images(PIXELS, damaged={7: "known before"})
    assert known.newly_damaged(9) == []
    np.testing.assert_array_equal(known.replacements(np.array([6, 7])), [6, 8])


def test_more_than_a_tenth_damaged_is_refused_with_the_reasons():
    assert Images(Some(damaged=range(10)))[:].shape == (100, 2, 3, 1)
    message = (
        r"data.data_dir='there': more than a tenth of 100 images cannot be used: 11 damaged \("
        r"0.png: reason 0; 1.png: reason 1; .*; 4.png: reason 4; ...\)"
    )
    with pytest.raises(UserError, match=message):
        Images(Some(damaged=range(11)))[:]
    assert Images(Some(50, damaged=range(5)))[:].shape == (50, 2, 3, 1)
    for index in (0, slice(None)):
        with pytest.raises(UserError, match="more than a tenth of 50 .* 6 damaged "):
            Images(Some(50, damaged=range(6)))[index]


def test_adjacent_damaged_images_count_like_any_others():
    """Eleven of two hundred may be damaged, even if they are the first to be read."""
    pixels = np.concatenate([PIXELS, PIXELS])

    class Many(Some):
        def image(self, index):
            super().image(index % 100 if index < 100 else 99)
            return pixels[index]

    np.testing.assert_array_equal(Images(Many(200, damaged=range(11)))[3], PIXELS[11])


def test_a_dataset_of_only_damaged_images_is_refused(monkeypatch):
    monkeypatch.setattr(images, "_MAX_DAMAGED", 1)
    with pytest.raises(UserError, match="data.data_dir='there' holds no image that can be decoded"):
        Images(Some(3, damaged=range(3)))[1]


def test_an_unreadable_image_ends_all_threads_with_its_error():
    class Vanished(Some):
        def image(self, index):
            if index == 50:
                raise UserError("x.png cannot be read: gone")
            return super().image(index)

    for block in (1, 32):
        with pytest.raises(UserError, match="x.png cannot be read: gone"):
            Images(Vanished(block=block))[:]


def test_images_are_described_by_their_files_or_by_a_checksum_of_a_thousand():
    assert Images(Some(), identity="abc").describe() == {"shape": [100, 2, 3, 1], "files": "abc"}
    expected = {"shape": [100, 2, 3, 1], "crc32_of_a_thousand": zlib.crc32(PIXELS.tobytes())}
    assert Images(PIXELS).describe() == Images(Some()).describe() == expected
