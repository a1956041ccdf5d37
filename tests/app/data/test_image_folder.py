import os

import numpy as np
import pytest
from PIL import Image

from ncsn_jax.app import data
from ncsn_jax.app.data import files, image_folder, images, sources, transforms
from ncsn_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Returns a directory of three known pictures, two damaged ones, and files to skip."""
    root = tmp_path / "pictures"
    (root / "below").mkdir(parents=True)
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = (255, 0, 0)
    Image.fromarray(wide).save(root / "a wide.PNG")
    Image.fromarray(np.full((16, 16), 128, np.uint8)).save(root / "below" / "grey.jpg", quality=95)
    Image.fromarray(np.full((16, 16), 40000, np.uint16)).save(root / "below" / "deep", "PNG")
    (root / "b torn.jpg").write_bytes((root / "below" / "grey.jpg").read_bytes()[:100])
    (root / "text.png").write_text("not a picture")
    (root / "notes.txt").write_text("not even by name")
    (root / ".hidden.png").write_text("")
    (root / "dangling.png").symlink_to("nowhere")
    os.mkfifo(root / "pipe.png")
    return root


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_image_folder_crops_resizes_and_names_the_files_it_skips(
    cache_bytes, folder, caplog, monkeypatch
):
    """A damaged image is replaced by the next one; the first follows the last."""
    monkeypatch.setattr(images, "_MAX_DAMAGED", 0.5)
    monkeypatch.setattr(sources, "_MAX_DAMAGED_OF_SAMPLE", 0.5)
    load = lambda channels: data.load(
        "image_folder", str(folder), 8, channels, crop_size=-1, cache_bytes=cache_bytes
    )
    x = load(3)
    assert x.shape == (5, 8, 8, 3) and x.dtype == np.uint8
    for row in (0, 4):
        assert np.all(x[row] == (255, 0, 0))  # the middle of the wide picture
    for row in (1, 2):
        assert np.all(x[row] == 40000 >> 8)
    assert np.abs(x[3].astype(int) - 128).max() <= 1
    load(3)  # from the cache, and still named
    first, *again = [r.getMessage() for r in caplog.records if "ncsn_jax" in r.name]
    what = f"data.data_dir={str(folder)!r}"
    left_out = "left out 1 file(s) that are not PNG, JPEG, WebP, BMP, TIFF or GIF (notes.txt)"
    torn, text = "b torn.jpg: ", "text.png: not PNG, JPEG, WebP, BMP, TIFF or GIF)"
    assert first.startswith(f"{what}: {left_out}; 2 damaged ({torn}")
    assert first.endswith(f"; {text}, each replaced by the next good image") and again == [first]
    assert load(1).shape == (5, 8, 8, 1)


def test_a_jpeg_is_cropped_before_it_is_shrunk(tmp_path):
    image = np.zeros((64, 64), np.uint8)
    image[16:48, 16:48] = 255
    Image.fromarray(image).save(tmp_path / "x.jpg", quality=95)
    assert data.load("image_folder", str(tmp_path), 8, 1, crop_size=32)[:].min() > 250
    whole = data.load("image_folder", str(tmp_path), 8, 1, crop_size=-1)  # not from the cache
    assert np.all(whole[0, 0] < 5) and np.all(whole[0, 3:5, 3:5] > 250)


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_image_folder_without_cropping_requires_images_that_fit(cache_bytes, folder):
    """An image of the wrong size counts as damaged, and here most are."""
    message = r"data.data_dir=.*: more than a tenth of . images cannot be used: \d damaged \("
    with pytest.raises(UserError, match=message + r"a wide.PNG: is 40x20, not 16x16; set data.cro"):
        data.load("image_folder", str(folder), 16, 1, cache_bytes=cache_bytes)


def test_image_folder_notices_changed_files(folder, monkeypatch):
    monkeypatch.setattr(images, "_MAX_DAMAGED", 0.5)
    assert len(data.load("image_folder", str(folder), 8, 1, crop_size=-1)) == 5
    os.remove(folder / "b torn.jpg")
    assert len(data.load("image_folder", str(folder), 8, 1, crop_size=-1)) == 4


def test_images_are_in_the_order_of_their_paths(tmp_path):
    for i, name in enumerate(["a/z.png", "b.png", "c/a.png", "d.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / name)
    found = data.load("image_folder", str(tmp_path), 8, 1)
    assert list(found[:, 0, 0, 0]) == [0, 1, 2, 3]


def test_the_cache_distinguishes_sizes_channels_directories_and_nested_changes(tmp_path):
    """A file with the same name, size and age differs only if its directory does."""
    root, other = tmp_path / "a", tmp_path / "b"
    for folder, grey in ((root, 10), (other, 200)):
        (folder / "deep" / "er").mkdir(parents=True)
        Image.fromarray(np.full((8, 8), grey, np.uint8)).save(folder / "deep" / "er" / "x.png")
        os.utime(folder / "deep" / "er" / "x.png", ns=(1, 1))
    load = lambda folder, size=8, channels=1, crop=-1: data.load(
        "image_folder", str(folder), size, channels, crop_size=crop
    )
    assert np.all(load(root)[:] == 10) and np.all(load(other)[:] == 200)
    assert load(root, size=4).shape == (1, 4, 4, 1) and load(root, 8, 3).shape == (1, 8, 8, 3)
    Image.fromarray(np.full((8, 8), 99, np.uint8)).save(root / "deep" / "er" / "x.png")
    assert np.all(load(root)[:] == 99)
    Image.fromarray(np.full((8, 8), 11, np.uint8)).save(root / "deep" / "a.png")
    assert load(root)[:, 0, 0, 0].tolist() == [11, 99]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_large_jpeg_is_decoded_at_no_less_than_twice_the_final_size(mode, tmp_path):
    """For waves this short the decoder errs by 14 grey levels at 64 pixels, and by 5 at 128."""
    waves = 127.5 + 100 * np.sin(2 * np.pi * np.arange(512) / 25.6 + 0.3)
    pixels = np.broadcast_to(np.round(waves).astype(np.uint8), (512, 512))
    Image.fromarray(pixels).convert(mode).save(tmp_path / "x.jpg", quality=95)
    found = data.load("image_folder", str(tmp_path), 64, 3, crop_size=-1)[0]
    with Image.open(tmp_path / "x.jpg") as image:
        whole = transforms.fit(image, 64, 3, transforms.LARGEST_SQUARE)
    assert 2 < np.abs(found.astype(int) - whole).max() < 8


def test_circular_links_are_followed_once(tmp_path):
    for i in range(30):
        (tmp_path / f"d{i}").mkdir()
        for name in "ab":
            (tmp_path / f"d{i}" / name).symlink_to(f"../d{i + 1}")
    (tmp_path / "up").symlink_to(".")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "d29" / "x.png")
    assert [file.name for file in files.find(str(tmp_path), "x").files] == ["d29/x.png"]


def test_skipped_files_are_named_on_one_line_for_any_name(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("NCSN_JAX_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "pictures"
    root.mkdir()
    (root / "link.png").symlink_to("nowhere")
    (root / "two\nlines.png").write_text("")
    (root / "\udcff.txt").write_text("")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "x.png")
    x, text = image_folder.first(image_folder.Folder(str(root), 8, 1, 0), 9)
    assert x.shape == (1, 8, 8, 1)
    assert text.isprintable() and "link.png" not in text
    assert r"(two\nlines.png: not PNG" in text and r" GIF (\udcff.txt)" in text
    monkeypatch.setattr(images, "_MAX_DAMAGED", 0.5)
    assert data.load("image_folder", str(root), 8, 1).shape == (2, 8, 8, 1)
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_transparent_images_are_counted_once_in_the_log(tmp_path, caplog):
    for i in range(3):
        Image.new("LA", (8, 8), (0, 100 * i)).save(tmp_path / f"{i}.png")
    Image.new("LA", (8, 8), (99, 255)).save(tmp_path / "opaque.png")
    found = data.load("image_folder", str(tmp_path), 8, 1, background=200)
    np.testing.assert_array_equal(found[:, 0, 0, 0], [200, 122, 43, 99])
    (record,) = caplog.records
    what = f"data.data_dir={str(tmp_path)!r}"
    assert record.getMessage() == f"{what}: 3 with transparency, on data.background=200"


@pytest.mark.parametrize(("crop_size", "box"), [(-1, (0, 1, 30, 19)), (6, (10, 7, 20, 13))])
def test_rectangles_are_cropped_from_the_centre(crop_size, box):
    """The largest 5:3 crop of 30x20 pixels is 30x18; with a shorter side of 6 it is 10x6."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8))
    found = transforms.fit(picture, (3, 5), 1, crop_size)
    expected = picture.crop(box).resize((5, 3), Image.Resampling.BILINEAR, reducing_gap=3.0)
    np.testing.assert_array_equal(found[..., 0], np.asarray(expected))
    with pytest.raises(ValueError, match="smaller than data.crop_size=19"):
        transforms.fit(picture, (3, 5), 1, 19)
    with pytest.raises(ValueError, match="is 30x20, not 5x3"):
        transforms.fit(picture, (3, 5), 1, 0)
