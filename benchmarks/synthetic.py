"""Writes synthetic pictures, smooth with noise, as JPEG files of quality 90, in every form of dataset.

It draws a few hundred and repeats them. A directory that exists is complete and is reused.
"""

import contextlib
import io
import itertools
import os
import pathlib
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator

import numpy as np
from PIL import Image

from ncsn_jax.app.progress import progress

NAME = "synthetic"  # the dataset's name in tensorflow-datasets
_DRAWN, _GRAIN, _SHARD = 300, 8.0, 25_000


def make_files(parent: str, size: tuple[int, int], channels: int, count: int) -> str:
    """Writes pictures as a folder, a tar and a zip file, if missing; returns their directory.

    Args:
      parent: the directory's parent.
      size: height and width.
      channels: 1 or 3.
      count: the number of pictures.
    """
    with _once(parent, "files", size, channels, count) as (directory, target):
        if target:
            (target / "folder").mkdir()
            with (
                tarfile.open(target / "images.tar", "w") as tar,
                zipfile.ZipFile(target / "images.zip", "w") as archive,
            ):
                for i, picture in _pictures(size, channels, count):
                    path = target / "folder" / f"{i:06d}.jpg"
                    path.write_bytes(picture)
                    tar.add(path, path.name)
                    archive.write(path, path.name)
    return directory


def make_dataset(parent: str, size: tuple[int, int], channels: int, count: int) -> str:
    """Writes pictures as array_record with tensorflow-datasets; otherwise like `make_files`."""
    import tensorflow_datasets as tfds

    with _once(parent, NAME, size, channels, count) as (directory, target):
        if target:
            image = tfds.features.Image(shape=(*size, channels), encoding_format="jpeg")
            place = target / NAME / "1.0.0"
            place.mkdir(parents=True)
            info = tfds.core.DatasetInfo(
                builder=tfds.core.dataset_info.DatasetIdentity(
                    NAME, tfds.core.Version("1.0.0"), str(place), module_name=""
                ),
                features=tfds.features.FeaturesDict({"image": image}),
            )
            # The library's generators would sort the examples, and need TensorFlow to sort many.
            writer = tfds.core.SequentialWriter(info, _SHARD, file_format="array_record")
            writer.initialize_splits(["train"])
            pictures = _pictures(size, channels, count)
            # Each call rewrites the metadata, so pass many at a time.
            while some := [{"image": io.BytesIO(p)} for _, p in itertools.islice(pictures, 1000)]:
                writer.add_examples({"train": some})
            writer.close_all()
    return directory


@contextlib.contextmanager
def _once(
    parent: str, what: str, size, channels, count
) -> Iterator[tuple[str, pathlib.Path | None]]:
    """Gives a directory and, if it is missing, another one that will take its name."""
    height, width = size
    directory = os.path.join(parent, f"{what}-{count}x{height}x{width}x{channels}")
    if os.path.isdir(directory):
        yield directory, None
        return
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as temporary:
        target = pathlib.Path(temporary, "made")
        target.mkdir()
        yield directory, target
        target.rename(directory)


def _pictures(size: tuple[int, int], channels: int, count: int) -> Iterator[tuple[int, bytes]]:
    """Yields each picture's number and content."""
    (height, width), rng = size, np.random.default_rng(0)
    with progress("writing pictures", count, "pictures") as advanced:
        drawn = []
        for i in range(count):
            if i < _DRAWN:
                coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
                smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
                pixels = np.clip(smooth + rng.normal(0, _GRAIN, smooth.shape), 0, 255)
                image = Image.fromarray(pixels.astype(np.uint8))
                file = io.BytesIO()
                image.convert("L" if channels == 1 else "RGB").save(file, "JPEG", quality=90)
                drawn.append(file.getvalue())
            yield i, drawn[i % _DRAWN]
            advanced(1)
