import numpy as np
import pytest

from ncsn_jax.app import data


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
    # The second epoch of a seed is not the first one of the next.
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
