"""The test split of a directory of images."""

import hashlib
import shutil

import numpy as np
import pytest
from PIL import Image

from ncsn_jax.app import build, data
from ncsn_jax.app.data.holdout import is_held_out
from ncsn_jax.app.modes import shared
from ncsn_jax.errors import UserError
from tests.running import load_config


def test_an_example_is_held_out_if_its_hash_is_below_the_fraction():
    half = (2**63).to_bytes(8, "big") + b"more"
    assert is_held_out(half, 0.5 + 1e-9) and not is_held_out(half, 0.5)
    assert not is_held_out(bytes(32), 0.0) and is_held_out(bytes(32), 1e-9)
    digests = [hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(10_000)]
    held_out = sum(is_held_out(digest, 0.2) for digest in digests)
    assert abs(held_out - 2000) < 4 * np.sqrt(10_000 * 0.2 * 0.8)


@pytest.fixture
def folder(tmp_path):
    """Forty images, each of its own grey."""
    (tmp_path / "a").mkdir()
    for i in range(40):
        Image.fromarray(np.full((8, 8), 5 * i + 50, np.uint8)).save(tmp_path / f"a/{i}.png")
    return tmp_path / "a"


def greys(folder, split, holdout):
    found = data.load("image_folder", str(folder), 8, 1, split=split, holdout=holdout)
    return found[:, 0, 0, 0].tolist()


def test_the_splits_are_disjoint_complete_and_independent_of_names_and_order(folder, tmp_path):
    train, test = (set(greys(folder, split, 0.3)) for split in ("train", "test"))
    assert test and not train & test and train | test == set(greys(folder, "train", 0))
    expected = set()
    for i in range(40):
        content = (folder / f"{i}.png").read_bytes()
        if is_held_out(hashlib.sha256(content).digest(), 0.3):
            expected.add(5 * i + 50)
    assert test == expected
    (tmp_path / "b" / "below").mkdir(parents=True)
    for i in range(40):
        shutil.copy(folder / f"{i}.png", tmp_path / "b" / "below" / f"{97 * i % 41}")
    assert set(greys(tmp_path / "b", "test", 0.3)) == test
    assert set(greys(folder, "test", 0.5)) > test  # not from the cache, and a superset


def test_modes_use_the_images_held_out_from_training(folder):
    changes = {"data.dataset": "image_folder", "data.data_dir": str(folder), "data.holdout": 0.3}
    config = load_config(**changes)
    test = greys(folder, "test", 0.3)
    assert shared.load_originals(config, "", 40)[:, 0, 0, 0].tolist() == test
    assert build.load_images(config)[:, 0, 0, 0].tolist() == greys(folder, "train", 0.3)


def test_a_missing_split_is_reported_on_one_line(folder):
    message = (
        "has no split 'test' with config.data.holdout=0.0: start the run with a holdout above 0"
    )
    with pytest.raises(UserError, match=message):
        greys(folder, "test", 0.0)
    with pytest.raises(UserError, match=r"has no split 'train\[:1\]'"):
        greys(folder, "train[:1]", 0.5)
    with pytest.raises(UserError, match="image in split 'test' with data.holdout=1e-09"):
        greys(folder, "test", 1e-9)
    with pytest.raises(UserError, match="config.data.holdout=0.5 must be 0 for data.dataset='dig"):
        data.load("digits", "", 8, 1, holdout=0.5)


def test_the_cache_distinguishes_backgrounds(tmp_path):
    Image.new("LA", (8, 8)).save(tmp_path / "x.png")
    changes = {"data.dataset": "image_folder", "data.data_dir": str(tmp_path)}
    for background in (255, 9):
        config = load_config(**changes, **{"data.background": background})
        assert np.all(build.load_images(config)[:] == background)
