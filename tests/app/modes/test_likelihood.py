"""Compares `--mode=likelihood` with one call of the library, for a score in closed form."""

import json
import os

import jax
import numpy as np
import pytest

import run_lib
from ncsn_jax import images, likelihood
from ncsn_jax._random import Stream
from ncsn_jax.app import build, storage
from ncsn_jax.errors import UserError
from tests.app.modes import runs

DIRECTORY = f"likelihood/step_{runs.STEP}"


def make_config(split, **changes):
    return runs.vp_config(
        **{
            "likelihood.split": split,
            "likelihood.num_images": 5,
            "likelihood.rtol": 1e-4,
            "likelihood.atol": 1e-4,
            "likelihood.end": 1e-2,
            "sampling.name": split,
        }
        | changes
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_bits_match_the_library_for_images_of_the_split(split, vp_run, gaussian):
    config = make_config(split)
    run_lib.likelihood(config, vp_run)
    bits, evaluations = runs.read(vp_run, f"{DIRECTORY}_{split}", "bits_per_dim.npz")[
        "bits_per_dim"
    ].T
    dequantization, projections = runs.keys(Stream.LIKELIHOOD, range(5))

    @jax.jit
    def expected():
        x = images.dequantize(dequantization, build.load_images(config, split)[:5])
        nats, info = likelihood.log_prob(
            *(projections, gaussian.process, gaussian.score, images.center(x)),
            **dict(rtol=1e-4, atol=1e-4, end=1e-2, return_info=True),
        )
        return likelihood.bits_per_dim(nats, x.shape, width=2.0), info.evaluations

    expected_bits, expected_evaluations = expected()
    # Rounding may change the steps that a solver takes.
    np.testing.assert_allclose(bits, expected_bits, rtol=1e-4)
    np.testing.assert_allclose(evaluations, expected_evaluations, atol=20)
    assert np.ptp(bits) > 1e-3
    summary = json.loads(storage.read(f"{vp_run}/{DIRECTORY}_{split}/summary.json"))
    assert summary == {
        "images": 5,
        "bits_per_dim": pytest.approx(bits.mean(dtype=float)),
        "standard_error": pytest.approx(bits.std(ddof=1, dtype=float) / np.sqrt(5)),
        "evaluations": pytest.approx(evaluations.mean()),
    }


def test_more_images_are_added_and_different_settings_are_refused(vp_run, gaussian):
    config = make_config("test", **{"sampling.name": "more", "likelihood.num_images": 1})

    def values():
        run_lib.likelihood(config, vp_run)
        summary = json.loads(storage.read(f"{vp_run}/{DIRECTORY}_more/summary.json"))
        return runs.read(vp_run, f"{DIRECTORY}_more", "bits_per_dim.npz")["bits_per_dim"], summary

    first, summary = values()
    assert summary["standard_error"] is None and summary["images"] == len(first) == 1
    config.likelihood.num_images = 2
    both, summary = values()
    assert summary["images"] == len(both) == 2
    np.testing.assert_array_equal(both[:1], first)
    config.likelihood.num_images = 1
    again, summary = values()
    np.testing.assert_array_equal(again, both)
    assert summary["images"] == 1 and summary["bits_per_dim"] == pytest.approx(first[0, 0])
    config.likelihood.rtol = 0.1
    with pytest.raises(UserError, match="likelihood.rtol is 0.0001 there and 0.1 here"):
        run_lib.likelihood(config, vp_run)


def test_the_summary_covers_the_requested_images(vp_run, flows):
    """The bits are 1, 1.5, 3, 5.5 and 9; the evaluations are 10, 14, 18, 22 and 26."""
    config = make_config("test", **{"sampling.name": "summary"})
    directory, images = f"{vp_run}/likelihood/step_4_summary", build.load_images(config, "test")
    # Requested count, batches made, batch size, stored count; bits, their standard error,
    # evaluations. For four, 1.0104 is the root of (1.75^2 + 1.25^2 + 0.25^2 + 2.75^2) / 3 / 4.
    for count, made, size, there, *expected in [
        (4, [[0, 1, 2], [3]], 3, 4, 2.75, 1.010363, 16),
        (2, [], 2, 4, 1.25, 0.25, 12),
        (1, [], 1, 4, 1.0, None, 10),
        (5, [[4]], 3, 5, 4.0, 1.474788, 18),
    ]:
        config.likelihood.num_images = count
        flows.clear()
        run_lib.likelihood(config, vp_run)
        assert [call["indices"] for call in flows] == made
        for call in flows:
            assert (call["name"], call["size"]) == ("bits_per_dim", size)
            np.testing.assert_array_equal(call["array"], images[call["indices"]])
            runs.assert_ema(call["params"], config, vp_run)
        written = ["bits_per_dim.npz", "settings.json", "summary.json"]
        assert sorted(os.listdir(directory)) == written
        found = runs.read(directory, "bits_per_dim.npz")
        assert list(found) == ["bits_per_dim"] and found["bits_per_dim"].dtype == np.float32
        values = [[1, 10], [1.5, 14], [3, 18], [5.5, 22], [9, 26]][:there]
        np.testing.assert_array_equal(found["bits_per_dim"], values)
        bits, error, evaluations = expected
        assert storage.read_json(f"{directory}/summary.json") == {
            "bits_per_dim": bits,
            "standard_error": error if error is None else pytest.approx(error, rel=1e-5),
            "images": count,
            "evaluations": evaluations,
        }


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_request_beyond_the_split_evaluates_the_whole_split(split, vp_run, flows):
    config = make_config(split, **{"sampling.name": f"all_{split}", "sampling.batch_size": 5000})
    config.likelihood.num_images = 10_000
    run_lib.likelihood(config, vp_run)
    images = np.asarray(build.load_images(config, split))
    (call,) = flows
    assert call["indices"] == list(range(len(images))) and call["size"] == len(images)
    np.testing.assert_array_equal(call["array"], images)
    directory = f"{vp_run}/likelihood/step_4_all_{split}"
    assert storage.read_json(f"{directory}/summary.json")["images"] == len(images)
    assert runs.settings(directory) == {
        "likelihood.split": split,
        "likelihood.exact": False,
        "likelihood.num_projections": 1,
        "likelihood.rtol": 1e-4,
        "likelihood.atol": 1e-4,
        "likelihood.end": 1e-2,
        "sampling.dtype": "float32",
        "sampling.precision": "default",
        "images": build.load_images(config, split).describe(),
        "seed": 7,
        "step": 4,
    }
    others = {
        "likelihood.split": "test" if split == "train" else "train",
        "likelihood.exact": True,
        "likelihood.num_projections": 2,
        "likelihood.rtol": 1e-3,
        "likelihood.atol": 1e-3,
        "likelihood.end": 2e-2,
        "sampling.dtype": "bfloat16",
        "sampling.precision": "high",
    }
    runs.assert_others_are_refused(run_lib.likelihood, config, vp_run, others)
    config.likelihood.split = others["likelihood.split"]
    with pytest.raises(UserError, match="with other settings: images is"):
        run_lib.likelihood(config, vp_run)


def test_an_image_with_non_finite_bits_is_named_and_not_stored(vp_run, flows, monkeypatch):
    judge = lambda self, params, array, size, indices: (
        np.where(np.asarray(indices) == 4, np.inf, 1.0),
        np.zeros(len(array)),
    )
    monkeypatch.setattr(runs.Flow, "__call__", judge)
    config = make_config("test", **{"sampling.name": "infinite"})
    with pytest.raises(UserError, match=r"of image 4 is not finite: .*rtol=0.0001 and atol=0.0001"):
        run_lib.likelihood(config, vp_run)
    directory = f"{vp_run}/likelihood/step_4_infinite"
    assert sorted(os.listdir(directory)) == ["parts", "settings.json"]
    assert len(os.listdir(f"{directory}/parts")) == 1
