"""Where the images come from: tensorflow-datasets, our own digits, or a directory of pictures.

Datasets of tensorflow-datasets are read as array_record through random access, which needs no
TensorFlow. CIFAR-10 and MNIST can also be downloaded and prepared without it: only the two generators
that turn the downloaded archive into examples are replaced, as the library's own ones need it.
"""

import contextlib
import fcntl
import gzip
import logging
import os
import re
import sys
import time
from collections.abc import Iterator

import numpy as np

from ncsn_jax.app import storage
from ncsn_jax.app.data import cache, image_folder
from ncsn_jax.errors import UserError, one_line

_CHUNK = 1000

# Seconds after which a process that waits for another to prepare a dataset gives up.
_LONGEST_PREPARATION = 6 * 3600.0
# What tensorflow-datasets takes for a name, such as ns:set/config:1.0.0; never a path out of data_dir.
_NAME = re.compile(r"[A-Za-z0-9_][\w.+:-]*(/[A-Za-z0-9_][\w.+:-]*)*", re.ASCII)


def load(
    dataset: str,
    data_dir: str,
    image_size: int,
    channels: int,
    *,
    split: str = "train",
    crop_size: int = 0,
) -> np.ndarray:
    """Returns the images of a dataset, decoded, cropped and resized once.

    Args:
      dataset: "digits", "image_folder", or a name that tensorflow-datasets knows.
      data_dir: the directory of prepared datasets, which may be in object storage; "" for
        `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
        For "image_folder" the directory tree of PNG and JPEG files itself.
      image_size: side of the images in pixels.
      channels: 1 or 3.
      split: "train", "test" or a slice such as "train[:10%]"; an image folder has only "train".
      crop_size: side of the centre crop that is resized to `image_size`; -1 for the largest square;
        0 for images that have the right size already.

    Returns:
      uint8 `[N, image_size, image_size, channels]`, N >= 1, usually mapped from a cache file.

    Raises:
      UserError: if the dataset is unknown, not there, or does not fit the arguments.
    """
    if dataset == "image_folder":
        if split != "train":
            raise UserError(
                f"data.dataset='image_folder' has no split {split!r}, only 'train'; images of another "
                "directory are completed and interpolated with config.inpainting.images, and those of "
                "training judged with config.likelihood.split='train'"
            )
        return _load_folder(data_dir, image_size, channels, crop_size)
    data_dir, directory = _find(dataset, data_dir)

    def make() -> tuple[np.ndarray, str]:
        with _reading(dataset, data_dir):
            source = _builder(dataset, data_dir).as_data_source(split=split)
            return _decode(dataset, source, image_size, channels, crop_size), ""

    key = [dataset, split, image_size, channels, crop_size, _fingerprint(directory)]
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
    if dataset == "image_folder":
        raise _unlabelled(dataset)
    data_dir, directory = _find(dataset, data_dir)

    def make() -> tuple[np.ndarray, str]:
        with _reading(dataset, data_dir):
            return _decode_labels(dataset, _builder(dataset, data_dir), split), ""

    key = ["labels", dataset, split, _fingerprint(directory)]
    labels = cache.images(f"{dataset}-labels", key, make)[0]
    # The number of classes is kept in front of the labels, as it may be more than there are of them.
    return np.array(labels[1:]), int(labels[0])


def _find(dataset: str, data_dir: str) -> tuple[str, str]:
    """Returns where the datasets are on the disk, and where this one is, which is prepared if need be."""
    if not _NAME.fullmatch(dataset):
        raise _unknown(dataset)
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if storage.is_remote(data_dir):
        storage.check(data_dir, "data.data_dir")
        data_dir = cache.local_copy(data_dir, dataset)
    data_dir = os.path.abspath(os.path.expanduser(data_dir))
    directory = os.path.join(data_dir, dataset)
    if not _is_prepared(directory):
        with _alone(dataset, data_dir):
            _prepare(dataset, data_dir)
    for folder, names in image_folder.walk(directory):
        for path in (os.path.join(folder, name) for name in names):
            if os.path.exists(path) and not os.path.isfile(path):  # Opening a pipe would wait.
                raise UserError(f"data.dataset={dataset!r} cannot be read: {path} is no file")
    return data_dir, directory


@contextlib.contextmanager
def _reading(dataset: str, data_dir: str) -> Iterator[None]:
    """Makes a UserError of whatever damaged files raise."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise _damaged(dataset, data_dir, error) from None


def _load_folder(data_dir: str, size: int, channels: int, crop_size: int) -> np.ndarray:
    if not data_dir:
        raise UserError(
            "data.data_dir must name the directory of images when data.dataset='image_folder'"
        )
    if storage.is_remote(data_dir):
        storage.check(data_dir, "data.data_dir")
        data_dir = cache.local_copy(data_dir)
    directory = os.path.abspath(os.path.expanduser(data_dir))

    def make() -> tuple[np.ndarray, str]:
        images, skipped = image_folder.read(directory, size, channels, crop_size)
        return images, skipped.describe()

    key = ["image_folder", size, channels, crop_size, directory, _fingerprint(directory)]
    images, left_out = cache.images("image_folder", key, make)
    if left_out:
        logging.getLogger(__name__).warning("%s: %s", one_line(directory), left_out)
    return images


def _is_prepared(directory: str) -> bool:
    """Whether a dataset is complete there: tensorflow-datasets renames it into place when it is."""
    return any(path.endswith("dataset_info.json") for path, *_ in _fingerprint(directory))


def _fingerprint(directory: str) -> list:
    """Returns path, size and modification time of every file below a directory.

    Hidden files, and what tensorflow-datasets has begun and not finished, are left out.
    """
    found = []
    for folder, names in image_folder.walk(directory, (".", "incomplete.")):
        for path in (os.path.join(folder, name) for name in names):
            with contextlib.suppress(OSError):  # such as a dangling link
                status = os.stat(path)
                relative = os.path.relpath(path, directory)
                found.append([relative, status.st_size, status.st_mtime_ns])
    return found


def _builder(dataset: str, data_dir: str):
    import tensorflow_datasets as tfds

    try:
        if dataset == "digits":
            from ncsn_jax.app.data.digits import Digits

            return Digits(data_dir=data_dir, file_format="array_record")
        return tfds.builder(dataset, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        raise _unknown(dataset) from None
    except ValueError:
        raise UserError(
            f"data.data_dir={data_dir!r} holds {dataset} in another format; prepare it as array_record"
        ) from None
    # Damaged files raise all kinds of exceptions, here and when they are read.
    except Exception as error:
        raise _damaged(dataset, data_dir, error) from None


def _unknown(dataset: str) -> UserError:
    return UserError(
        f"data.dataset={dataset!r} is unknown: use 'digits', 'image_folder', or a name that "
        "tensorflow-datasets knows, such as 'mnist' or 'cifar10'"
    )


def _unlabelled(dataset: str) -> UserError:
    return UserError(
        f"data.dataset={dataset!r} has no labels: use 'digits', or a dataset of tensorflow-datasets "
        "with a feature 'label' of classes, such as 'mnist' or 'cifar10'"
    )


def _damaged(dataset: str, data_dir: str, error: Exception) -> UserError:
    reason = str(error).strip().partition("\n")[0]
    return UserError(
        f"data.dataset={dataset!r} under data.data_dir={data_dir!r} cannot be read "
        f"({type(error).__name__}: {reason[:200]}); move it away and prepare it again"
    )


@contextlib.contextmanager
def _alone(dataset: str, data_dir: str) -> Iterator[None]:
    """Lets one process at a time prepare a dataset; what another has prepared meanwhile is used."""
    try:
        os.makedirs(data_dir, exist_ok=True)
        descriptor = os.open(
            os.path.join(data_dir, f".{dataset.replace('/', '_')}.lock"), os.O_RDWR | os.O_CREAT
        )
    except OSError:  # Whoever cannot write there prepares nothing there either.
        yield
        return
    try:
        until = time.monotonic() + _LONGEST_PREPARATION
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise UserError(
                        f"waited {_LONGEST_PREPARATION / 3600:.0f} h for another process that prepares "
                        f"data.dataset={dataset!r} under data.data_dir={data_dir!r}"
                    ) from None
                time.sleep(0.2)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(descriptor)


def _prepare(dataset: str, data_dir: str) -> None:
    """Makes an absent dataset present: builds `digits`, downloads CIFAR-10 and MNIST, refuses others."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    builder = _builder(dataset, data_dir)
    if builder.is_prepared():
        return
    advice = f"data.dataset={dataset!r} is not prepared under data.data_dir={data_dir!r}"
    generators = {"cifar10": _cifar10_examples, "mnist": _mnist_examples}
    if dataset in generators:
        builder._generate_examples = generators[dataset]
        print(f"downloading {dataset} to {data_dir}", file=sys.stderr)
    elif dataset != "digits":
        raise UserError(
            f"{advice}; prepare it there with tensorflow-datasets (file_format='array_record'), "
            "or use data.dataset='image_folder' with a directory of its images"
        )
    downloader.MAX_RETRIES = 1
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(download_config=config)
    # Whatever goes wrong on the network or on the disk, the user's remedy is the same.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise UserError(
            f"{advice} and cannot be made there ({type(error).__name__}: {reason[:120]}); "
            "check the network, or copy a prepared directory there"
        ) from None


def _cifar10_examples(prefix, files):
    from PIL import Image

    index = 0
    for path in files:
        for row in np.fromfile(path, np.uint8).reshape(-1, 1 + 3 * 32 * 32):
            image = Image.fromarray(row[1:].reshape(3, 32, 32).transpose(1, 2, 0))
            yield index, {"id": f"{prefix}{index:05d}", "label": int(row[0]), "image": image}
            index += 1


def _mnist_examples(num_examples, data_path, label_path):
    from PIL import Image

    def payload(path, header):
        with open(path, "rb") as file:
            raw = file.read()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        return np.frombuffer(raw, np.uint8, offset=header)

    images = payload(data_path, 16).reshape(num_examples, 28, 28)
    for index, (image, label) in enumerate(zip(images, payload(label_path, 8), strict=True)):
        yield index, {"image": Image.fromarray(image), "label": int(label)}


def _decode(dataset: str, source, size: int, channels: int, crop_size: int) -> np.ndarray:
    """Reads all images of a data source in chunks; crops and resizes those that need it."""
    from PIL import Image

    from ncsn_jax.app.data import transforms

    if "image" not in source[0]:
        raise UserError(f"data.dataset={dataset!r} has no feature named 'image'")
    found = np.asarray(source[0]["image"]).shape
    if found[-1] != channels:
        raise UserError(
            f"data.channels={channels}, but the images of data.dataset={dataset!r} have {found[-1]}"
        )
    images = np.empty((len(source), size, size, channels), np.uint8)
    for start in range(0, len(source), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(source)))
        for i, example in zip(rows, source.__getitems__(rows), strict=True):
            image = np.asarray(example["image"])
            if image.shape != images.shape[1:] or crop_size:
                picture = Image.fromarray(image[..., 0] if channels == 1 else image)
                try:
                    image = transforms.fit(picture, size, channels, crop_size)
                except ValueError as error:
                    raise UserError(f"an image of data.dataset={dataset!r} {error}") from None
            images[i] = image
    return images


def _decode_labels(dataset: str, builder, split: str) -> np.ndarray:
    """Returns the number of classes and then the label of every example of a split, int32 `[1 + N]`."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    feature = features.get("label")
    if not isinstance(feature, tfds.features.ClassLabel) or not feature.num_classes:
        raise _unlabelled(dataset)
    decoders = {"image": tfds.decode.SkipDecoding()} if "image" in features else None
    source = builder.as_data_source(split=split, decoders=decoders)
    labels = np.empty(1 + len(source), np.int32)
    labels[0] = feature.num_classes
    for start in range(0, len(source), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(source)))
        labels[1 + rows.start : 1 + rows.stop] = [e["label"] for e in source.__getitems__(rows)]
    outside = labels[1:][(labels[1:] < 0) | (labels[1:] >= labels[0])]
    if outside.size:  # -1 is the custom where the labels are not published.
        raise UserError(
            f"data.dataset={dataset!r} has the label {outside[0]} in split {split!r}, "
            f"which is none of its {labels[0]} classes"
        )
    return labels
