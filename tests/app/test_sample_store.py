import json

import numpy as np
import pytest
from PIL import Image

from ncsn_jax.app.sample_store import SampleStore
from ncsn_jax.errors import UserError

SETTINGS = {"seed": 0, "sampling.epsilon": 1e-4}


def fake(indices):
    return np.stack([np.full((4, 4, 1), i, np.uint8) for i in indices])


def open_store(path, settings=SETTINGS):
    return SampleStore(str(path), settings, (4, 4, 1))


def test_an_interrupted_run_makes_only_the_missing_samples(tmp_path):
    first = open_store(tmp_path)
    assert first.missing(5) == [0, 1, 2, 3, 4]
    first.add([0, 1], fake([0, 1]))
    first.add([2, 3], fake([2, 3]))
    (tmp_path / "parts" / "00000002-00000002.npz").write_bytes(b"torn")
    second = open_store(tmp_path)
    assert second.missing(5) == [2, 3, 4]
    second.add([2, 3, 4], fake([2, 3, 4]))
    second.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npz")["samples"], fake(range(5)))
    assert not (tmp_path / "parts").exists()
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size[0] >= 400
    third = open_store(tmp_path)
    assert third.missing(7) == [5, 6] and third.missing(3) == []


def test_samples_beyond_a_gap_are_kept(tmp_path):
    store = open_store(tmp_path)
    store.add([0, 1], fake([0, 1]))
    store.add([4, 5], fake([4, 5]))
    assert len(store.finish()) == 2
    again = open_store(tmp_path)
    assert again.missing(6) == [2, 3]
    again.add([2, 3], fake([2, 3]))
    np.testing.assert_array_equal(again.finish(), fake(range(6)))


def test_different_settings_are_refused_and_named(tmp_path):
    open_store(tmp_path).add([0], fake([0]))
    with pytest.raises(UserError, match="sampling.epsilon is 0.0001 there and 0.0002 here"):
        open_store(tmp_path, SETTINGS | {"sampling.epsilon": 2e-4})
    assert open_store(tmp_path).missing(1) == []


def test_a_damaged_result_is_not_overwritten(tmp_path):
    open_store(tmp_path)
    (tmp_path / "samples.npz").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"samples.npz cannot be read.*move it away"):
        open_store(tmp_path)
    assert (tmp_path / "samples.npz").read_bytes() == b"torn"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "it does not hold a JSON object"),
        ("[" * 100_000, "recursion"),
        ("{", "settings.json cannot be read"),
        (json.dumps({"seed": "y" * 10**6}), "seed is 'yyy"),
    ],
)
def test_an_edited_settings_file_is_reported_on_one_line(text, message, tmp_path):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        open_store(tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 4000


@pytest.mark.parametrize(
    ("indices", "samples"),
    [
        (np.arange(2), fake([0, 1]).astype(float)),
        (np.arange(2), np.zeros((2, 5, 5, 1), np.uint8)),
        (np.arange(2.0), fake([0, 1])),
        (np.zeros((2, 2), int), fake([0, 1])),
        (np.arange(3), fake([0, 1])),
    ],
)
def test_a_foreign_part_counts_as_missing(indices, samples, tmp_path):
    (tmp_path / "parts").mkdir()
    np.savez(tmp_path / "parts" / "x.npz", indices=indices, samples=samples)
    store = open_store(tmp_path)
    assert store.missing(2) == [0, 1]
    store.add([0, 1], fake([0, 1]))
    assert store.finish().dtype == np.uint8


def test_samples_of_a_different_type_are_refused(tmp_path):
    np.savez(tmp_path / "samples.npz", samples=np.full((2, 4, 4, 1), np.nan))
    with pytest.raises(UserError, match=r"holds float64 of shape .* expected uint8 of shape"):
        open_store(tmp_path)
