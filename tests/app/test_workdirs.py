"""Tests which runs a work directory accepts."""

import json

import numpy as np
import pytest

from ncsn_jax.app import schema, workdirs
from ncsn_jax.app.data import Images
from ncsn_jax.errors import UserError
from tests import tiny
from tests.running import load_config


def test_changeable_fields_may_differ_and_others_are_refused_and_named(tmp_path):
    assert not workdirs.compare(load_config(), str(tmp_path))
    workdirs.write_config(load_config(), str(tmp_path))
    assert workdirs.compare(load_config(), str(tmp_path))
    for field, value in (("microbatches", 2), ("remat", True), ("skip_nonfinite", 3)):
        assert workdirs.compare(load_config(**{f"training.{field}": value}), str(tmp_path))
    changed = load_config(**{"training.dtype": "bfloat16", "seed": 5})
    message = "seed is 0 there and 5 here; training.dtype is 'float32' there and 'bfloat16' here"
    with pytest.raises(UserError, match=message):
        workdirs.compare(changed, str(tmp_path))


def test_a_schedule_that_ends_at_the_last_step_keeps_the_number_of_steps(tmp_path):
    config = load_config(**{"optim.schedule": "cosine"})
    workdirs.write_config(config, str(tmp_path))
    config.training.num_steps += 1
    with pytest.raises(UserError, match="training.num_steps is .* there and .* here"):
        workdirs.compare(config, str(tmp_path))


def test_a_run_resumes_with_different_values_of_only_these_fields(tmp_path):
    """The network has a ladder and ignores the fields of SDEs and NCSN++."""
    changeable = {
        *(f"data.{name}" for name in ("data_dir", "cache_bytes", "prefetch", "workers")),
        *(f"training.{name}" for name in ("microbatches", "remat", "num_steps", "log_every")),
        *(f"training.{name}" for name in ("checkpoint_every", "checkpoints_kept", "keep_every")),
        *("training.sample_every", "training.keep_best", "training.skip_nonfinite"),
        *("model.beta_min", "model.beta_max", "model.num_classes", "model.label_dropout"),
        "optim.decay_after",
    }
    sections = {
        "sampling",
        "inpainting",
        "restore",
        "likelihood",
        "interpolation",
        "average",
        "classifier",
        "evaluation",
        "ncsnpp",
        "edm",
        "plan",
    }
    config, path = load_config(), tmp_path / "config.json"
    written = schema.flatten(config)
    assert not changeable - written.keys() and len(written) > 80
    for field in written:
        path.write_text(json.dumps(written | {field: "other"}))
        if field in changeable or field.partition(".")[0] in sections:
            assert workdirs.compare(config, str(tmp_path)), field
        else:
            with pytest.raises(UserError, match=f"configuration: {field} is 'other' there and"):
                workdirs.compare(config, str(tmp_path))


EDM = {"model.name": "ncsnpp", "training.sde": "edm"}


@pytest.mark.parametrize(
    ("begun", "unused"),
    [
        ({}, {"ncsnpp.dropout", "model.beta_max"}),
        ({"training.continuous": True}, {"ncsnpp.dropout", "model.beta_max", "model.num_levels"}),
        ({"model.name": "ncsnpp", "training.sde": "ve"}, {"model.beta_max"}),
        ({"model.name": "ncsnpp", "training.sde": "vp"}, {"model.sigma_begin", "model.sigma_end"}),
        (
            EDM | {"edm.preconditioning": "ve"},
            {"model.beta_max", "model.sigma_begin", "model.sigma_end"},
        ),
        (EDM | {"edm.noise": "ve"}, {"model.beta_max"}),
        (EDM | {"edm.preconditioning": "vp"}, {"model.sigma_begin", "model.sigma_end"}),
    ],
)
def test_fields_that_training_ignores_may_differ(begun, unused, tmp_path):
    workdirs.write_config(load_config(**begun), str(tmp_path))
    values = {"ncsnpp.dropout": 0.5, "model.beta_max": 9.0, "model.sigma_begin": 3.0}
    for field, value in (values | {"model.sigma_end": 0.1, "model.num_levels": 7}).items():
        config = load_config(**begun | {field: value})
        if field in unused:
            assert workdirs.compare(config, str(tmp_path))
        else:
            with pytest.raises(UserError, match=field):
                workdirs.compare(config, str(tmp_path))


def test_a_config_json_with_different_fields_is_refused(tmp_path):
    workdirs.write_config(load_config(), str(tmp_path))
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text())
    for other in (
        {k: v for k, v in whole.items() if k != "training.remat"},
        whole | {"training.extra": 1},
    ):
        path.write_text(json.dumps(other))
        with pytest.raises(
            UserError, match="a run of another version .* training.(remat|extra); choose"
        ):
            workdirs.compare(load_config(), str(tmp_path))


def test_checkpoints_without_a_config_json_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds checkpoints but no config.json"):
        workdirs.compare(load_config(), str(tmp_path))


def test_different_images_are_refused(tmp_path):
    images = np.arange(4 * 3, dtype=np.uint8).reshape(3, 2, 2, 1)
    claim = lambda images, **options: workdirs.claim_images(
        Images(images), str(tmp_path), **options
    )
    claim(images, read_only=True)
    assert list(tmp_path.iterdir()) == []
    claim(images)
    claim(images.copy())
    for other in (images[:2], images + 1):
        with pytest.raises(UserError, match="holds a run on different images"):
            claim(other)


def test_image_files_are_compared_by_name_and_size(tmp_path):
    """See `Images.identity`: nothing is decoded for it."""
    images = np.zeros((3, 2, 2, 1), np.uint8)
    claim = lambda images, files: workdirs.claim_images(
        Images(images, identity=files), str(tmp_path)
    )
    claim(images, "abc")
    assert json.loads((tmp_path / "images.json").read_text()) == {
        "shape": [3, 2, 2, 1],
        "files": "abc",
    }
    claim(images + 1, "abc")
    for other, files, message in ((images[:2], "abc", "shape is"), (images, "abd", "files is")):
        with pytest.raises(UserError, match=f"holds a run on different images: {message}"):
            claim(other, files)


@pytest.mark.parametrize("index", [0, 1000, 1998])
def test_every_second_of_2000_images_enters_the_checksum(index, tmp_path):
    images = np.zeros((2000, 2, 2, 1), np.uint8)
    workdirs.claim_images(Images(images), str(tmp_path))
    images[index, 1, 1] = 1
    with pytest.raises(UserError, match="on different images: crc32_of_a_thousand is"):
        workdirs.claim_images(Images(images), str(tmp_path))


def test_a_missing_checkpoint_and_a_missing_run_have_different_messages(tmp_path):
    config = tiny.get_config()
    with pytest.raises(UserError, match="holds no run: train first"):
        workdirs.load(config, str(tmp_path))
    workdirs.write_config(config, str(tmp_path))
    with pytest.raises(UserError, match="holds no checkpoint: train first"):
        workdirs.load(config, str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "it does not hold a JSON object"), ("[" * 100_000, "recursion")],
)
def test_an_edited_config_json_is_reported_on_one_line(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=f"config.json cannot be read: .*{message}"):
        workdirs.compare(load_config(), str(tmp_path))


def test_two_processes_cannot_train_in_one_directory(tmp_path):
    lock = workdirs.lock
    refused = pytest.raises(UserError, match="another process is training")
    with lock(str(tmp_path)), refused, lock(str(tmp_path)):
        pass
    with lock(str(tmp_path)):
        pass


def test_an_impossible_workdir_is_refused_on_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for name, message in (
        ("\udcff", "cannot be created: 'utf-8' codec"),
        ("\0", "embedded null"),
        ("file/below", "cannot be created: Not a directory$"),
    ):
        with pytest.raises(UserError, match=message):
            workdirs.make(str(tmp_path / name))
    refused = pytest.raises(UserError, match="^--workdir='/proc' cannot be written to: .+$")
    with refused, workdirs.lock("/proc"):
        pass
