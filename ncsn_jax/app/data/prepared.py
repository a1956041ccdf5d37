"""Opens datasets of tensorflow-datasets on disk, as array_record, without TensorFlow.

It builds `digits`, and downloads and prepares CIFAR-10 and MNIST. For these two, our own generators turn the
downloaded archive into examples, because the library's need TensorFlow.
"""

import contextlib
import gzip
import io
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from ncsn_jax.app import storage
from ncsn_jax.app.data import files, reading, transforms
from ncsn_jax.app.data.images import Source
from ncsn_jax.app.data.reading import Damaged
from ncsn_jax.errors import UserError

# A name of tensorflow-datasets, such as ns:set/config:1.0.0; never a path out of data_dir.
_NAME = re.compile(r"[A-Za-z0-9_][\w.+:-]*(/[A-Za-z0-9_][\w.+:-]*)*", re.ASCII)

# Smaller images decode so fast that threads only wait for each other.
_SMALL = 64 * 64
# A thread decodes up to this many bytes at a time.
_BLOCK_BYTES = 2**22
_MISSING = "data.dataset={!r} is not prepared under data.data_dir={!r}"


def find(dataset: str, data_dir: str) -> str:
    """Returns the directory of datasets that holds a dataset; prepares it first if necessary.

    Args:
      dataset: "digits", or a name that tensorflow-datasets knows.
      data_dir: see `ncsn_jax.app.data.load`.

    Raises:
      UserError: if the dataset is unknown, or is missing and cannot be made.
    """
    if not _NAME.fullmatch(dataset):
        raise _unknown(dataset)
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if storage.is_remote(data_dir):
        storage.check(data_dir, "data.data_dir")
    else:
        data_dir = os.path.abspath(storage.path(data_dir))
    directory = os.path.join(data_dir, dataset)
    try:
        is_there = any(path.endswith("dataset_info.json") for path, *_ in fingerprint(directory))
    except OSError as error:
        raise UserError(f"data.data_dir={data_dir!r} cannot be read: {error.strerror}") from None
    if not is_there and storage.is_remote(data_dir):
        raise _not_prepared(dataset, data_dir)
    # tensorflow-datasets renames a complete dataset into place.
    if not is_there:
        with _one_at_a_time(dataset, data_dir), opened(dataset, data_dir) as builder:
            _prepare(builder, dataset, data_dir)
    return data_dir


@contextlib.contextmanager
def opened(dataset: str, data_dir: str) -> Iterator:
    """Gives the tensorflow-datasets builder, and turns what damaged files raise into a UserError.

    Inside the block the library prints nothing.
    """
    try:
        with _silent():
            yield _builder(dataset, data_dir)
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"data.dataset={dataset!r} under data.data_dir={data_dir!r} cannot be read "
            f"({type(error).__name__}: {reason[:200]}); move it away and prepare it again"
        ) from None


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps tensorflow-datasets' progress bars, prints and log out of our output."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    its_log = logging.getLogger("absl")
    level = its_log.level
    its_log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        its_log.setLevel(level)


def _builder(dataset: str, data_dir: str):
    import tensorflow_datasets as tfds

    if dataset == "digits":
        from ncsn_jax.app.data.digits import Digits

        return Digits(data_dir=data_dir, file_format="array_record")
    try:
        return tfds.builder(dataset, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        raise _unknown(dataset) from None
    except ValueError:
        raise UserError(
            f"data.data_dir={data_dir!r} holds {dataset} in another format; prepare it as array_record"
        ) from None


def fingerprint(directory: str) -> list:
    """Returns the path, size and version of every file below a directory, sorted; none if it does not exist.

    It leaves out hidden files and what tensorflow-datasets has not finished.
    """
    with contextlib.suppress(FileNotFoundError):
        return sorted(map(list, files.list_files(directory, (".", "incomplete."))))
    return []


class Examples(Source):
    """The images of a split, decoded, cropped and resized on demand.

    Args:
      dataset: its name.
      source: tensorflow-datasets' data source of the split, with images as `contents` leaves them.
      size, channels, crop_size: see `ncsn_jax.app.data.transforms.fit`.

    Attributes:
      shape, dtype, what: see `ncsn_jax.app.data.images.Source`.

    Raises:
      UserError: if the dataset has no images, or images with another number of channels.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, dataset: str, source, size: int | Sequence[int], channels: int, crop_size: int
    ):
        self.what = f"data.dataset={dataset!r}"
        features = source.dataset_info.features
        if "image" not in features:
            raise UserError(f"{self.what} has no feature named 'image'")
        if (found := features["image"].shape[-1]) not in (channels, None):
            raise UserError(f"data.channels={channels}, but the images of {self.what} have {found}")
        self.shape = (len(source), *transforms.sides(size), channels)
        # Records cost less when they are read together.
        self.block = max(1, min(250, _BLOCK_BYTES // math.prod(self.shape[1:])))
        if math.prod(self.shape[1:3]) <= _SMALL:
            self.threads = 1
        self._source, self._fit = source, (size, channels, crop_size)

    def name(self, index: int) -> str:
        """Returns an example's name."""
        return f"example {index}"

    def image(self, index: int) -> np.ndarray:
        """Returns an image; see `ncsn_jax.app.data.images.Source`."""
        with self._reading([index]):
            image = _content(self._source[index])
        return self._decode(image)

    def images(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Returns some images, whose records are read together."""
        with self._reading(rows):
            images = [_content(example) for example in self._source.__getitems__(list(rows))]
        return [self._decode(image) for image in images]

    @contextlib.contextmanager
    def _reading(self, rows: Sequence[int]) -> Iterator[None]:
        try:
            yield
        except MemoryError:
            raise
        # The reader can raise any exception.
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            first, last = self.name(rows[0]), self.name(rows[-1])
            which = first if first == last else f"one of {first} to {last}"
            raise UserError(f"{self.what}: {which} cannot be read ({reason})") from None

    def _decode(self, image: bytes | np.ndarray) -> np.ndarray:
        if isinstance(image, bytes):
            return reading.pixels(image, *self._fit)[0]
        if image.dtype != np.uint8:
            raise UserError(f"{self.what} has images of type {image.dtype}, but they must be uint8")
        if image.shape == self.shape[1:] and not self._fit[2]:
            return image
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        try:
            return transforms.fit(picture, *self._fit)
        except ValueError as error:
            raise Damaged(str(error)) from None


def _content(example: dict) -> bytes | np.ndarray:
    if example["image"] is None:  # a truncated shard gives empty records
        raise ValueError("the record is empty")
    return example["image"]


def contents(builder) -> dict | None:
    """Returns decoders that make tensorflow-datasets leave image files undecoded."""
    import tensorflow_datasets as tfds

    feature = dict(builder.info.features).get("image")
    is_file = isinstance(feature, tfds.features.Image)
    return {"image": tfds.decode.SkipDecoding()} if is_file else None


def _unknown(dataset: str) -> UserError:
    return UserError(
        f"data.dataset={dataset!r} is unknown: use 'digits', 'image_folder', or a name that "
        "tensorflow-datasets knows, such as 'mnist' or 'cifar10'"
    )


@contextlib.contextmanager
def _one_at_a_time(dataset: str, data_dir: str) -> Iterator[None]:
    """Lets one process at a time prepare a dataset; the next finds it prepared."""
    with contextlib.ExitStack() as stack:
        # A process that cannot write there cannot prepare anything there either.
        with contextlib.suppress(OSError):
            os.makedirs(data_dir, exist_ok=True)
            name = f".{dataset.replace('/', '_')}.lock"
            lock = stack.enter_context(open(os.path.join(data_dir, name), "wb"))
            storage.lock(lock, wait=True)
        yield


def _not_prepared(dataset: str, data_dir: str) -> UserError:
    return UserError(
        f"{_MISSING.format(dataset, data_dir)}; prepare it there with tensorflow-datasets "
        "(file_format='array_record'), or use data.dataset='image_folder' with a directory of its images"
    )


def _prepare(builder, dataset: str, data_dir: str) -> None:
    """Prepares a missing dataset: builds `digits`, downloads CIFAR-10 and MNIST, refuses others."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    if builder.is_prepared():
        return
    generators = {"cifar10": _cifar10_examples, "mnist": _mnist_examples}
    if dataset in generators:
        builder._generate_examples = generators[dataset]
        print(f"downloading {dataset} to {data_dir}", file=sys.stderr)
    elif dataset != "digits":
        raise _not_prepared(dataset, data_dir)
    downloader.MAX_RETRIES = 1
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(download_config=config)
    # Whatever fails on the network or the disk, the user's remedy is the same.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise UserError(
            f"{_MISSING.format(dataset, data_dir)} and cannot be prepared there "
            f"({type(error).__name__}: {reason[:120]}); check the network, or copy a prepared directory there"
        ) from None


def _cifar10_examples(prefix, files):
    rows = (row for f in files for row in np.fromfile(f, np.uint8).reshape(-1, 1 + 3 * 32 * 32))
    for index, row in enumerate(rows):
        image = Image.fromarray(row[1:].reshape(3, 32, 32).transpose(1, 2, 0))
        yield index, {"id": f"{prefix}{index:05d}", "label": int(row[0]), "image": image}


def _mnist_examples(num_examples, data_path, label_path):
    def payload(path, header):
        with open(path, "rb") as file:
            raw = file.read()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        return np.frombuffer(raw, np.uint8, offset=header)

    images = payload(data_path, 16).reshape(num_examples, 28, 28)
    for index, (image, label) in enumerate(zip(images, payload(label_path, 8), strict=True)):
        yield index, {"image": Image.fromarray(image), "label": int(label)}
