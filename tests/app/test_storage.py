"""Tests work directories and data in a stand-in for object storage, and files of killed processes."""

import io
import os
import platform
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.fake_gcs import FakeGcs
from ncsn_jax.app import metrics, storage
from ncsn_jax.app.data import cache, load, masks
from ncsn_jax.app.modes import shared
from ncsn_jax.errors import UserError
from tests import faults
from tests.running import ROOT, kill_at, load_config, run


def test_a_run_works_with_its_directory_and_images_in_object_storage(tmp_path, monkeypatch):
    """The run is killed, resumed and damaged, and gives the same numbers as on a disk."""
    pytest.importorskip("gcsfs")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with FakeGcs() as gcs:
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(pictures / f"{i}.png")
            gcs.put("bucket", f"data/{i}.png", {}, (pictures / f"{i}.png").read_bytes())
        folder = "--config.data.dataset=image_folder"
        there = (folder, "--config.data.data_dir=gs://bucket/data")
        for name, value in gcs.environment.items():
            monkeypatch.setenv(name, value)
        kill_at("step 40/", "gs://bucket/run", *there)
        result = run("gs://bucket/run", *there)
        assert result.returncode == 0, result.stderr
        begun = int(re.search(r"from step (\d+)", result.stdout)[1])
        assert begun >= 20, (
            "the saves up to step 20 were complete, as that of step 30 has waited for them"
        )
        local = tmp_path / "run"
        faults.finish(local, folder, f"--config.data.data_dir={pictures}")
        found = gcs.objects["bucket", "run/samples/step_60/samples.npz"].data
        expected = np.load(local / "samples/step_60/samples.npz")["samples"]
        np.testing.assert_array_equal(np.load(io.BytesIO(found))["samples"], expected)
        lines = gcs.objects["bucket", "run/metrics.jsonl"].data.splitlines()
        assert b'"step": 60' in lines[-1]
        log = gcs.objects["bucket", "run/log.txt"].data.decode()
        assert "step 60/60" in log

        (name,) = (
            n for n in gcs.names("bucket") if n.startswith("run/checkpoints/60/state/manifest")
        )
        gcs.put("bucket", name, {}, gcs.objects["bucket", name].data[:10])
        result = run("gs://bucket/run", *there)
        assert result.returncode == 0, result.stderr
        assert "checkpoint 60 was moved to gs://bucket/run/damaged/60" in result.stdout
        assert "from step 50" in result.stdout
        assert gcs.objects["bucket", "run/samples/step_60/samples.npz"].data == found
        names = gcs.names("bucket", "run/checkpoints/")
        assert {n.split("/")[2] for n in names} == {"50", "60"}


@pytest.mark.filterwarnings("ignore:Sending a large body")  # aiohttp warns above a mebibyte
def test_events_in_object_storage_start_a_new_file_after_a_mebibyte(tmp_path, monkeypatch):
    """Each upload sends a whole file. Lines and events are there after `flush(now=True)`."""
    pytest.importorskip("gcsfs")
    with FakeGcs() as gcs:
        for name, value in gcs.environment.items():
            monkeypatch.setenv(name, value)
        with metrics.Writer("gs://bucket/run") as writer:
            for step in range(1, 13):
                writer.write_image(step, "samples", bytes(300_000), (3, 4, 1))
            writer.flush()
            writer.write_scalars(13, {"loss": 2.5})
            writer.flush(now=True)  # less than ten seconds later
            assert gcs.objects["bucket", "run/metrics.jsonl"].data.endswith(b'"loss": 2.5}\n')
            names = gcs.names("bucket", "run/events")
            files = [gcs.objects["bucket", name].data for name in names]
    assert [len(data) // 300_000 for data in files] == [4, 4, 4, 0]
    for name, data in zip(names, files, strict=True):
        (tmp_path / name.removeprefix("run/")).write_bytes(data)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert [e.step for e in events.Images("samples")] == list(range(1, 13))
    assert [e.step for e in events.Scalars("loss")] == [13]


def test_unusable_object_storage_is_reported_on_one_line(tmp_path):
    with pytest.raises(UserError, match=r"--workdir='nowhere://bucket/run' cannot be used: "):
        storage.check("nowhere://bucket/run", "--workdir")
    storage.check(str(tmp_path), "--workdir")


def test_a_file_is_written_completely_or_not_at_all(tmp_path):
    path = str(tmp_path / "file")
    storage.write(path, b"old")
    with pytest.raises(ZeroDivisionError), storage.replacing(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert storage.read(path) == b"old" and storage.list_names(str(tmp_path)) == ["file"]
    with pytest.raises(OSError, match="nothing/file") as caught:
        storage.write(str(tmp_path / "nothing" / "file"), b"")
    assert caught.value.filename == str(tmp_path / "nothing" / "file")


def test_leftovers_of_killed_processes_are_removed_but_not_files_being_written(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    node = platform.node()
    names = {
        f"a.png.{node}.{ended.pid}.tmp": False,
        f"a.png.{node}.{os.getpid()}.tmp": True,
        f"a.png.elsewhere.{ended.pid}.tmp": True,
        "a.tmp": True,
    }
    for name in names:
        (tmp_path / name).write_bytes(b"")
    storage.remove_leftovers(str(tmp_path))
    assert {name: (tmp_path / name).exists() for name in names} == names
    storage.remove_leftovers(str(tmp_path / "nothing"))


def test_a_growing_file_is_appended_to_across_processes(tmp_path):
    for text in (b"one\n", b"two\n"):
        file = storage.Growing(str(tmp_path / "log"))
        file.write(text)
        file.flush()
        assert storage.read(str(tmp_path / "log")).endswith(text)
        file.close()
    assert storage.read(str(tmp_path / "log")) == b"one\ntwo\n"


def test_read_json_returns_an_object_or_none_or_fails_on_one_line(tmp_path):
    path = tmp_path / "a.json"
    assert storage.read_json(str(path)) is None
    assert storage.read_json(str(path / "below")) is None
    path.write_text('{"a": [1]}')
    assert storage.read_json(str(path)) == {"a": [1]}
    for text in ("[]", "{", "[" * 100_000, "\udcff"):
        path.write_text(text, errors="surrogateescape")
        with pytest.raises(UserError, match="a.json cannot be read: "):
            storage.read_json(str(path))


@pytest.mark.parametrize("text", ["", ".", "a/~/b", "gs://bucket/~/run", "~nobody_of_this_name/x"])
def test_a_path_without_a_home_directory_is_unchanged(text):
    assert storage.path(text) == text


def test_tilde_is_expanded_in_environment_variables_and_fields(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NCSN_JAX_CACHE", "~/cache")
    monkeypatch.setenv("TFDS_DATA_DIR", "~/tfds")
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / "in" / "x.png")
    assert len(load("image_folder", "~/in", 8, 1)) == 1
    assert len(load("digits", "", 8, 1)) == 1500
    config = load_config(**{"inpainting.images": "~/in"})
    assert len(shared.load_originals(config, "", 2)) == 1
    assert masks.make_masks("~/in/x.png", (8, 8, 1), 1, 0).all()
    monkeypatch.delenv("NCSN_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/xdg")
    assert cache.directory() == f"{tmp_path}/xdg/ncsn_jax"
    assert sorted(os.listdir(tmp_path)) == ["cache", "in", "tfds"]


def test_the_application_runs_without_fcntl(tmp_path):
    script = f"""
import sys, warnings
sys.modules["fcntl"] = None
warnings.simplefilter("ignore")
import main, run_lib
from ncsn_jax.app import workdirs
from ncsn_jax.app.data import load
with workdirs.lock({str(tmp_path)!r}):
    assert len(load("digits", {str(tmp_path)!r}, 8, 1)) == 1500
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
