"""Tests batches by seed, step and process, with and without decoding in advance."""

import collections
import threading

import numpy as np
import pytest

from ncsn_jax.app import data
from ncsn_jax.app.data.images import Damaged, Source
from ncsn_jax.errors import UserError


def numbered(n):
    return np.arange(n, dtype=np.uint8)[:, None, None, None]


def test_batches_are_epochs_of_permutations():
    batches = data.Batches(numbered(10), seed=3, batch_size=4)
    drawn = np.concatenate([batches(step)[0].ravel() for step in range(5)])
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert list(drawn[:10]) != list(drawn[10:])


def test_batches_depend_on_seed_and_step_alone():
    first = data.Batches(numbered(50), seed=3, batch_size=8)
    for step in range(20):
        first(step)
    again = data.Batches(numbered(50), seed=3, batch_size=8)
    np.testing.assert_array_equal(again(19), first(19))
    np.testing.assert_array_equal(again(2, 3), np.stack([first(s)[0] for s in (2, 3, 4)]))
    other = data.Batches(numbered(50), seed=4, batch_size=8)
    assert not np.array_equal(other(19), first(19))
    # The second epoch of a seed differs from the first epoch of the next seed.
    epochs = data.Batches(numbered(8), 3, 8)(1), data.Batches(numbered(8), 4, 8)(0)
    assert not np.array_equal(*epochs)


def test_processes_share_a_batch():
    whole = data.Batches(numbered(50), seed=0, batch_size=8)(11)
    parts = [data.Batches(numbered(50), 0, 8, i, 4)(11) for i in range(4)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    with pytest.raises(ValueError, match="batch_size=8 must be a multiple of 3"):
        data.Batches(numbered(50), 0, 8, 0, 3)


def test_a_dataset_may_be_smaller_than_a_batch():
    batch = data.Batches(numbered(3), seed=0, batch_size=10)(0).ravel()
    assert np.bincount(batch).tolist().count(3) >= 2 and len(batch) == 10


class Counted(Source):
    """Numbered images, of which 3 is damaged; counts how often each is decoded, and by which thread."""

    dtype, what = np.dtype(np.uint8), "numbers"

    def __init__(self, count):
        self.shape, self.decoded, self.threads = (count, 1, 1, 1), collections.Counter(), set()
        self._lock = threading.Lock()

    def name(self, index):
        return str(index)

    def image(self, index):
        with self._lock:
            self.decoded[index] += 1
            self.threads.add(threading.get_ident())
        if index == 3:
            raise Damaged("as it should be")
        return np.full((1, 1, 1), index, np.uint8)


def sound(n):
    images = numbered(n)
    images[3] = 4
    return images


@pytest.mark.parametrize(("threads", "ahead"), [(0, 1), (1, 1), (3, 1), (3, 4)])
@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("first", [0, 6])
def test_a_stream_yields_the_batches_of_its_steps(first, num_steps, threads, ahead):
    """Also from a later step and beyond the first epoch, which ends within step 5."""
    options = dict(num_steps=num_steps, threads=threads, ahead=ahead)
    for process in range(2):
        of_array = data.Batches(sound(21), 0, 4, process, 2)
        expected = [of_array(step, num_steps) for step in range(first, 12, num_steps)]
        for images in (sound(21), data.Images(sound(21)), data.Images(Counted(21))):
            batches = data.Batches(images, 0, 4, process, 2)
            found = list(batches.between(first, 12, **options))
            assert found[0].shape == (num_steps, 2, 1, 1, 1) and found[0].dtype == np.uint8
            np.testing.assert_array_equal(np.stack(found), np.stack(expected))


@pytest.mark.parametrize("num_steps", [1, 3])
def test_labels_are_those_of_the_images_that_were_read(num_steps):
    """Image i has the class i, and image 4 is read in place of image 3."""
    for images in (data.Images(sound(21), damaged={3: ""}), data.Images(Counted(21))):
        batches = data.Batches(images, 0, 4, 1, 2, np.arange(21, dtype=np.int32))
        for found, labels in batches.between(6, 12, num_steps=num_steps, threads=3):
            assert labels.shape == found.shape[:2] and labels.dtype == np.int32
            np.testing.assert_array_equal(found[..., 0, 0, 0], labels)


def test_processes_together_decode_each_image_once():
    """Two processes take five steps of eight of forty images, which is one epoch."""
    source, shares = Counted(40), []
    for process in range(2):
        batches = data.Batches(data.Images(source), 0, 8, process, 2)
        decoded = source.decoded.copy()
        list(batches.between(0, 5, 1, threads=2, ahead=2))
        shares.append(set(source.decoded - decoded))
    # 3 is in one share, which decodes the next image instead, although that may be in the other share.
    assert {row: n for row, n in source.decoded.items() if n != 1} == {4: 2}
    assert set(source.decoded) == set(range(40)) and shares[0] & shares[1] <= {4}


def test_threads_decode_only_if_configured():
    for threads in (0, 2):
        source = Counted(20)
        stream = data.Batches(data.Images(source), 0, 4).between(0, 8, 1, threads=threads)
        next(stream)
        stream.close()
        assert (source.threads == {threading.get_ident()}) == (threads == 0)


def test_decoding_ahead_is_bounded_by_the_buffer():
    source = Counted(100)
    stream = data.Batches(data.Images(source), 0, 4).between(0, 25, 1, threads=1, ahead=2)
    for taken in range(1, 5):
        next(stream)
        # One more, which a thread may have begun.
        assert 4 * taken <= sum(source.decoded.values()) <= 4 * (taken + 2) + 2
    stream.close()


def test_an_unreadable_image_ends_a_stream_with_its_error():
    class Gone(Counted):
        def image(self, index):
            raise UserError("a line")

    for threads in (0, 2):
        stream = data.Batches(data.Images(Gone(20)), 0, 4).between(0, 8, 1, threads=threads)
        with pytest.raises(UserError) as ended:
            next(stream)
        assert str(ended.value) == "a line"
