"""Pictures and bombs, directories of them with hostile names, masks, data sets and the cache of images."""

import io
import os
import pathlib
import struct
import zlib

import numpy as np

from tests.hostile import HARMLESS, NAMES, STRINGS, Failure, entry, judge, mutate, place, special
from tests.hostile.workdirs import json_text, npy


def _picture(rng) -> bytes:
    """Returns a picture that can be read."""
    from PIL import Image

    width, height = rng.choice([(8, 8)] * 3 + [(1, 1), (3, 50), (40, 40), (9, 8), (2000, 1)])
    mode = rng.choice(["L", "RGB", "RGBA", "P", "1", "LA", "deep", "CMYK", "YCbCr"])
    source = np.frombuffer(rng.randbytes(width * height * 3), np.uint8).reshape(height, width, 3)
    buffer = io.BytesIO()
    if mode == "deep":
        Image.fromarray(source[..., 0].astype(np.uint16) * 257).save(buffer, "PNG")
        return buffer.getvalue()
    image = Image.fromarray(source).convert(mode)
    if mode in ("CMYK", "YCbCr") or (mode in ("L", "RGB") and rng.random() < 0.6):
        options = {"progressive": rng.random() < 0.5, "quality": rng.choice([1, 50, 100])}
        if rng.random() < 0.5:
            exif = Image.Exif()
            exif[0x0112] = rng.choice([0, 1, 3, 6, 8, 9])  # the orientation
            options["exif"] = exif.tobytes() if rng.random() < 0.7 else rng.randbytes(50)
        image.save(buffer, "JPEG", **options)
    else:
        options = {"transparency": rng.choice([0, b"\x00\x80"])} if mode == "P" else {}
        image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _bomb(rng) -> bytes:
    """Returns a small file that says it is a huge picture, or unpacks to much."""
    most = 2**31 - 1
    sizes = [(most, most), (most, 1), (1, most), (0, 0), (0, 5), (2**32 - 1, 1)]
    width, height = rng.choice(sizes + [(n, n) for n in (50_000, 12_000, 9_000)])
    if rng.random() < 0.3:
        data = bytearray(_picture(rng))
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        if at > 0:
            data[at + 5 : at + 9] = struct.pack(">HH", min(height, 65535), min(width, 65535))
            return bytes(data)
    depth, kind = rng.choice([(8, 0), (8, 2), (16, 6), (1, 0), (8, 3), (3, 9)])
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, rng.choice([0, 1]))
    zeros = zlib.compress(bytes(rng.choice([10, 10**6, 3 * 10**7])))
    texts = [_chunk(b"zTXt", b"k\0\0" + zeros), _chunk(b"iTXt", b"k\0\1\0\0\0" + zeros)]
    texts += [_chunk(b"tEXt", b"k\0" + b"x" * 10**6) * 3, _chunk(b"eXIf", rng.randbytes(100))]
    colours = [_chunk(b"iCCP", b"k\0\0" + zeros), _chunk(b"PLTE", bytes(7))]
    extra = [b"", _chunk(b"acTL", struct.pack(">II", 10**9, 0)), *texts, *colours]
    chunks = [_chunk(b"IHDR", header), rng.choice(extra), _chunk(b"IDAT", zeros)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + _chunk(b"IEND", b"")


def _place_picture(rng, path: str) -> None:
    """Puts a picture at a path, or something that is none."""
    kind = rng.randrange(8)
    data = _bomb(rng) if kind == 0 else _picture(rng)
    place(rng, path, lambda: data if kind < 4 else mutate(rng, data), 0.2)


def _fill_folder(rng, folder: str) -> None:
    """Makes a directory tree with pictures and everything else there may be."""
    folders = [folder]
    os.mkdir(folder)
    for name in rng.sample(["below", "x.png", "new\nline", "\udcff", ".hidden", "--", "é"], 3):
        if rng.random() < 0.4:
            folders.append(os.path.join(rng.choice(folders), name))
            os.mkdir(folders[-1])
    for _ in range(rng.choice([0, 1, 2, 5, 10])):
        path = os.path.join(rng.choice(folders), rng.choice(NAMES))
        if not os.path.lexists(path):
            _place_picture(rng, path)
    kind = rng.randrange(24)
    if kind < 6:
        # Links upwards; more than one is a tree of endless breadth.
        for i in range(rng.choice([1, 2, 8])):
            target = rng.choice([".", "..", folder, "../.."])
            os.symlink(target, os.path.join(rng.choice(folders), f"loop{i}"))
    elif kind < 8:
        # Doubly linked down: every directory twice in the one before.
        for i in range(25):
            os.mkdir(os.path.join(folder, f"d{i}"))
            for j in range(2):
                os.symlink(f"../d{i + 1}", os.path.join(folder, f"d{i}", f"l{j}"))
    elif kind == 8:
        here = os.getcwd()
        os.chdir(folder)
        for _ in range(rng.choice([300, 1200, 3000])):
            os.mkdir("d")
            os.chdir("d")
        os.chdir(here)


def _folder_case(case):
    """Returns the arguments of what reads a directory, and the path that a refusal has to name."""
    rng = case.rng
    names = ["pictures", "\udcff", "new\nline", "é", "-r", "a b", "data.data_dir"]
    folder = case.path(rng.choice(names))
    if rng.random() < 0.05:
        special(rng, folder)
    else:
        _fill_folder(rng, folder)
    crop = rng.choice([0, -1, -1, -1, 4, 10**9])
    arguments = (rng.choice([folder] * 15 + HARMLESS), rng.choice([8, 16]), rng.choice([1, 3]))
    return (*arguments, crop), folder if arguments[0] == folder else None


def _judge_images(x: np.ndarray, size: int, channels: int) -> None:
    if x.shape[1:] != (size, size, channels) or x.dtype != np.uint8 or not len(x):
        raise Failure(f"returned {x.dtype} {x.shape}")


@entry(8, "ncsn_jax.app.data")
def make_image_folder(case):
    """A directory of training images."""
    from ncsn_jax.app import data

    (folder, size, channels, crop), named = _folder_case(case)
    split = case.rng.choice(["train"] * 9 + ["test", "", "\n"])

    def call():
        for _ in range(2):  # the second time from the cache
            x = data.load("image_folder", folder, size, channels, split=split, crop_size=crop)
            _judge_images(x, size, channels)

    return call, named if split == "train" else None


@entry(3, "ncsn_jax.app.data.image_folder")
def make_inpainting_images(case):
    """A directory of images to complete."""
    from ncsn_jax.app.data import image_folder

    arguments, named = _folder_case(case)

    def call():
        folder = image_folder.Folder(*arguments, "config.inpainting.images")
        x, text = image_folder.first(folder, 9)
        _judge_images(x, *arguments[1:3])
        if text:
            judge(text, None)

    return call, named


@entry(8, "ncsn_jax.app.data.masks")
def make_mask(case):
    """A mask file."""
    from ncsn_jax.app.data.masks import make_masks

    rng = case.rng
    path = case.path(rng.choice(NAMES))
    _place_picture(rng, path)
    name = rng.choice([path] * 15 + [case.room, "left", "box", *STRINGS])
    shape = rng.choice([(8, 8, 3), (8, 8, 1), (1, 1, 1), (50, 3, 1)])
    count, seed = rng.choice([1, 2]), rng.choice([0, 5, 2**32 - 1])

    def call():
        masks = make_masks(name, shape, count, seed)
        if masks.shape != (count, *shape) or masks.dtype != bool:
            raise Failure(f"returned {masks.dtype} {masks.shape}")

    return call, name if name == path else None


def _dataset_case(case, others: list[str]) -> str:
    """Returns the name of a dataset, which may be prepared in the room and damaged."""
    rng = case.rng
    names = [*STRINGS, "digits/", "a/b", "a:b:c", "no_such", "Digits", "/etc", ".", *others]
    name = rng.choice(names)
    if rng.random() < 0.3:
        name = rng.choice(["digits", "mnist", "celeb_a"])
        version = case.path(name, "1.0.0")
        os.makedirs(version)
        valid = {"name": name, "version": "1.0.0", "splits": []}
        records = f"{name}-train.array_record-00000-of-00001"
        for file in ("dataset_info.json", "features.json", records):
            if rng.random() < 0.8:
                place(rng, os.path.join(version, file), lambda: json_text(rng, valid), 0.15)
    return name


@entry(1, "ncsn_jax.app.data")
def make_dataset(case):
    """Names of datasets, and directories of prepared ones."""
    from ncsn_jax.app import data

    name = _dataset_case(case, [])
    return lambda: data.load(name, case.room, 8, 1), None


@entry(1, "ncsn_jax.app.data")
def make_labels(case):
    """Likewise for the labels."""
    from ncsn_jax.app import data

    name = _dataset_case(case, ["image_folder"] * 3 + ["digits"] * 30)
    splits = ["train", "test", "train[:10]", "train[5:5]", "train[", "", "\n", "\ud800", "x" * 5000]
    split = case.rng.choice(splits)

    def call():
        labels, num_classes = data.load_labels(name, case.room, split=split)
        if labels.dtype != np.int32 or labels.ndim != 1 or num_classes != 10:
            raise Failure(f"returned {labels.dtype} {labels.shape} of {num_classes} classes")

    return call, None


@entry(2, "ncsn_jax.app.data.cache")
def make_cache(case):
    """Files of the cache of images."""
    from ncsn_jax.app.data import cache

    rng = case.rng
    array = np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1)
    key = [case.number, rng.random()]
    text = rng.choice(STRINGS)

    def files():
        return sorted(pathlib.Path(cache.directory()).glob("fuzz-*"))

    cache.images("fuzz", key, lambda: (array, "note"))
    for path in files():
        others = [b"", npy({}, b""), npy("(" * 9000, b""), mutate(rng, path.read_bytes())]
        if rng.random() < 0.7:
            path.write_bytes(rng.choice(others))

    def call():
        try:
            found, _ = cache.images("fuzz", key, lambda: (array, "note"))
            again, _ = cache.images("fuzz", [key], lambda: (array, text))
            if not isinstance(found, np.ndarray) or not np.array_equal(again, array):
                raise Failure("returned something else")
        finally:
            for path in files():
                path.unlink()

    return call, None
