import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ncsn_jax.app import data
from ncsn_jax.app.data import prepared
from ncsn_jax.errors import UserError
from tests.running import ROOT


def test_an_interrupted_preparation_does_not_count_as_a_dataset(tmp_path):
    begun = tmp_path / "digits" / "incomplete.ABC_1.0.0"
    begun.mkdir(parents=True)
    (begun / "dataset_info.json").write_text("{")
    (begun / "digits-train.array_record-00000-of-00001").write_bytes(b"torn")
    assert len(data.load("digits", str(tmp_path), 8, 1)) == 1500


def test_downloaded_archives_are_read_without_tensorflow(tmp_path):
    """Runs our generators, which replace the library's, on files in the archives' formats."""
    import gzip

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, 5, dtype=np.uint8)
    rows = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(5, -1)], axis=1)
    rows.tofile(tmp_path / "batch.bin")
    found = list(prepared._cifar10_examples("train_", [str(tmp_path / "batch.bin")]))
    assert [e["label"] for _, e in found] == labels.tolist()
    np.testing.assert_array_equal(np.stack([np.asarray(e["image"]) for _, e in found]), images)

    grey = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    (tmp_path / "images.gz").write_bytes(gzip.compress(bytes(16) + grey.tobytes()))
    (tmp_path / "labels").write_bytes(bytes(8) + labels.tobytes())
    paths = str(tmp_path / "images.gz"), str(tmp_path / "labels")
    found = list(prepared._mnist_examples(5, *paths))
    np.testing.assert_array_equal(np.stack([np.asarray(e["image"]) for _, e in found]), grey)
    assert [e["label"] for _, e in found] == labels.tolist()


@pytest.mark.parametrize("name", ["/", "..", "../x", "", "a/../b", "a b", "\x00", "/etc"])
def test_paths_are_refused_as_dataset_names(name, tmp_path):
    with pytest.raises(UserError, match="is unknown: use 'digits'"):
        data.load(name, str(tmp_path), 8, 1)


def test_a_damaged_dataset_is_reported_on_one_line(tmp_path):
    version = tmp_path / "digits" / "1.0.0"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text("[")
    with pytest.raises(UserError, match="data.dataset='digits' under .* cannot be read") as caught:
        data.load("digits", str(tmp_path), 8, 1)
    assert str(caught.value).isprintable()


def test_tensorflow_datasets_prints_nothing(tmp_path):
    script = """
import logging
logging.basicConfig(level=logging.DEBUG)
logging.getLogger("absl").setLevel(logging.INFO)
from ncsn_jax.app import data
data.load("digits", "", 8, 1)
data.load_labels("digits", "", split="test")
print("between", logging.getLogger("absl").level)
data.load("digits", "", 4, 1, crop_size=-1)
"""
    where = {"TFDS_DATA_DIR": str(tmp_path / "tfds"), "NCSN_JAX_CACHE": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | where,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (0, "between 20\n"), result.stderr
    assert "absl" not in result.stderr and "examples" not in result.stderr


def test_a_shard_truncated_during_reading_is_reported_on_one_line(tmp_path):
    found = data.load("digits", str(tmp_path), 8, 1, cache_bytes=0)
    for path in tmp_path.rglob("*train.array_record*"):
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(
        UserError, match="data.dataset='digits': one of example .* cannot be read [(]"
    ):
        found[:]


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_a_damaged_image_in_an_intact_shard_is_replaced(cache_bytes, tmp_path):
    import tensorflow_datasets as tfds

    place = tmp_path / "pictures" / "1.0.0"
    place.mkdir(parents=True)
    name = tfds.core.dataset_info.DatasetIdentity(
        "pictures", tfds.core.Version("1.0.0"), str(place), module_name=""
    )
    feature = tfds.features.Image(shape=(8, 8, 1), encoding_format="png")
    info = tfds.core.DatasetInfo(
        builder=name, features=tfds.features.FeaturesDict({"image": feature})
    )
    writer = tfds.core.SequentialWriter(info, 100, file_format="array_record")
    writer.initialize_splits(["train"])
    for i in range(20):
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(file, "PNG")
        content = file.getvalue()[: 30 if i == 7 else None]
        writer.add_examples({"train": [{"image": io.BytesIO(content)}]})
    writer.close_all()
    found = data.load("pictures", str(tmp_path), 8, 1, cache_bytes=cache_bytes)
    np.testing.assert_array_equal(found[:][:, 0, 0, 0], [10 * (i + (i == 7)) for i in range(20)])
    assert list(found.damaged) == [7]
