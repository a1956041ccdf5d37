import json
import logging
import shutil
import zlib

import jax
import numpy as np
import pytest

from ncsn_jax import training
from ncsn_jax.app import checkpoints
from ncsn_jax.errors import UserError


def make_state(value):
    optimizer = training.make_optimizer(1e-3, grad_clip=1.0)
    # Noise cannot be compressed, so the parameters are in the largest file.
    noise = np.random.default_rng(0).standard_normal((40, 50), np.float32)
    params = {"params": {"kernel": value + noise}}
    opt_state = jax.tree.map(np.asarray, optimizer.init(params))
    return training.TrainState(np.asarray(value, np.int32), params, {}, opt_state)


@pytest.fixture
def workdir(tmp_path):
    with checkpoints.Checkpoints(str(tmp_path)) as store:
        for step in (1, 2, 3):
            store.save(step, make_state(step))
    return tmp_path


def restore(workdir, like=None):
    with checkpoints.Checkpoints(str(workdir)) as store:
        return store.load(make_state(0) if like is None else like)


def test_round_trip_keeps_the_newest_checkpoints(workdir):
    step, state = restore(workdir)
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, state, make_state(3))
    with checkpoints.Checkpoints(str(workdir)) as store:
        assert store.steps() == [3, 2]


def test_an_empty_directory_loads_none(tmp_path):
    with checkpoints.Checkpoints(str(tmp_path), read_only=True) as store:
        assert store.steps() == [] and store.load(make_state(0)) is None
    assert list(tmp_path.iterdir()) == []
    assert restore(tmp_path) is None


def test_opening_removes_an_unfinished_save(tmp_path):
    leftover = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    leftover.mkdir(parents=True)
    with checkpoints.Checkpoints(str(tmp_path)) as store:
        store.save(5, make_state(5))
    assert not leftover.exists()
    assert restore(tmp_path)[0] == 5


def test_keep_and_keep_every_choose_the_checkpoints_kept(tmp_path):
    with checkpoints.Checkpoints(str(tmp_path), keep=3, keep_every=4) as store:
        for step in range(1, 11):
            store.save(step, make_state(step))
    with checkpoints.Checkpoints(str(tmp_path), read_only=True) as store:
        assert store.steps() == [10, 9, 8, 4]


def test_the_best_checkpoint_of_each_kind_of_distance_is_kept_over_resumes(tmp_path):
    def save(kind, distances, kept):
        with checkpoints.Checkpoints(str(tmp_path), keep=1, keep_best=True) as store:
            for step, distance in distances.items():
                store.save(step, make_state(step))
                store.wait()
                if distance:
                    store.set_distance(step, kind, distance)
            assert store.steps() == kept

    save("a", {1: 0.5, 2: 0.2, 3: None, 4: 0.3}, [4, 2])
    save("b", {5: 0.9}, [5, 2])
    save("a", {6: 0.1, 7: None}, [7, 6, 5])
    for step in ("6", "7"):
        flip_a_bit(largest_file(tmp_path / "checkpoints" / step / "state"))
    with checkpoints.Checkpoints(str(tmp_path), keep=1, keep_best=True) as store:
        assert store.distances("a") == {6: 0.1}
        assert store.load(make_state(0))[0] == 5
        assert store.distances("a") == {} and store.distances("b") == {5: 0.9}


def largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


# Orbax closes its event loop while other reads of a damaged checkpoint may still be under way.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damage",
    [
        lambda d: flip_a_bit(largest_file(d / "state")),
        lambda d: largest_file(d / "state").write_bytes(b""),
        lambda d: largest_file(d / "meta").write_text("{"),
        lambda d: largest_file(d / "meta").unlink(),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(workdir, damage, caplog):
    damage(workdir / "checkpoints" / "3")
    with caplog.at_level(logging.WARNING, "ncsn_jax.app.checkpoints"):
        step, state = restore(workdir)
    assert step == 2
    jax.tree.map(np.testing.assert_array_equal, state, make_state(2))
    messages = [r.getMessage() for r in caplog.records if r.name == "ncsn_jax.app.checkpoints"]
    assert messages[0].startswith("checkpoint 3 is damaged")
    assert messages[1].startswith("checkpoint 3 was moved to")
    assert (workdir / "damaged" / "3").is_dir()
    with checkpoints.Checkpoints(str(workdir)) as store:
        store.save(3, make_state(3))
    assert restore(workdir)[0] == 3


def describe_otherwise(path, **changes):
    """Changes the metadata of a checkpoint."""
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | changes))


def test_edited_metadata_counts_as_damage_and_an_unknown_format_is_refused(workdir):
    path = workdir / "checkpoints" / "3" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    assert set(meta) == {"format", "leaves", "crc32", "crc32_of_this"} and meta["format"] == 1
    describe_otherwise(path, leaves={})
    with checkpoints.Checkpoints(str(workdir), read_only=True) as store:
        assert store.load(make_state(0))[0] == 2
    other = {"format": 2, "leaves": meta["leaves"], "crc32": meta["crc32"]}
    crc = zlib.crc32(json.dumps(other, sort_keys=True).encode())
    describe_otherwise(path, **other, crc32_of_this=crc)
    with pytest.raises(UserError, match="checkpoints/3 has format 2; this version reads format 1"):
        restore(workdir)


def test_damaged_checkpoints_of_one_step_are_set_aside_under_separate_names(workdir):
    for name in ("3", "3_2", "3_3"):
        flip_a_bit(largest_file(workdir / "checkpoints" / "3" / "state"))
        assert restore(workdir)[0] == 2
        assert (workdir / "damaged" / name / "state").is_dir()
        with checkpoints.Checkpoints(str(workdir)) as store:
            store.save(3, make_state(3))
    assert sorted(p.name for p in (workdir / "damaged").iterdir()) == [
        *("3", "3_2", "3_3", "README.txt")
    ]


@pytest.mark.parametrize(
    ("reason", "said"),
    [("No space left", "no space left on the device"), ("lost\n\nmount", "lost mount")],
)
def test_a_failed_save_names_the_last_complete_checkpoint(reason, said, workdir, monkeypatch):
    def fail(*_, **__):
        raise ValueError(reason)

    with checkpoints.Checkpoints(str(workdir)) as store:
        monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "save", fail)
        message = f"checkpoints: {said}; last complete checkpoint: step 3"
        with pytest.raises(UserError, match=message):
            store.save(4, make_state(4))
        shutil.rmtree(workdir / "checkpoints")
        with pytest.raises(UserError, match=f"{said}; last complete checkpoint: none"):
            store.save(4, make_state(4))


def test_a_different_dtype_is_refused(workdir):
    like = make_state(0)
    like.params["params"]["kernel"] = np.zeros((40, 50), np.float16)
    with pytest.raises(UserError, match=r"kernel.*'float32'\] there and .*'float16'\] here"):
        restore(workdir, like)


def test_a_checksum_mismatch_counts_as_damage(workdir):
    """The checksums are compared even if orbax restores the data without an error."""
    folder = workdir / "checkpoints"
    shutil.rmtree(folder / "3" / "state")
    shutil.copytree(
        folder / "2" / "state", folder / "3" / "state"
    )  # intact, but from a different step
    assert restore(workdir)[0] == 2


def test_if_all_checkpoints_are_damaged_loading_fails_and_deletes_nothing(workdir):
    for step in (2, 3):
        flip_a_bit(largest_file(workdir / "checkpoints" / str(step) / "state"))
    for _ in range(2):  # repeating the command gives the same error
        with pytest.raises(UserError, match=r"can be read: \[3, 2\] are all damaged"):
            restore(workdir)
    assert not (workdir / "damaged").exists()


def test_read_only_changes_nothing(workdir):
    flip_a_bit(largest_file(workdir / "checkpoints" / "3" / "state"))
    begun = workdir / "checkpoints" / "4.orbax-checkpoint-tmp"
    begun.mkdir()
    with checkpoints.Checkpoints(str(workdir), read_only=True) as store:
        assert store.load(make_state(0))[0] == 2
    assert begun.exists() and not (workdir / "damaged").exists()


def test_a_different_network_is_refused_and_named(workdir):
    like = make_state(0)
    like.params["params"]["kernel"] = np.zeros((40, 51), np.float32)
    with pytest.raises(UserError, match=r"kernel.*\[40, 50\].* there and \[\[40, 51\]"):
        restore(workdir, like)
    assert restore(workdir)[0] == 3
