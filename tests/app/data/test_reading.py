"""Tests the decoding of each pixel, on the small files of tests/data/cases and on images made by hand."""

import io
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from ncsn_jax.app.data import image_folder, reading
from ncsn_jax.app.data.masks import make_masks
from tests.conftest import DATA

CASES = DATA / "cases"
PIXELS = np.arange(0, 160, 10, dtype=np.uint8).reshape(4, 4)


def read(path, background=255):
    with reading.pillow(), reading.opened(str(path)) as image:
        return reading.decode(image, background)


def first(path, size, channels, crop_size, count=9):
    return image_folder.first(image_folder.Folder(str(path), size, channels, crop_size), count)


def pixels(path, background=255):
    return np.asarray(read(path, background).image)


def stored(name):
    with Image.open(CASES / name) as image:
        return np.asarray(image)


@pytest.mark.parametrize("name", ["picture.bmp", "picture.tif", "webp_with_wrong_suffix.jpg"])
def test_formats_are_recognized_by_content(name, tmp_path):
    expected = stored("picture.png")
    np.testing.assert_array_equal(pixels(CASES / "picture.png"), expected)
    np.testing.assert_array_equal(pixels(CASES / name), expected)
    for folder, case in (("a", "picture.png"), ("b", name)):
        (tmp_path / folder).mkdir()
        shutil.copy(CASES / case, tmp_path / folder / "no suffix")
    found, other = (first(tmp_path / f, 8, 3, -1)[0] for f in "ab")
    np.testing.assert_array_equal(found, other)


def test_the_first_of_several_frames_is_used():
    with Image.open(CASES / "picture.png") as image:
        expected = np.asarray(image.quantize(256).convert("RGB"), int)
    np.testing.assert_allclose(pixels(CASES / "frames.gif"), expected, atol=16)
    assert np.abs(pixels(CASES / "frames.gif") - expected).mean() < 2


def test_colours_behind_full_transparency_do_not_show():
    for background in (255, 0):
        expected = np.full((16, 16, 3), background)
        expected[4:12, 4:12] = (200, 30, 60)
        found = read(CASES / "rgba_hidden_colours.png", background)
        np.testing.assert_array_equal(np.asarray(found.image), expected)
        assert found.transparent


def test_a_transparent_palette_colour_becomes_the_background():
    index = stored("palette_transparent_index.png")
    clear = index == index[0, 0]
    found = pixels(CASES / "palette_transparent_index.png")
    assert np.all(found[clear] == 255) and not np.all(found[~clear] == 255)
    opaque = Image.open(CASES / "palette_transparent_index.png")
    del opaque.info["transparency"]
    np.testing.assert_array_equal(found[~clear], np.asarray(opaque.convert("RGB"))[~clear])


def test_half_transparent_grey_is_blended_with_the_background(tmp_path):
    grey = np.dstack([np.full((2, 2), 100, np.uint8), [[0, 255], [51, 102]]]).astype(np.uint8)
    Image.fromarray(grey, "LA").save(tmp_path / "x.png")
    found = pixels(tmp_path / "x.png", 200)
    np.testing.assert_array_equal(found[..., 0], [[200, 100], [180, 160]])
    grey[..., 1] = 255
    Image.fromarray(grey, "LA").save(tmp_path / "x.png")
    assert not read(tmp_path / "x.png").transparent


def test_16_bit_grey_keeps_its_scale(tmp_path):
    deep = stored("grey_16bit.png")
    assert np.abs(pixels(CASES / "grey_16bit.png") - deep / 257).max() < 1
    values = np.array([[0, 255, 256], [40000, 65535, 511]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "x.tif"), [[0, 0, 1], [156, 255, 1]])
    Image.fromarray(values).save(tmp_path / "x.png", transparency=40000)  # one transparent value
    np.testing.assert_array_equal(pixels(tmp_path / "x.png")[..., 0], [[0, 0, 1], [255, 255, 1]])


def test_almost_black_images_are_read_and_named(tmp_path):
    shutil.copy(CASES / "grey_12bit_in_16bit.png", tmp_path)
    for value, name in ((15, "dark.png"), (16, "not so dark.png")):
        Image.fromarray(np.full((16, 16), value, np.uint8)).save(tmp_path / name)
    found, note = first(tmp_path, 16, 1, 0)
    np.testing.assert_array_equal(found[1, ..., 0], stored("grey_12bit_in_16bit.png") // 256)
    assert found[1].max() == 15
    assert note == (
        "2 almost black (dark.png: largest value below 16 of 255, "
        "grey_12bit_in_16bit.png: 12-bit data in a 16-bit file)"
    )


def test_a_photograph_is_turned_before_it_is_cropped(tmp_path):
    upright = np.rot90(stored("exif_turned.jpg"), -1)
    np.testing.assert_array_equal(pixels(CASES / "exif_turned.jpg"), upright)
    shutil.copy(CASES / "exif_turned.jpg", tmp_path)
    found = first(tmp_path, 32, 1, 32)[0][0, ..., 0]
    np.testing.assert_array_equal(found, upright[8:40])


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, PIXELS),
        (2, PIXELS[:, ::-1]),
        (3, PIXELS[::-1, ::-1]),
        (4, PIXELS[::-1]),
        (5, PIXELS.T),
        (6, np.rot90(PIXELS, -1)),
        (7, PIXELS[::-1, ::-1].T),
        (8, np.rot90(PIXELS)),
    ],
)
def test_an_image_is_turned_by_its_exif_orientation(orientation, upright):
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(file, "PNG", exif=exif)
    with Image.open(file) as image:
        np.testing.assert_array_equal(np.asarray(reading.decode(image, 255).image), upright)


@pytest.mark.parametrize(
    ("name", "message"),
    [("mask_8bit.png", ""), ("mask_16bit.png", ""), ("mask_32x32.png", "from 32x32 to 8x8")],
)
def test_masks_are_the_same_in_every_format(name, message, caplog):
    with caplog.at_level("INFO", "ncsn_jax"):
        masks = make_masks(str(CASES / name), (8, 8, 3), 2, 0)
    assert masks[:, :, 4:].all() and not masks[:, :, :4].any()
    assert message in caplog.text and bool(caplog.records) == bool(message)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_images_beyond_the_limits_of_pillow_are_read_without_a_warning(
    suffix, tmp_path, monkeypatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(reading, "_LARGE", 1000)
    waves = np.broadcast_to(np.arange(96, dtype=np.uint8), (64, 96))
    for i in range(4):
        Image.fromarray(waves).save(tmp_path / f"{i}.{suffix}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, note = first(tmp_path, 8, 1, -1)
        make_masks(str(tmp_path / f"0.{suffix}"), (8, 8, 1), 1, 0)
    assert found.shape == (4, 8, 8, 1) and note == ""
    np.testing.assert_allclose(found[0, ..., 0], np.tile(19.5 + 8 * np.arange(8), (8, 1)), atol=2)
    assert Image.MAX_IMAGE_PIXELS == 1000  # restored


def test_the_pixel_limit_applies_to_the_decoded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_MAX_PIXELS", 1000)
    for suffix in ("jpg", "png"):
        Image.fromarray(np.full((64, 64), 99, np.uint8)).save(tmp_path / f"x.{suffix}")
    found, note = first(tmp_path, 8, 1, -1)
    assert found.shape == (1, 8, 8, 1)
    assert note == "1 unreadable (x.png: is 64x64, more than 1000 pixels)"
