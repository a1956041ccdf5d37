import collections
import contextlib
import json
import os
import types

import numpy as np
import pytest

from ncsn_jax.app import data
from ncsn_jax.app.data import prepared, sources
from ncsn_jax.app.data.images import Images
from ncsn_jax.errors import UserError


def test_digits_match_scikit_learn():
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
    """Every image has its label in scikit-learn, and all slices agree."""
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


def test_mistakes_with_labels_are_reported_on_one_line(tmp_path):
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
    """A stand-in for a tensorflow-datasets builder."""

    def __init__(self, features, labels=()):
        self.info = self
        self.features = features
        self._labels = labels
        self.splits = collections.defaultdict(lambda: types.SimpleNamespace(num_bytes=0))

    def as_data_source(self, split, decoders):
        self.__getitems__ = lambda rows: [{"label": self._labels[i]} for i in rows]
        return self

    def __len__(self):
        return len(self._labels)


def test_labels_outside_the_classes_are_refused():
    import tensorflow_datasets as tfds

    classes = tfds.features.ClassLabel(num_classes=3)
    found = sources.Labels("x", Labelled({"label": classes}, [2, 0, 1, 2]), "train")
    np.testing.assert_array_equal(found[:], [2, 0, 1, 2])
    np.testing.assert_array_equal(found[np.array([2, 0])], [1, 2])
    assert (len(found), found.classes) == (4, 3)
    for features in (
        {"attributes": tfds.features.Scalar(np.int64)},
        {"label": tfds.features.Scalar(np.int64)},
        {"label": tfds.features.Sequence(classes)},
        {"label": tfds.features.ClassLabel()},
    ):
        with pytest.raises(UserError, match="data.dataset='x' has no labels"):
            sources.Labels("x", Labelled(features), "train")
    with pytest.raises(
        UserError, match="has the label -1 in split 'test', which is not one of its 3"
    ):
        sources.Labels("x", Labelled({"label": classes}, [2, -1]), "test")[:]


@pytest.mark.parametrize(
    ("load", "ending"),
    [
        (lambda: data.load("digits", "", 8, 1), "digits-[0-9a-f]*.npy"),
        (lambda: data.load_labels("digits", "")[0], "digits-labels-*.npy"),
    ],
)
def test_a_second_load_reads_the_cache(load, ending, monkeypatch, tmp_path):
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path))
    first = np.array(load())
    (entry,) = tmp_path.glob(ending)
    np.save(entry, np.load(entry) + np.load(entry).dtype.type(1))
    np.testing.assert_array_equal(load(), first + 1)


def test_the_cache_distinguishes_crops(monkeypatch, tmp_path):
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path))
    data.load("digits", "", 2, 1, crop_size=4)
    found = data.load("digits", "", 2, 1, crop_size=2)
    np.testing.assert_array_equal(found, data.load("digits", "", 8, 1)[:][:, 3:5, 3:5])


@pytest.mark.parametrize(
    ("load", "changes"),
    [
        (data.load, dict(dataset="b", image_size=9, channels=3, split="test", crop_size=5)),
        (data.load_labels, dict(dataset="b", split="test")),
    ],
)
def test_the_cache_key_holds_everything_the_entry_depends_on(load, changes, monkeypatch, tmp_path):
    """Datasets with the same files differ by name."""
    keys = []

    def kept(name, key, *_):
        keys.append(json.dumps(key))
        return np.zeros(1), '[{}, ""]'

    builder = types.SimpleNamespace(data_path=tmp_path, as_data_source=lambda **_: None)
    source = types.SimpleNamespace(shape=(1, 1, 1, 1), dtype=np.dtype(np.uint8), what="")
    labels = types.SimpleNamespace(nbytes=0, classes=1)
    for where, name, fake in (
        (sources.cache, "images", kept),
        (sources.cache, "array", kept),
        (sources.prepared, "find", lambda *_: ""),
        (sources.prepared, "opened", lambda *_: contextlib.nullcontext(builder)),
        (sources.prepared, "contents", lambda _: None),
        (sources.prepared, "Examples", lambda *_: source),
        (sources, "Labels", lambda *_: labels),
    ):
        monkeypatch.setattr(where, name, fake)
    file = tmp_path / "below" / "file"
    file.parent.mkdir()
    file.write_text("old")
    os.utime(file, ns=(1, 1))
    arguments = dict(dataset="a", data_dir="", split="train")
    if load is data.load:
        arguments |= dict(image_size=8, channels=1, crop_size=0)
    for change in ({}, {}, *({name: value} for name, value in changes.items())):
        load(**arguments | change)
    assert keys[0] == keys[1] and len(set(keys)) == 1 + len(changes)
    os.utime(file, ns=(1, 2))
    load(**arguments)
    file.write_text("older")
    os.utime(file, ns=(1, 2))
    load(**arguments)
    file.rename(tmp_path / "file")
    load(**arguments)
    (tmp_path / "incomplete.x").mkdir()
    (tmp_path / "incomplete.x" / "file").write_text("")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "file").write_text("")
    assert len(set(keys)) == 4 + len(changes)
    load(**arguments)
    assert keys[-1] == keys[-2]


def test_images_follow_the_order_of_the_source_and_are_cropped_on_request():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2500, 4, 4, 3), dtype=np.uint8)

    class Source:
        def __len__(self):
            return len(images)

        dataset_info = types.SimpleNamespace(features={"image": images})

        def __getitem__(self, i):
            return {"image": images[i]}

        def __getitems__(self, rows):
            return [{"image": images[i]} for i in rows]

    decode = lambda *arguments: np.asarray(Images(prepared.Examples("x", Source(), *arguments)))
    found = decode(4, 3, 0)
    np.testing.assert_array_equal(found, images)
    found = decode(2, 3, 2)
    np.testing.assert_array_equal(found, images[:, 1:3, 1:3])
    found = decode(4, 3, 2)  # the right size, but still cropped
    assert found.shape == images.shape and not np.array_equal(found, images)


def test_mistakes_are_reported_on_one_line(tmp_path):
    for arguments, message in [
        (("image_folder", "", 8, 3), "data.data_dir must name the directory"),
        (("image_folder", str(tmp_path / "no"), 8, 3), "no' does not exist"),
        (
            ("image_folder", str(tmp_path), 8, 3),
            "holds no PNG, JPEG, WebP, BMP, TIFF or GIF image",
        ),
        (("no_such_set", str(tmp_path), 8, 3), "data.dataset='no_such_set' is unknown"),
        (("celeb_a", str(tmp_path), 32, 3), "data.dataset='celeb_a' is not prepared under"),
        (("digits", "", 8, 3), "data.channels=3, but the images of data.dataset='digits' have 1"),
        (
            ("digits", "", 16, 1),
            "data.dataset='digits': more than a tenth .* damaged .example 0, .*, example 4: is 8x8, not 16",
        ),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            data.load(*arguments)
        assert "\n" not in str(caught.value)
