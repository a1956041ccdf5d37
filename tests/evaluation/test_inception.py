"""FID's network against the figures of torch-fidelity, with weights that are drawn by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import evaluation
from tests.evaluation import drawn_weights


@pytest.fixture(scope="module")
def state_dict():
    return drawn_weights()


@pytest.fixture(scope="module")
def params(state_dict):
    return evaluation.inception_params(state_dict)


def test_every_stage_matches_the_figures(params, golden):
    """The figures are of two images at once; one alone has the same features."""
    figures = golden("inception")
    found = jax.jit(evaluation.inception_features)(params, figures["24x40/images"][:1])
    assert found.keys() == {"64", "192", "768", "2048", "logits_unbiased", "logits"}
    for name, array in found.items():
        expected = figures[f"24x40/{name}"][:1]
        np.testing.assert_allclose(array, expected, atol=2e-6 * abs(expected).max(), rtol=0)


def test_weights_that_do_not_fit_are_named(state_dict):
    name = "Mixed_6b.branch7x7_2.conv.weight"
    with pytest.raises(ValueError, match=f"{name} is missing"):
        evaluation.inception_params({n: a for n, a in state_dict.items() if n != name})
    wrong = state_dict | {name: state_dict[name][:, :, :, :3]}
    with pytest.raises(
        ValueError, match=r"has shape \[128, 128, 1, 3\], expected \[128, 128, 1, 7"
    ):
        evaluation.inception_params(wrong)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 8, 8, 1), np.uint8), ((8, 8, 3), np.uint8), ((2, 8, 8, 3), float)]
)
def test_images_of_another_kind_are_refused(params, shape, dtype):
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, H, W, 3\], got"):
        evaluation.inception_features(params, jnp.zeros(shape, dtype))
