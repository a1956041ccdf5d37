"""Where the images and labels come from: tensorflow-datasets, our own digits, or a directory of pictures."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from ncsn_jax.app.data import arrays, cache, image_folder, prepared, transforms
from ncsn_jax.errors import UserError, one_line

_CHUNK = 1000


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
) -> np.ndarray:
    """Returns the images of a dataset, decoded, cropped and resized once.

    Args:
      dataset: "digits", "image_folder", or a name that tensorflow-datasets knows.
      data_dir: the directory of prepared datasets, which may be in object storage; "" for
        `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
        For "image_folder" the directory tree of image files itself.
      image_size: side of the images in pixels, or (height, width).
      channels: 1 or 3.
      split: "train", "test" or a slice such as "train[:10%]"; an image folder has no slices, and a test
        split with `holdout`.
      crop_size: side of the centre crop that is resized to `image_size`; -1 for the largest square;
        0 for images that have the right size already.
      background: of an image folder, the grey value behind transparent pixels, from 0 to 255.
      holdout: of an image folder, the share of the files that is the test split and not that of training,
        in [0, 1); see `ncsn_jax.app.data.holdout`.

    Returns:
      uint8 `[N, H, W, channels]`, N >= 1, usually mapped from a cache file.

    Raises:
      UserError: if the dataset is unknown, not there, or does not fit the arguments.
    """
    if dataset == "image_folder":
        if split not in (("train", "test") if holdout else ("train",)):
            raise UserError(
                f"data.dataset='image_folder' has no split {split!r} with config.data.holdout={holdout}: "
                "a run that is begun with more than 0 has a test split; images of another directory are "
                "completed and interpolated with config.inpainting.images, and those of training judged "
                "with config.likelihood.split='train'"
            )
        options = {"background": background, "split": split, "holdout": holdout}
        return _load_folder(data_dir, image_size, channels, crop_size, options)
    if holdout:
        raise UserError(
            f"config.data.holdout={holdout} must be 0 for data.dataset={dataset!r}, whose splits are its own"
        )
    data_dir, directory = prepared.find(dataset, data_dir)

    def make() -> tuple[np.ndarray, str]:
        with prepared.reading(dataset, data_dir) as builder:
            source = builder.as_data_source(split=split)
            return _decode(dataset, source, image_size, channels, crop_size), ""

    key = [dataset, split, image_size, channels, crop_size, prepared.fingerprint(directory)]
    return cache.images(dataset, key, make)[0]


def load_labels(dataset: str, data_dir: str, *, split: str = "train") -> tuple[np.ndarray, int]:
    """Returns the classes of the images that `load` returns for the same split, in the same order.

    Args:
      dataset: "digits", or a name that tensorflow-datasets knows, of a dataset with a feature 'label'.
      data_dir: as for `load`.
      split: as for `load`.

    Returns:
      int32 `[N]` in [0, K), kept in a cache file, and the number of classes K >= 1.

    Raises:
      UserError: if the dataset is unknown, not there, or has no labels.
    """
    if dataset == "image_folder" or arrays.is_array(dataset):
        raise _unlabelled(dataset)
    data_dir, directory = prepared.find(dataset, data_dir)

    def make() -> tuple[np.ndarray, str]:
        with prepared.reading(dataset, data_dir) as builder:
            return _decode_labels(dataset, builder, split)

    key = ["labels and classes", dataset, split, prepared.fingerprint(directory)]
    labels, classes = cache.images(f"{dataset}-labels", key, make)
    return np.array(labels), int(classes)  # Not every class need occur.


def _load_folder(
    data_dir: str, size: int, channels: int, crop_size: int, options: dict
) -> np.ndarray:
    if not data_dir:
        raise UserError(
            "data.data_dir must name the directory of images when data.dataset='image_folder'"
        )
    directory = cache.local(data_dir)
    arguments = directory, size, channels, crop_size
    key = ["image_folder", *arguments, options, prepared.fingerprint(directory)]
    images, note = cache.images(
        "image_folder", key, lambda: image_folder.read(*arguments, **options)
    )
    if note:
        logging.getLogger(__name__).warning("%s: %s", one_line(directory), note)
    return images


def _unlabelled(dataset: str) -> UserError:
    return UserError(
        f"data.dataset={dataset!r} has no labels: use 'digits', or a dataset of tensorflow-datasets "
        "with a feature 'label' of classes, such as 'mnist' or 'cifar10'"
    )


def _examples(source) -> Iterator[dict]:
    """Yields the examples of a data source, which it reads in chunks."""
    for start in range(0, len(source), _CHUNK):
        yield from source.__getitems__(range(start, min(start + _CHUNK, len(source))))


def _decode(dataset: str, source, size: int, channels: int, crop_size: int) -> np.ndarray:
    """Reads all images of a data source; crops and resizes those that need it."""
    if "image" not in source[0]:
        raise UserError(f"data.dataset={dataset!r} has no feature named 'image'")
    found = np.asarray(source[0]["image"]).shape
    if found[-1] != channels:
        raise UserError(
            f"data.channels={channels}, but the images of data.dataset={dataset!r} have {found[-1]}"
        )
    images = np.empty((len(source), *transforms.sides(size), channels), np.uint8)
    for i, example in enumerate(_examples(source)):
        image = np.asarray(example["image"])
        if image.shape != images.shape[1:] or crop_size:
            picture = Image.fromarray(image[..., 0] if channels == 1 else image)
            try:
                image = transforms.fit(picture, size, channels, crop_size)
            except ValueError as error:
                raise UserError(f"an image of data.dataset={dataset!r} {error}") from None
        images[i] = image
    return images


def _decode_labels(dataset: str, builder, split: str) -> tuple[np.ndarray, str]:
    """Returns the label of every example of a split, int32 `[N]`, and the number of classes."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    feature = features.get("label")
    if not isinstance(feature, tfds.features.ClassLabel) or not feature.num_classes:
        raise _unlabelled(dataset)
    decoders = {"image": tfds.decode.SkipDecoding()} if "image" in features else None
    source = builder.as_data_source(split=split, decoders=decoders)
    labels = np.array([example["label"] for example in _examples(source)], np.int32)
    outside = labels[(labels < 0) | (labels >= feature.num_classes)]
    if outside.size:  # -1 is the custom where the labels are not published.
        raise UserError(
            f"data.dataset={dataset!r} has the label {outside[0]} in split {split!r}, "
            f"which is none of its {feature.num_classes} classes"
        )
    return labels, str(feature.num_classes)
