"""Loads images and labels from tensorflow-datasets, our own digits, or users' pictures."""

import json
import logging
import os
from collections.abc import Iterator, Sequence

import numpy as np

from ncsn_jax.app import storage
from ncsn_jax.app.data import arrays, cache, image_folder, prepared
from ncsn_jax.app.data.cache import CACHE_BYTES
from ncsn_jax.app.data.images import Images, Source, describe_damaged
from ncsn_jax.app.progress import progress
from ncsn_jax.errors import UserError, one_line

# Labels are read this many at a time.
_CHUNK = 1000
# How many images of larger datasets are examined when they are opened.
_EXAMINED = 100
# A sample with a larger share of damaged images means more than a tenth of the dataset, beyond chance.
_MAX_DAMAGED_OF_SAMPLE = 0.25

_log = logging.getLogger(__name__)


def load(
    dataset: str,
    data_dir: str,
    image_size: int | Sequence[int],
    channels: int,
    *,
    split: str = "train",
    crop_size: int = 0,
    background: int = 255,
    holdout: float = 0.0,
    cache_bytes: int = CACHE_BYTES,
) -> Images:
    """Returns the images of a dataset, cropped and resized.

    Args:
      dataset: "digits", "image_folder", or a name that tensorflow-datasets knows.
      data_dir: the directory of prepared datasets, which may be in object storage; "" for
        `$TFDS_DATA_DIR` or `~/tensorflow_datasets`. For "image_folder", the directory tree of image files, or
        the tar or zip file, itself.
      image_size: side of the images in pixels, or (height, width).
      channels: 1 or 3.
      split: "train", "test" or a slice such as "train[:10%]"; an image folder has no slices, and has a test
        split only with `holdout`.
      crop_size: side of the centre crop that is resized to `image_size`; -1 for the largest square;
        0 for images that already have the right size.
      background: the grey value behind an image folder's transparent pixels, from 0 to 255.
      holdout: the share of an image folder's files in the test split instead of the training split,
        in [0, 1); see `ncsn_jax.app.data.holdout`.
      cache_bytes: a dataset that takes less when decoded is decoded once, and mapped from a cache file.

    Returns:
      uint8 `[N, H, W, channels]`, N >= 1.

    Raises:
      UserError: if the dataset is unknown, missing, or does not fit the arguments; or if more than a tenth
        of the images are damaged.
    """
    if dataset == "image_folder":
        if split not in (("train", "test") if holdout else ("train",)):
            raise UserError(
                f"data.dataset='image_folder' has no split {split!r} with config.data.holdout={holdout}: "
                "start the run with a holdout above 0 for a test split, name other images in "
                "config.inpainting.images, or set config.likelihood.split='train'"
            )
        if not data_dir:
            raise UserError(
                "data.data_dir must name the directory of images when data.dataset='image_folder'"
            )
        options = {"background": background, "split": split, "holdout": holdout}
        path = data_dir if storage.is_remote(data_dir) else os.path.abspath(storage.path(data_dir))
        storage.check(path, "data.data_dir")
        arguments = image_size, channels, crop_size
        folder = image_folder.Folder(path, *arguments, **options)
        key = ["image_folder", *arguments, options, folder.version]
        return _open(folder, folder.identity, dataset, key, cache_bytes)
    if holdout:
        raise UserError(
            f"config.data.holdout={holdout} must be 0 for data.dataset={dataset!r}, which has its own splits"
        )
    data_dir = prepared.find(dataset, data_dir)
    with prepared.opened(dataset, data_dir) as builder:
        files = prepared.fingerprint(str(builder.data_path))
        source = builder.as_data_source(split=split, decoders=prepared.contents(builder))
        examples = prepared.Examples(dataset, source, image_size, channels, crop_size)
    key = [dataset, split, image_size, channels, crop_size, str(builder.data_path), files]
    shards = [[name, size] for name, size, _ in files if ".array_record" in name]
    identity = cache.digest([split, *shards])
    return _open(examples, identity, dataset, key, cache_bytes)


def _open(source: Source, identity: str, name: str, key: list, cache_bytes: int) -> Images:
    """Returns a source's images: from the cache if they fit there, else decoded on demand.

    It logs a line about damaged or remarkable images among those it examines.
    """
    images = Images(source, identity=identity)
    count = len(images)

    def decode() -> Iterator[list[np.ndarray]]:
        with progress("decoding", count, "images") as advanced:
            for block in images.blocks(range(count)):
                yield block
                advanced(len(block))

    def describe() -> str:
        return json.dumps([images.damaged, source.note()])

    if images.nbytes < cache_bytes:
        pixels, kept = cache.images(name, key, images.shape, images.dtype, decode, describe)
        damaged, note = json.loads(kept)
        damaged = {int(i): reason for i, reason in damaged.items()}
        images = Images(pixels, damaged=damaged, identity=identity)
    else:
        examined = range(0, count, -(-count // _EXAMINED))
        for _ in images.blocks(examined):
            pass
        found = images.damaged.keys() & set(examined)
        if len(found) > _MAX_DAMAGED_OF_SAMPLE * len(examined):
            images.refuse(f"{len(found)} of {len(examined)}")
        damaged, note = images.damaged, source.note()
        source.remarks = None  # they would grow with every image that is decoded
    images.reported.update(damaged)  # the note below names them
    if damaged:
        note += ("; " if note else "") + describe_damaged(source, damaged)
        note += ", each replaced by the next good image"
    if note:
        _log.warning("%s: %s", one_line(source.what), note)
    return images


def load_labels(
    dataset: str, data_dir: str, *, split: str = "train", cache_bytes: int = CACHE_BYTES
) -> tuple["np.ndarray | Labels", int]:
    """Returns the classes of the images that `load` returns for the same split, in the same order.

    Args:
      dataset: "digits", or the tensorflow-datasets name of a dataset with a feature 'label'.
      data_dir: as for `load`.
      split: as for `load`.
      cache_bytes: labels of a split with more bytes on disk are read on demand.

    Returns:
      int32 `[N]` in [0, K), kept in a cache file, and the number of classes K >= 1.

    Raises:
      UserError: if the dataset is unknown, missing, or has no labels.
    """
    if dataset == "image_folder" or arrays.is_array(dataset):
        raise _unlabelled(dataset)
    data_dir = prepared.find(dataset, data_dir)
    with prepared.opened(dataset, data_dir) as builder:
        labels = Labels(dataset, builder, split)
        if labels.nbytes >= cache_bytes:
            return labels, labels.classes
        key = ["labels", dataset, split, prepared.fingerprint(str(builder.data_path))]
        made = cache.array(f"{dataset}-labels", key, lambda: (labels[:], ""))[0]
        return np.array(made), labels.classes


class Labels:
    """The labels of a split, read on demand.

    Args:
      dataset: its name.
      builder: its tensorflow-datasets builder.
      split: its split.

    Attributes:
      classes: the number of classes, not all of which need occur.
      nbytes: how many bytes reading all labels takes.

    Raises:
      UserError: if there are no labels.
    """

    def __init__(self, dataset: str, builder, split: str):
        import tensorflow_datasets as tfds

        features = dict(builder.info.features)
        feature = features.get("label")
        if not isinstance(feature, tfds.features.ClassLabel) or not feature.num_classes:
            raise _unlabelled(dataset)
        decoders = {"image": tfds.decode.SkipDecoding()} if "image" in features else None
        self._source = builder.as_data_source(split=split, decoders=decoders)
        self._what, self.classes = (dataset, split), feature.num_classes
        self.nbytes = builder.info.splits[split].num_bytes

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, rows) -> np.ndarray:
        rows = np.arange(len(self))[rows].tolist()
        labels = []
        for first in range(0, len(rows), _CHUNK):
            try:
                some = self._source.__getitems__(rows[first : first + _CHUNK])
            except Exception as error:  # any exception
                dataset, split = self._what
                raise UserError(
                    f"data.dataset={dataset!r}: the labels of split {split!r} cannot be read "
                    f"({type(error).__name__}: {str(error).partition(chr(10))[0]})"
                ) from None
            labels += [example["label"] for example in some]
        labels = np.array(labels, np.int32)
        outside = labels[(labels < 0) | (labels >= self.classes)]
        if outside.size:  # by convention, unpublished labels are -1
            dataset, split = self._what
            raise UserError(
                f"data.dataset={dataset!r} has the label {outside[0]} in split {split!r}, "
                f"which is not one of its {self.classes} classes"
            )
        return labels


def _unlabelled(dataset: str) -> UserError:
    return UserError(
        f"data.dataset={dataset!r} has no labels: use 'digits', or a tensorflow-datasets dataset "
        "with a class feature 'label', such as 'mnist' or 'cifar10'"
    )
