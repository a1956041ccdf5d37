import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ncsn_jax.app.data import masks as masks_module
from ncsn_jax.app.data.masks import make_masks
from ncsn_jax.errors import UserError


def test_left_half_is_observed():
    masks = make_masks("left", (4, 6, 3), 2, seed=0)
    assert masks.shape == (2, 4, 6, 3)
    assert masks[:, :, :3].all() and not masks[:, :, 3:].any()
    np.testing.assert_array_equal(make_masks("left", (1, 5, 1), 1, 0).ravel(), [1, 1, 1, 0, 0])


def test_boxes_are_random_have_the_stated_size_and_do_not_depend_on_their_count():
    masks = make_masks("box", (9, 12, 1), 50, seed=3)
    np.testing.assert_array_equal(masks[:5], make_masks("box", (9, 12, 1), 5, seed=3))
    assert not np.array_equal(masks[:5], make_masks("box", (9, 12, 1), 5, seed=4))
    sizes = set()
    for mask in masks[..., 0]:
        rows, columns = np.nonzero(~mask)
        high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert (~mask).sum() == high * wide  # exactly one box
        sizes.add((int(high), int(wide)))
    assert {s[0] for s in sizes} == {3, 4, 5, 6} and {s[1] for s in sizes} == {4, 5, 6, 7, 8}


def test_a_mask_file_is_white_where_observed(tmp_path):
    pixels = np.zeros((4, 6), np.uint8)
    pixels[0], pixels[1:3, 2:5] = 127, 128
    path = str(tmp_path / "mask.png")
    Image.fromarray(pixels).save(path)
    masks = make_masks(path, (4, 6, 3), 2, seed=0)
    np.testing.assert_array_equal(masks, np.broadcast_to((pixels == 128)[..., None], (2, 4, 6, 3)))
    larger = make_masks(path, (8, 12, 1), 1, seed=0)[0, ..., 0]
    np.testing.assert_array_equal(larger, np.kron(pixels == 128, np.ones((2, 2), bool)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "must be 'left', 'box' or an image file"),
        (b"hello", "is not a readable PNG, JPEG, WebP, BMP, TIFF or GIF image"),
        (b"\x89PNG\r\n\x1a\n", "is not a readable PNG"),
    ],
)
def test_an_invalid_mask_is_refused(content, message, tmp_path):
    path = tmp_path / "mask.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        make_masks(str(path), (8, 8, 1), 1, seed=0)


def test_a_huge_mask_is_refused_without_a_warning(tmp_path):
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    body = struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path = tmp_path / "mask.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body + bytes(4) + b"IDAT" + bytes(4))
    with pytest.raises(UserError, match=r"is not a readable .* image \(ValueError\)"):
        make_masks(str(path), (8, 8, 1), 1, seed=0)


def test_the_smallest_image_has_a_box():
    assert not make_masks("box", (1, 1, 1), 2, seed=0).any()


def test_transparent_pixels_of_a_mask_take_the_background(tmp_path, caplog):
    path = str(tmp_path / "mask.png")
    Image.new("LA", (8, 8)).save(path)
    assert make_masks(path, (8, 8, 1), 1, seed=0).all()
    with caplog.at_level("WARNING", "ncsn_jax"):
        assert not make_masks(path, (8, 8, 1), 1, seed=0, background=0).any()
    assert "is almost black" in caplog.text


@pytest.mark.parametrize(("factor", "count"), [(1, 60), (2.5, 24), (4, 15), (1000, 1)])
def test_random_masks_measure_one_of_so_many_pixels(factor, count):
    masks = masks_module.random_masks((10, 6), 5, 3, factor)
    assert masks.shape == (5, 10, 6) and (masks.sum(axis=(1, 2)) == count).all()
    np.testing.assert_array_equal(masks[:2], masks_module.random_masks((10, 6), 2, 3, factor))
    if factor in (2.5, 4):
        assert len({mask.tobytes() for mask in masks}) == 5
        assert not np.array_equal(masks, masks_module.random_masks((10, 6), 5, 4, factor))


@pytest.mark.parametrize("shape", [(8, 8), (9, 8), (7, 5)])
def test_random_coefficients_are_low_or_drawn_and_never_conjugates(shape):
    masks = masks_module.random_masks(shape, 50, 3, 2.0, fourier=True)
    # Those of a real image: itself and its conjugates, which are alone where k = -k.
    own = np.prod([2 if side % 2 == 0 else 1 for side in shape])
    values = (np.prod(shape) + own) // 2
    assert (masks.sum(axis=(1, 2)) == max(1, round(values / 2))).all()
    negative = np.roll(masks[:, ::-1, ::-1], 1, axis=(1, 2))  # at -k
    rows, columns = np.indices(shape)
    alone = (-rows % shape[0] == rows) & (-columns % shape[1] == columns)
    assert not (masks & negative)[:, ~alone].any()
    assert masks[:, 0, 0].all()
    share = (masks | negative).mean(axis=0)
    nearest = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    assert all(share[k] == 1 for k in nearest)
    drawn = share[(share < 1) & ~alone]
    assert drawn.min() > 0.05 and drawn.max() < 0.9  # about (1/2 - 1/6) / (1 - 1/6) = 0.4


def test_masks_of_a_file_are_those_of_all_images_or_of_each(tmp_path):
    masks = np.random.default_rng(0).integers(0, 2, (3, 4, 6)).astype(bool)
    path, read = str(tmp_path / "masks.npy"), masks_module.read_masks
    for saved, expected in ((masks, masks[:2]), (masks[0] * 1.0, masks[[0, 0]])):
        np.save(path, saved)
        found = read(path, (4, 6), 2, "config.x")
        assert found.dtype == bool
        np.testing.assert_array_equal(found, expected)
    for saved, count, message in (
        (masks, 4, r"config.x='.*' has 3 masks, but there are 4 images"),
        (masks[:, :3], 2, r"has shape \(3, 3, 6\), but must be \[4, 6\] or \[N, 4, 6\]"),
        (masks[None], 1, r"has shape \(1, 3, 4, 6\), but must be"),
        (masks * 2, 1, "must hold True or False, or 1 or 0, alone"),
        (masks.astype(str), 1, "must hold True or False, or 1 or 0, alone"),
    ):
        np.save(path, saved)
        with pytest.raises(UserError, match=message):
            read(path, (4, 6), count, "config.x")
