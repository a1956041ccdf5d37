import numpy as np
import pytest

from ncsn_jax.app.data import cache


def numbered(n):
    return np.arange(n, dtype=np.uint8)[:, None, None, None]


def test_cache_survives_a_torn_file_and_a_directory_it_cannot_write(monkeypatch, tmp_path):
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path))
    array = numbered(4)
    cache.array("x/y", 1, lambda: (array, "note"))
    (entry,) = tmp_path.glob("*.npy")
    entry.write_bytes(entry.read_bytes()[:20])
    np.testing.assert_array_equal(cache.array("x/y", 1, lambda: (array, "note"))[0], array)
    np.testing.assert_array_equal(np.load(entry), array)
    assert cache.array("x/y", 1, lambda: pytest.fail("made again"))[1] == "note"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path / "file"))
    np.testing.assert_array_equal(cache.array("x", 2, lambda: (array, ""))[0], array)


def test_an_empty_cache_file_is_replaced(monkeypatch, tmp_path):
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path))
    cache.array("x", 1, lambda: (numbered(4), ""))
    (entry,) = tmp_path.glob("*.npy")
    entry.write_bytes(b"")
    assert len(cache.array("x", 1, lambda: (numbered(4), ""))[0]) == 4


def test_entries_of_an_older_version_are_replaced(monkeypatch, tmp_path):
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path))
    cache.array("x", 1, lambda: (numbered(4), ""))
    monkeypatch.setattr(cache, "_VERSION", cache._VERSION + 1)
    assert len(cache.array("x", 1, lambda: (numbered(5), ""))[0]) == 5


@pytest.mark.parametrize("can_write", [True, False])
def test_images_are_cached_in_parts_or_kept_in_memory_without_a_disk(
    can_write, monkeypatch, tmp_path
):
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path / "cache"))
    if not can_write:
        (tmp_path / "cache").write_text("")
    made = []

    def make():
        made.append(1)
        for first in (0, 3):
            yield list(numbered(5)[first : first + 3])

    load = lambda: cache.images("x", 1, (5, 1, 1, 1), np.dtype(np.uint8), make, lambda: "a note")
    for _ in range(2):
        found, note = load()
        np.testing.assert_array_equal(found, numbered(5))
        assert note == "a note" and isinstance(found, np.memmap) == can_write
    assert len(made) == (1 if can_write else 2)
