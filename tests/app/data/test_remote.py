"""Tests datasets in a stand-in for object storage: the same images as on a disk, read by ranges."""

import os
import shutil
import urllib.parse
import zipfile

import fsspec.config
import numpy as np
import pytest
from fsspec.registry import _registry
from PIL import Image

from benchmarks.fake_gcs import FakeGcs
from ncsn_jax.app import data
from ncsn_jax.app.data import arrays
from ncsn_jax.app.modes import shared
from ncsn_jax.errors import UserError
from tests.running import load_config

BIG = 256


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """Serves twelve pictures, their archives, an array of them and a prepared dataset."""
    core = pytest.importorskip("gcsfs.core")
    root, rng = tmp_path_factory.mktemp("there"), np.random.default_rng(0)
    (root / "folder" / "below").mkdir(parents=True)
    pixels = rng.integers(0, 256, (12, BIG, BIG), dtype=np.uint8)  # more than the read-ahead
    for i, grey in enumerate(pixels):
        Image.fromarray(grey).save(root / "folder" / ["", "below"][i % 2] / f"{i:02d}.png")
    shutil.copy(root / "folder" / "04.png", root / "folder" / "no suffix")
    (root / "folder" / "notes.txt").write_text("notes")
    (root / "folder" / ".hidden.png").write_text("hidden")
    shutil.make_archive(str(root / "x"), "tar", root / "folder")
    with zipfile.ZipFile(root / "x.zip", "w") as archive:
        for i, path in enumerate(sorted((root / "folder").rglob("*"))):
            method = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED][i % 2]
            archive.write(path, path.relative_to(root / "folder"), method)
    np.save(root / "bytes.npy", pixels[:, :8, :8])
    np.save(root / "floats.npy", pixels[:, :8, :8, None] / np.float32(255))
    data.load("digits", str(root / "tfds"), 8, 1)
    with FakeGcs() as gcs, pytest.MonkeyPatch.context() as patch:
        for name, value in gcs.environment.items():
            patch.setenv(name, value)
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", gcs.url)  # array_record
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon", "use_listings_cache": False})
        # Other tests may have imported it in a form that asks the network for the bucket's kind.
        for protocol in ("gs", "gcs"):
            patch.setitem(_registry, protocol, core.GCSFileSystem)
        core.GCSFileSystem.clear_instance_cache()
        for path in root.rglob("*"):
            if path.is_file():
                gcs.put("bucket", str(path.relative_to(root)), {}, path.read_bytes())
        yield gcs, root
        core.GCSFileSystem.clear_instance_cache()


def folder(name, **more):
    return lambda root, **options: data.load(
        "image_folder", f"{root}/{name}", 8, 1, crop_size=-1, **more, **options
    )


def array(name, value_range, **more):
    return lambda root, **options: arrays.load(
        f"{root}/{name}", (8, 8, 1), value_range, **more, **options
    )


LOADS = {
    "folder": folder("folder"),
    "tar": folder("x.tar"),
    "zip": folder("x.zip"),
    "test": folder("x.tar", holdout=0.4, split="test"),
    "bytes": array("bytes.npy", ()),
    "floats": array("floats.npy", (0, 1)),
    "test array": array("floats.npy", (0, 1), holdout=0.4, split="test"),
    "digits": lambda root, **options: data.load("digits", f"{root}/tfds", 8, 1, **options),
}


@pytest.mark.parametrize("kind", LOADS)
def test_remote_images_equal_local_images(kind, there):
    """With and without the cache; images requested later are read one at a time."""
    _, root = there
    local = LOADS[kind](root)
    for cache_bytes in (0, 10**9):
        remote = LOADS[kind]("gs://bucket", cache_bytes=cache_bytes)
        assert (remote.source is None) == (cache_bytes > 0) and remote.shape == local.shape
        np.testing.assert_array_equal(remote[:], local[:])
        for which in (1, slice(None, None, -3), np.array([2, 0, 2])):
            np.testing.assert_array_equal(remote[which], local[which])
        assert remote.describe() == local.describe()


def ranges(gcs, ask):
    """Returns the requests for content, without those for metadata."""
    before = len(gcs.requests)
    ask()
    return [urllib.parse.unquote(path) for _, path in gcs.requests[before:] if "alt=media" in path]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("folder", "folder/below/03.png"),
        ("tar", "x.tar"),
        ("zip", "x.zip"),
        ("floats", "floats.npy"),
        ("digits", "digits-train.array_record-00000-of-00001"),
    ],
)
def test_an_image_takes_one_request(kind, name, there):
    """The directory's images begin with 00.png to 10.png; those of subdirectories follow."""
    gcs, _ = there
    images = LOADS[kind]("gs://bucket", cache_bytes=0)
    before = gcs.sent
    (path,) = ranges(gcs, lambda: images[7])
    assert f"/{name}?" in path
    # A zip member's request includes its header and a kilobyte. array_record asks for all from a record
    # on, and closes the connection when it has the record.
    if kind != "digits":
        assert gcs.sent - before < BIG * BIG + 4096 < len(gcs.objects["bucket", "x.tar"].data) / 4
    assert len(ranges(gcs, lambda: images[[1, 4, 8]])) == 3


def test_listing_an_archive_again_reads_no_content(there, tmp_path, monkeypatch):
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path))
    gcs, _ = there
    listed = lambda: data.sources.image_folder.files.find("gs://bucket/x.zip", "x")
    assert ranges(gcs, listed) and not ranges(gcs, listed)
    gcs.put("bucket", "x.zip", {}, gcs.objects["bucket", "x.zip"].data)
    assert ranges(gcs, listed)  # It may have changed.


def test_labels_are_read_from_object_storage(there):
    expected, _ = data.load_labels("digits", str(there[1] / "tfds"))
    for cache_bytes in (0, 10**9):
        labels, classes = data.load_labels("digits", "gs://bucket/tfds", cache_bytes=cache_bytes)
        np.testing.assert_array_equal(labels[:], expected)
        assert classes == 10


@pytest.mark.parametrize("name", ["folder", "x.zip", "bytes.npy"])
def test_images_to_complete_may_be_in_object_storage(name, there):
    _, root = there
    local, remote = (
        shared.load_originals(load_config(**{"inpainting.images": f"{place}/{name}"}), "", 3)
        for place in (root, "gs://bucket")
    )
    np.testing.assert_array_equal(remote, local)


def test_nothing_is_copied_to_the_disk(there, tmp_path, monkeypatch):
    """The cache holds only the list of an archive."""
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path))
    for kind in ("folder", "tar", "bytes", "digits"):
        LOADS[kind]("gs://bucket", cache_bytes=0)[3]
    names = {name.rpartition("-")[0] for name in os.listdir(tmp_path)}
    assert names == {"archive"}


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
@pytest.mark.parametrize(
    ("load", "message"),
    [
        (folder("nothing"), "data.data_dir='gs://bucket/nothing' does not exist"),
        (folder("no.tar"), "data.data_dir='gs://bucket/no.tar' does not exist"),
        (array("no.npy", ()), "data.dataset='gs://bucket/no.npy' cannot be read: "),
        (
            array("no.npz", ()),
            "'gs://bucket/no.npz' must be a .npy file: a .npz file cannot be read in",
        ),
        (
            lambda root, **options: data.load("digits", f"{root}/no", 8, 1, **options),
            "data.dataset='digits' is not prepared under data.data_dir='gs://bucket/no'",
        ),
    ],
)
def test_a_missing_object_is_reported_on_one_line(load, message, cache_bytes, there):
    with pytest.raises(UserError, match=message) as refused:
        load("gs://bucket", cache_bytes=cache_bytes)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("kind", LOADS)
def test_a_forbidden_bucket_is_reported_on_one_line(kind, there):
    gcs, _ = there
    gcs.refuse = lambda method, path: 403 if "/b/closed" in path else None
    try:
        with pytest.raises(UserError, match="gs://closed") as refused:
            LOADS[kind]("gs://closed")
    finally:
        gcs.refuse = lambda method, path: None
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("kind", ["folder", "tar", "floats"])
def test_a_vanished_object_is_reported_on_one_line(kind, there):
    gcs, _ = there
    images = LOADS[kind]("gs://bucket", cache_bytes=0)
    gcs.refuse = lambda method, path: 404 if "alt=media" in path else None
    try:
        with pytest.raises(UserError, match="cannot be read") as refused:
            images[3]
    finally:
        gcs.refuse = lambda method, path: None
    assert str(refused.value).isprintable()
