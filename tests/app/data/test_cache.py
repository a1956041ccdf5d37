import numpy as np
import pytest

from ncsn_jax.app.data import cache


def numbered(n):
    return np.arange(n, dtype=np.uint8)[:, None, None, None]


def test_cache_survives_a_torn_file_and_a_directory_it_cannot_write(monkeypatch, tmp_path):
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path))
    array = numbered(4)
    cache.images("x/y", 1, lambda: (array, "note"))
    (entry,) = tmp_path.glob("*.npy")
    entry.write_bytes(entry.read_bytes()[:20])
    np.testing.assert_array_equal(cache.images("x/y", 1, lambda: (array, "note"))[0], array)
    np.testing.assert_array_equal(np.load(entry), array)
    assert cache.images("x/y", 1, lambda: pytest.fail("made again"))[1] == "note"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path / "file"))
    np.testing.assert_array_equal(cache.images("x", 2, lambda: (array, ""))[0], array)


def test_an_empty_file_in_the_cache_is_made_again(monkeypatch, tmp_path):
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path))
    cache.images("x", 1, lambda: (numbered(4), ""))
    (entry,) = tmp_path.glob("*.npy")
    entry.write_bytes(b"")
    assert len(cache.images("x", 1, lambda: (numbered(4), ""))[0]) == 4


def test_what_an_older_version_decoded_is_made_again(monkeypatch, tmp_path):
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path))
    cache.images("x", 1, lambda: (numbered(4), ""))
    monkeypatch.setattr(cache, "_VERSION", cache._VERSION + 1)
    assert len(cache.images("x", 1, lambda: (numbered(5), ""))[0]) == 5
