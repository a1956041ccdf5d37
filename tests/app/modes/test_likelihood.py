"""`--mode=likelihood` of a score in closed form, against one call of the library."""

import json

import jax
import numpy as np
import pytest

import run_lib
from ncsn_jax import images, likelihood
from ncsn_jax._random import Stream
from ncsn_jax.app import build, storage, workdirs
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
def test_bits_are_those_of_the_library_for_images_of_the_split(split, vp_run, gaussian):
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
    # The steps that a solver takes may differ where rounding differs.
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


def test_more_images_are_added_and_other_settings_are_refused(vp_run, gaussian):
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
    fields = dict(split="test", exact=False, num_projections=1, rtol=1e-4, atol=1e-4, end=1e-2)
    assert json.loads(storage.read(f"{vp_run}/{DIRECTORY}_more/settings.json")) == {
        **{f"likelihood.{name}": value for name, value in fields.items()},
        "sampling.dtype": "float32",
        "seed": runs.SEED,
        "step": runs.STEP,
        "images": workdirs.describe_images(build.load_images(config, "test")),
    }
    config.likelihood.rtol = 0.1
    with pytest.raises(UserError, match="likelihood.rtol is 0.0001 there and 0.1 here"):
        run_lib.likelihood(config, vp_run)
