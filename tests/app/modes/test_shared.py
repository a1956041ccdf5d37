"""The images to work on, and where results are kept."""

import numpy as np
import pytest
from PIL import Image

from ncsn_jax.app import build, data
from ncsn_jax.app.modes import shared
from tests.app.modes import runs


@pytest.mark.parametrize(("crop_size", "side"), [(0, 12), (-1, 12), (10, 10)])
def test_own_images_are_cropped_and_resized_as_those_of_a_directory_are(crop_size, side, tmp_path):
    """Where images of the data fit as they are, the largest squares of these are taken."""
    expected = []
    for i in range(3):
        image = Image.fromarray(runs.drawn(i, (12, 16, 3)))
        image.save(tmp_path / f"{i}.png")
        left, top = (16 - side) // 2, (12 - side) // 2
        square = image.convert("L").crop((left, top, left + side, top + side))
        expected.append(np.asarray(square.resize((8, 8), Image.Resampling.BILINEAR))[..., None])
    config = runs.ladder_config(**{"data.crop_size": crop_size, "inpainting.images": str(tmp_path)})
    for count in (1, 2, 5):
        found = shared.load_originals(config, count)
        np.testing.assert_array_equal(found, expected[:count])


def test_what_is_left_out_of_own_images_is_named(tmp_path, caplog):
    Image.fromarray(runs.drawn(0)[..., 0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"torn")
    config = runs.ladder_config(**{"inpainting.images": str(tmp_path)})
    with caplog.at_level("WARNING", "ncsn_jax"):
        np.testing.assert_array_equal(shared.load_originals(config, 2), [runs.drawn(0)])
    assert f"{tmp_path}: left out 1 unreadable (b.png" in caplog.text


def test_images_to_work_on_are_the_first_of_the_test_split():
    expected = data.load("digits", "", 8, 1, split="test")
    found = shared.load_originals(runs.ladder_config(), 3)
    np.testing.assert_array_equal(found, expected[:3])
    assert len(shared.load_originals(runs.ladder_config(), 10_000)) == len(expected)
    assert not np.array_equal(found, build.load_images(runs.ladder_config())[:3])


def test_results_are_kept_by_kind_step_and_name():
    config = runs.ladder_config()
    loaded = shared.Loaded(config, "run", 12, None)
    assert loaded.directory("samples") == "run/samples/step_12"
    config.sampling.name = "fine"
    assert loaded.directory("inpainting") == "run/inpainting/step_12_fine"
    found = loaded.settings("sampling.rtol", "likelihood.split")
    assert found == {"sampling.rtol": 1e-3, "likelihood.split": "test", "seed": 7, "step": 12}
