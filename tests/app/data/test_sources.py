import os

import numpy as np
import pytest
from PIL import Image

from ncsn_jax.app import data
from ncsn_jax.app.data import cache, image_folder, sources
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


def test_processes_share_a_batch():
    whole = data.Batches(numbered(50), seed=0, batch_size=8)(11)
    parts = [data.Batches(numbered(50), 0, 8, i, 4)(11) for i in range(4)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    with pytest.raises(ValueError, match="batch_size=8 must be a multiple of 3"):
        data.Batches(numbered(50), 0, 8, 0, 3)


def test_a_dataset_may_be_smaller_than_a_batch():
    batch = data.Batches(numbered(3), seed=0, batch_size=10)(0).ravel()
    assert np.bincount(batch).tolist().count(3) >= 2 and len(batch) == 10


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    train = data.load("digits", "", 8, 1)
    test = data.load("digits", "", 8, 1, split="test")
    assert train.shape == (1500, 8, 8, 1) and test.shape == (297, 8, 8, 1)
    assert train.dtype == np.uint8
    expected = np.round(load_digits().images * 255 / 16).astype(np.uint8)[..., None]
    found = np.concatenate([train, test])
    # tensorflow-datasets shuffles what it prepares.
    order = lambda x: np.sort(x.reshape(len(x), -1).view("S64").ravel())
    np.testing.assert_array_equal(order(np.ascontiguousarray(found)), order(expected))


def test_labels_are_in_the_order_of_the_images():
    """Every image, found among scikit-learn's, has the label that is there; all slices agree."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    known = {
        image.tobytes(): target
        for image, target in zip(
            np.round(digits.images * 255 / 16).astype(np.uint8), digits.target, strict=True
        )
    }
    assert len(known) == 1797  # so that none is ambiguous
    for split in ("train", "test", "train[10%:20%]"):
        x = data.load("digits", "", 8, 1, split=split)
        labels, num_classes = data.load_labels("digits", "", split=split)
        assert labels.dtype == np.int32 and num_classes == 10
        np.testing.assert_array_equal(labels, [known[image.tobytes()] for image in x])


def test_a_second_load_of_labels_reads_the_cache(monkeypatch):
    first = data.load_labels("digits", "")[0]
    monkeypatch.setattr(sources, "_decode_labels", lambda *_: pytest.fail("decoded again"))
    np.testing.assert_array_equal(data.load_labels("digits", "")[0], first)


def test_mistakes_with_labels_are_one_line(tmp_path):
    for arguments, message in [
        (
            ("image_folder", str(tmp_path)),
            "data.dataset='image_folder' has no labels: use 'digits'",
        ),
        (("no_such_set", str(tmp_path)), "data.dataset='no_such_set' is unknown"),
        (("../x", str(tmp_path)), "is unknown"),
        (("celeb_a", str(tmp_path)), "data.dataset='celeb_a' is not prepared under"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            data.load_labels(*arguments)
        assert str(caught.value).isprintable()
    with pytest.raises(UserError, match="data.dataset='digits' under .* cannot be read"):
        data.load_labels("digits", "", split="no_such_split")


class Labelled:
    """What a builder of tensorflow-datasets shows of a dataset."""

    def __init__(self, features, labels=()):
        self.info = self
        self.features = features
        self._labels = labels

    def as_data_source(self, split, decoders):
        self.__getitems__ = lambda rows: [{"label": self._labels[i]} for i in rows]
        return self

    def __len__(self):
        return len(self._labels)


def test_labels_that_are_no_classes_are_refused():
    import tensorflow_datasets as tfds

    classes = tfds.features.ClassLabel(num_classes=3)
    found = sources._decode_labels("x", Labelled({"label": classes}, [2, 0, 1, 2]), "train")
    np.testing.assert_array_equal(found, [3, 2, 0, 1, 2])
    for features in (
        {"attributes": tfds.features.Scalar(np.int64)},
        {"label": tfds.features.Scalar(np.int64)},
        {"label": tfds.features.Sequence(classes)},
        {"label": tfds.features.ClassLabel()},
    ):
        with pytest.raises(UserError, match="data.dataset='x' has no labels"):
            sources._decode_labels("x", Labelled(features), "train")
    with pytest.raises(UserError, match="has the label -1 in split 'test', which is none of its 3"):
        sources._decode_labels("x", Labelled({"label": classes}, [2, -1]), "test")


def test_what_an_interrupted_preparation_left_is_not_a_dataset(tmp_path):
    begun = tmp_path / "digits" / "incomplete.ABC_1.0.0"
    begun.mkdir(parents=True)
    (begun / "dataset_info.json").write_text("{")
    (begun / "digits-train.array_record-00000-of-00001").write_bytes(b"torn")
    assert len(data.load("digits", str(tmp_path), 8, 1)) == 1500


def test_a_second_load_reads_the_cache(monkeypatch):
    first = np.array(data.load("digits", "", 8, 1))
    monkeypatch.setattr(sources, "_decode", lambda *_: pytest.fail("decoded again"))
    np.testing.assert_array_equal(data.load("digits", "", 8, 1), first)


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


@pytest.fixture
def folder(tmp_path):
    """Three pictures of known content, and files that are not pictures."""
    root = tmp_path / "pictures"
    (root / "below").mkdir(parents=True)
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = (255, 0, 0)
    Image.fromarray(wide).save(root / "a wide.PNG")
    Image.fromarray(np.full((16, 16), 128, np.uint8)).save(root / "below" / "grey.jpg", quality=95)
    Image.fromarray(np.full((16, 16), 40000, np.uint16)).save(root / "below" / "deep.png")
    (root / "torn.jpg").write_bytes((root / "below" / "grey.jpg").read_bytes()[:100])
    (root / "text.png").write_text("not a picture")
    (root / "notes.txt").write_text("not even by name")
    (root / ".hidden.png").write_text("")
    (root / "dangling.png").symlink_to("nowhere")
    return root


def test_image_folder_crops_resizes_and_names_what_it_leaves_out(folder, caplog):
    x = data.load("image_folder", str(folder), 8, 3, crop_size=-1)
    assert x.shape == (3, 8, 8, 3) and x.dtype == np.uint8
    assert np.all(x[0] == (255, 0, 0))  # the middle of the wide picture
    assert np.all(x[1] == 40000 >> 8)
    assert np.abs(x[2].astype(int) - 128).max() <= 1
    data.load("image_folder", str(folder), 8, 3, crop_size=-1)  # from the cache, and still named
    message, again = [r.getMessage() for r in caplog.records if r.name.startswith("ncsn_jax")]
    assert "1 not PNG or JPEG (notes.txt)" in message
    assert again == message
    assert (
        "3 unreadable" in message
        and "dangling.png" in message
        and "torn.jpg" in message
        and "text.png" in message
    )
    assert data.load("image_folder", str(folder), 8, 1, crop_size=-1).shape == (3, 8, 8, 1)


def test_image_folder_without_cropping_takes_only_images_that_fit(folder):
    x = data.load("image_folder", str(folder), 16, 1)
    assert x.shape == (2, 16, 16, 1)
    with pytest.raises(UserError, match=r"no readable.*a wide.PNG: is 40x20, not 32x32"):
        data.load("image_folder", str(folder), 32, 1)


def test_image_folder_notices_changed_files(folder):
    assert len(data.load("image_folder", str(folder), 8, 1, crop_size=-1)) == 3
    os.remove(folder / "a wide.PNG")
    assert len(data.load("image_folder", str(folder), 8, 1, crop_size=-1)) == 2


def test_mistakes_are_one_line(tmp_path):
    for arguments, message in [
        (("image_folder", "", 8, 3), "data.data_dir must name the directory"),
        (("image_folder", str(tmp_path / "no"), 8, 3), "is not a directory of images"),
        (("image_folder", str(tmp_path), 8, 3), "holds no readable PNG or JPEG image"),
        (("no_such_set", str(tmp_path), 8, 3), "data.dataset='no_such_set' is unknown"),
        (("celeb_a", str(tmp_path), 32, 3), "data.dataset='celeb_a' is not prepared under"),
        (("digits", "", 8, 3), "data.channels=3, but the images of data.dataset='digits' have 1"),
        (("digits", "", 16, 1), "an image of data.dataset='digits' is 8x8, not 16x16"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            data.load(*arguments)
        assert "\n" not in str(caught.value)


def test_downloaded_archives_are_read_without_tensorflow(tmp_path):
    """The generators that stand in for the library's own, on files in the archives' formats."""
    import gzip

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, 5, dtype=np.uint8)
    rows = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(5, -1)], axis=1)
    rows.tofile(tmp_path / "batch.bin")
    found = list(sources._cifar10_examples("train_", [str(tmp_path / "batch.bin")]))
    assert [e["label"] for _, e in found] == labels.tolist()
    np.testing.assert_array_equal(np.stack([np.asarray(e["image"]) for _, e in found]), images)

    grey = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    (tmp_path / "images.gz").write_bytes(gzip.compress(bytes(16) + grey.tobytes()))
    (tmp_path / "labels").write_bytes(bytes(8) + labels.tobytes())
    paths = str(tmp_path / "images.gz"), str(tmp_path / "labels")
    found = list(sources._mnist_examples(5, *paths))
    np.testing.assert_array_equal(np.stack([np.asarray(e["image"]) for _, e in found]), grey)
    assert [e["label"] for _, e in found] == labels.tolist()


def test_links_upwards_and_in_circles_are_followed_once(tmp_path):
    for i in range(30):
        (tmp_path / f"d{i}").mkdir()
        for name in "ab":
            (tmp_path / f"d{i}" / name).symlink_to(f"../d{i + 1}")
    (tmp_path / "up").symlink_to(".")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "d29" / "x.png")
    assert image_folder.find(str(tmp_path)) == (["d29/x.png"], ["d29/a", "d29/b"])


def test_pipes_and_names_with_line_breaks_are_left_out_and_named_on_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "pictures"
    root.mkdir()
    os.mkfifo(root / "pipe.png")
    (root / "two\nlines.png").write_text("")
    (root / "\udcff.txt").write_text("")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "x.png")
    x, skipped = image_folder.read(str(root), 8, 1, 0)
    assert x.shape == (1, 8, 8, 1)
    text = skipped.describe()
    assert text.isprintable() and "pipe.png: is no file" in text
    assert r"two\nlines.png" in text and r"(\udcff.txt)" in text
    assert data.load("image_folder", str(root), 8, 1).shape == (1, 8, 8, 1)


@pytest.mark.parametrize("name", ["/", "..", "../x", "", "a/../b", "a b", "\x00", "/etc"])
def test_names_of_datasets_are_no_paths(name, tmp_path):
    with pytest.raises(UserError, match="is unknown: use 'digits'"):
        data.load(name, str(tmp_path), 8, 1)


def test_a_damaged_dataset_is_one_line(tmp_path):
    version = tmp_path / "digits" / "1.0.0"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text("[")
    with pytest.raises(UserError, match="data.dataset='digits' under .* cannot be read") as caught:
        data.load("digits", str(tmp_path), 8, 1)
    assert str(caught.value).isprintable()
    os.remove(version / "dataset_info.json")
    (version / "dataset_info.json").mkdir()
    os.mkfifo(version / "features.json")
    (version / "x.dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match=r"features.json is no file"):
        data.load("digits", str(tmp_path), 8, 1)


def test_an_empty_file_in_the_cache_is_made_again(monkeypatch, tmp_path):
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path))
    cache.images("x", 1, lambda: (numbered(4), ""))
    (entry,) = tmp_path.glob("*.npy")
    entry.write_bytes(b"")
    assert len(cache.images("x", 1, lambda: (numbered(4), ""))[0]) == 4
