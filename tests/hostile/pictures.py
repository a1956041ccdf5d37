"""Makes pictures and bombs, directories and archives of them, masks, arrays, datasets and image caches."""

import io
import os
import pathlib
import struct
import tarfile
import zipfile
import zlib

import numpy as np

from tests.hostile import HARMLESS, NAMES, STRINGS, Failure, entry, judge, mutate, place, special
from tests.hostile.workdirs import json_text, npy, npz


def _picture(rng) -> bytes:
    """Returns a readable picture."""
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
    """Returns a small file that claims to be a huge picture, or that unpacks to one."""
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
    """Puts a picture at a path, or something else."""
    kind = rng.randrange(8)
    data = _bomb(rng) if kind == 0 else _picture(rng)
    place(rng, path, lambda: data if kind < 4 else mutate(rng, data), 0.2)


def _fill_folder(rng, folder: str) -> None:
    """Makes a directory tree with pictures and all kinds of other files."""
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
        # Links upwards; more than one make an endlessly broad tree.
        for i in range(rng.choice([1, 2, 8])):
            target = rng.choice([".", "..", folder, "../.."])
            os.symlink(target, os.path.join(rng.choice(folders), f"loop{i}"))
    elif kind < 8:
        # Each directory is linked twice in the one before.
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
    """Returns the arguments of a function that reads a directory, and the path that a refusal must name."""
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


def _archive(rng, suffix: str) -> bytes:
    """Returns an archive of pictures, damaged ones, and members of all kinds with hostile names."""
    buffer = io.BytesIO()
    names = [name for name in NAMES if name.isprintable()] + ["a/b.png", "../x.png", "/x.png", "a/"]
    names = rng.sample([name[:80] for name in names], rng.choice([0, 1, 3, 8]))
    pictures = [_picture(rng) if rng.random() < 0.9 else _bomb(rng) for _ in names]
    pictures = [p if rng.random() < 0.9 else mutate(rng, p) for p in pictures]
    if suffix == ".zip":
        kinds = [zipfile.ZIP_STORED] * 3 + [zipfile.ZIP_DEFLATED] * 3 + [zipfile.ZIP_BZIP2]
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, picture in zip(names, pictures, strict=True):
                archive.writestr(name, picture, rng.choice(kinds))
    else:
        kind = rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
        with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
            for name, picture in zip(names, pictures, strict=True):
                member = tarfile.TarInfo(name)
                member.size = len(picture)
                if rng.random() < 0.1:
                    member.type, member.size = rng.choice([b"1", b"2", b"3", b"5", b"6", b"S"]), 0
                archive.addfile(member, io.BytesIO(picture))
    data = buffer.getvalue()
    return data if rng.random() < 0.3 else mutate(rng, data)


@entry(6, "ncsn_jax.app.data")
def make_archive(case):
    """A tar or zip file of training images, or a directory with one."""
    from ncsn_jax.app import data

    rng = case.rng
    suffix = rng.choice([".tar", ".zip", ".zip", ".TAR"])
    folder = case.path("below")
    os.mkdir(folder)
    path = os.path.join(folder, rng.choice(["a", "\udcff", "new\nline", "é"]) + suffix)
    place(rng, path, lambda: _archive(rng, suffix.lower()), 0.05)
    given = rng.choice([path, path, folder])
    holdout, cache_bytes = rng.choice([0, 0, 0.5]), rng.choice([0, 10**9])
    options = {"crop_size": rng.choice([0, -1]), "holdout": holdout, "cache_bytes": cache_bytes}

    def call():
        for _ in range(2):  # the second time the list is in the cache
            x = data.load("image_folder", given, 8, 1, **options)
            _judge_images(x, 8, 1)
            _judge_images(x[:], 8, 1)

    return call, None if given == folder else path


@entry(4, "ncsn_jax.app.data.arrays")
def make_array(case):
    """A file of an array as the dataset."""
    from ncsn_jax.app.data import arrays

    rng = case.rng
    images = np.frombuffer(rng.randbytes(320), np.uint8).reshape(5, 8, 8, 1)
    images = rng.choice([images, images, images[..., 0], images / np.float32(255)])
    suffix = rng.choice([".npy", ".npz"])
    path = case.path(rng.choice(["a", "\udcff", "new\nline", "é"]) + suffix)
    buffer = io.BytesIO()
    np.save(buffer, images)
    valid = buffer.getvalue()
    shapes = [(10**18, 8, 8, 1), (2**62, 8), (5, 8, 8), (-1, 8, 8, 1), (5, 8, 8, 2), (0,), ()]
    header = {
        "descr": rng.choice(["|u1", "<f4", ">f8", "|O", "V3", "", None]),
        "fortran_order": False,
    }
    others = [npy(header | {"shape": shape}, bytes(320)) for shape in shapes]
    others += [
        npy({}, b""),
        npy("(" * 9000, b""),
        b"",
        valid,
        *(mutate(rng, valid) for _ in shapes),
    ]
    place(rng, path, lambda: rng.choice(others) if suffix == ".npy" else npz(rng, "a", images))
    name = path + (rng.choice(["", "", ":a", ":b", ":", "::"]) if suffix == ".npz" else "")
    value_range = () if images.dtype == np.uint8 else (0.0, 1.0)
    options = {"holdout": rng.choice([0, 0, 0.5]), "cache_bytes": rng.choice([0, 10**9])}

    def call():
        x = arrays.load(name, (8, 8, 1), value_range, **options)
        if x.shape[1:] != (8, 8, 1) or x[:].shape != x.shape:
            raise Failure(f"returned {x.dtype} {x.shape}")

    return call, path


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

    cache.array("fuzz", key, lambda: (array, "note"))
    for path in files():
        others = [b"", npy({}, b""), npy("(" * 9000, b""), mutate(rng, path.read_bytes())]
        if rng.random() < 0.7:
            path.write_bytes(rng.choice(others))

    def call():
        try:
            found, _ = cache.array("fuzz", key, lambda: (array, "note"))
            again, _ = cache.array("fuzz", [key], lambda: (array, text))
            if not isinstance(found, np.ndarray) or not np.array_equal(again, array):
                raise Failure("returned something else")
        finally:
            for path in files():
                path.unlink()

    return call, None
