"""Tests drawn pictures, and the reading of picture, array and metrics files."""

import numpy as np
import pytest
from PIL import Image

from ncsn_jax.app import pictures


def plain(values):
    """Returns images of 4 x 4 pixels, each of one grey."""
    return np.stack([np.full((4, 4, 1), value, np.uint8) for value in values])


def test_images_are_rounded_to_the_nearest_byte_and_clipped():
    x = np.array([-0.2, 0.0, 0.5, 127.4 / 255, 1.0, 1.7])
    np.testing.assert_array_equal(pictures.to_uint8(x), [0, 0, 128, 127, 255, 255])


def test_a_grid_has_images_row_by_row_on_grey():
    grid = pictures.grid(plain([10, 20, 30]), columns=2)
    assert grid.shape == (11, 11, 1)
    assert [grid[1, 1, 0], grid[1, 6, 0], grid[6, 1, 0], grid[6, 6, 0]] == [10, 20, 30, 128]


def test_a_png_is_the_image_enlarged_by_a_whole_factor(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    for side, array in (("rgb", image), ("grey", image[..., :1])):
        path = tmp_path / f"{side}.png"
        path.write_bytes(pictures.encode_png(array, min_side=11))  # 4 pixels times 3
        with Image.open(path) as found:
            expected = np.kron(array, np.ones((3, 3, 1), np.uint8))
            np.testing.assert_array_equal(np.atleast_3d(np.asarray(found)), expected)


def test_a_filmstrip_has_a_sample_in_each_row_and_its_frames_in_columns():
    frames = np.stack([plain([10 * f + n for n in range(3)]) for f in range(5)])
    strip = pictures.filmstrip(frames, rows=2, columns=3)
    assert strip.shape == (11, 16, 1)
    assert strip[1::5, 1::5, 0].tolist() == [[0, 20, 40], [1, 21, 41]]


def test_an_array_that_unpacks_to_far_more_than_its_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_ALWAYS_UNPACKED", 10_000)
    np.savez_compressed(tmp_path / "bomb.npz", samples=np.zeros(10**6, np.uint8))
    with pytest.raises(ValueError, match="samples.npy unpacks to 1000128 bytes"):
        pictures.read_npz(str(tmp_path / "bomb.npz"), "samples")
    np.savez_compressed(tmp_path / "fine.npz", samples=np.zeros(5000, np.uint8))
    assert not pictures.read_npz(str(tmp_path / "fine.npz"), "samples")[0].any()


@pytest.mark.parametrize(
    ("line", "sound"),
    [
        ('{"step": 1, "loss": 2, "loss_by_level/0000_sigma_1": null, "loss_by_level/$": 1}', True),
        ("[]", False),
        ('{"loss": 2}', False),
        ('{"step": "1"}', False),
        ('{"step": true}', False),
        ('{"step": 1, "loss": "NaN"}', False),
        ('{"step": 1, "loss": 1e999}', False),
        ("[" * 100_000, False),
    ],
)
def test_invalid_metrics_lines_are_named(line, sound, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 1.0}\n' + line + '\n{"step": 2, "lo')
    if sound:
        pictures.main(["losses", str(tmp_path)])
        assert (tmp_path / "losses.png").read_bytes()[:4] == b"\x89PNG"
    else:
        with pytest.raises(
            SystemExit, match=r"metrics.jsonl cannot be read: line 2 is not a JSON object"
        ):
            pictures.main(["losses", str(tmp_path)])


def test_losses_without_levels_are_drawn():
    """There is no warning, which would be an error here."""
    pytest.importorskip("matplotlib")
    lines = [{"step": step, "loss": 0.5} for step in (1, 2)]
    drawn = pictures.plot_losses(lines)
    assert drawn.startswith(b"\x89PNG")
    assert pictures.plot_losses([*lines, {"step": 2, "evaluation/fid_50000": 0.1}]) == drawn


def test_channels_that_are_not_colours_are_shown_side_by_side_in_grey():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 5), dtype=np.uint8)
    expected = np.concatenate([images[..., [c]] for c in range(5)], axis=2)
    np.testing.assert_array_equal(pictures.grid(images), pictures.grid(expected))
