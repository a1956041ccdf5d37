import numpy as np
import pytest

from ncsn_jax import sigmas


def test_is_geometric_with_exact_ends():
    ladder = np.asarray(sigmas.geometric(50.0, 0.01, 232))
    assert ladder.dtype == np.float32 and ladder.shape == (232,)
    assert ladder[0] == np.float32(50.0) and ladder[-1] == np.float32(0.01)
    ratios = ladder[:-1].astype(np.float64) / ladder[1:]
    # Each sigma is rounded once, so that a ratio is off by at most two half units in the last place.
    np.testing.assert_allclose(ratios, 5000 ** (1 / 231), rtol=2 * np.finfo(np.float32).eps)


def test_equals_the_originals_ladder(golden):
    expected = golden("losses")["in/sigmas"]
    np.testing.assert_allclose(sigmas.geometric(1.0, 0.01, 10), expected, rtol=1.2e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.01, 1.0, 10), "sigma_begin=0.01 and sigma_end=1.0"),
        ((1.0, 1.0, 10), "sigma_begin > sigma_end"),
        ((1.0, 0.0, 10), "sigma_end > 0"),
        ((float("inf"), 0.1, 10), "sigma_begin=inf"),
        ((float("nan"), 0.1, 10), "sigma_begin=nan"),
        ((1.0, 0.01, 1), "num_levels must be an integer >= 2, got 1"),
        ((1.0, 0.01, 2.5), "num_levels must be an integer >= 2, got 2.5"),
        ((1.0, 0.9999999, 100), "not distinct in float32"),
    ],
)
def test_refuses_what_is_no_ladder(arguments, message):
    with pytest.raises(ValueError, match=message):
        sigmas.geometric(*arguments)
