import numpy as np
import pytest
from PIL import Image

from ncsn_jax import images
from ncsn_jax.errors import UserError
from ncsn_jax.samples import SampleStore

SETTINGS = {"seed": 0, "sampling.epsilon": 1e-4}


def fake(indices):
    return np.stack([np.full((4, 4, 1), i, np.uint8) for i in indices])


def open_store(path, settings=SETTINGS):
    return SampleStore(str(path), settings, (4, 4, 1))


def test_an_interrupted_run_continues_with_what_is_missing(tmp_path):
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


def test_what_lies_beyond_a_gap_is_kept(tmp_path):
    store = open_store(tmp_path)
    store.add([0, 1], fake([0, 1]))
    store.add([4, 5], fake([4, 5]))
    assert len(store.finish()) == 2
    again = open_store(tmp_path)
    assert again.missing(6) == [2, 3]
    again.add([2, 3], fake([2, 3]))
    np.testing.assert_array_equal(again.finish(), fake(range(6)))


def test_other_settings_are_refused_and_named(tmp_path):
    open_store(tmp_path).add([0], fake([0]))
    with pytest.raises(UserError, match="sampling.epsilon is 0.0001 there and 0.0002 here"):
        open_store(tmp_path, SETTINGS | {"sampling.epsilon": 2e-4})
    assert open_store(tmp_path).missing(1) == []


def test_samples_of_before_there_were_types_are_of_float32(tmp_path):
    open_store(tmp_path).add([0], fake([0]))
    assert open_store(tmp_path, SETTINGS | {"sampling.dtype": "float32"}).missing(1) == []
    with pytest.raises(UserError, match="sampling.dtype is 'float32' there and 'bfloat16' here"):
        open_store(tmp_path, SETTINGS | {"sampling.dtype": "bfloat16"})


def test_a_damaged_result_is_not_overwritten(tmp_path):
    open_store(tmp_path)
    (tmp_path / "samples.npz").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"samples.npz cannot be read.*move it away"):
        open_store(tmp_path)
    assert (tmp_path / "samples.npz").read_bytes() == b"torn"


def test_rounding_and_grids():
    x = np.array([-0.2, 0.0, 0.5, 127.4 / 255, 1.0, 1.7])
    np.testing.assert_array_equal(images.to_uint8(x), [0, 0, 128, 127, 255, 255])
    grid = images.grid(fake([10, 20, 30]), columns=2)
    assert grid.shape == (11, 11, 1)
    assert [grid[1, 1, 0], grid[1, 6, 0], grid[6, 1, 0], grid[6, 6, 0]] == [10, 20, 30, 128]
    assert images.encode_png(grid, min_side=30)[:4] == b"\x89PNG"
