"""Gradients of the denoising loss with respect to every parameter, against central differences.

In float64, a central difference with step h is accurate to about h^2 plus 1e-16 / h of the loss, far below
the bound of 1e-3. Each array of parameters moves along a random direction.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ncsn_jax import convert, losses, models
from tests.models.comparison import compiled_quickly

LADDER = np.geomspace(1.0, 0.1, 3, dtype=np.float32)
STEP = 1e-5


def test_ncsnv2_gradients_match_central_differences():
    model = models.NCSNv2(2, LADDER)
    rng = np.random.default_rng(0)
    shapes = convert.parameter_shapes(model, 1)
    values = [
        rng.normal(scale=0.3, size=shape.shape) + (path[-1] == "gamma")
        for path, shape in shapes.items()
    ]
    directions = [rng.normal(size=a.shape) for a in values]
    with jax.enable_x64(True):
        x = jnp.asarray(rng.uniform(size=(2, 8, 8, 1)))
        sigma = jnp.asarray(LADDER[[0, 2]], jnp.float64)

        def loss(leaves):
            params = traverse_util.unflatten_dict(dict(zip(shapes, leaves, strict=True)))
            score = models.score_fn(model, params, jnp.asarray(LADDER))
            return losses.denoising_score_matching(jax.random.key(2), score, x, sigma).mean()

        # The loss and its gradient share one program, because compiling is slow.
        both = compiled_quickly(jax.value_and_grad(loss), values)

        def moved(which, h):
            pairs = enumerate(zip(values, directions, strict=True))
            return [a + (h * d if i == which else 0.0) for i, (a, d) in pairs]

        def difference(which):
            return (both(moved(which, STEP))[0] - both(moved(which, -STEP))[0]) / (2 * STEP)

        value, gradient = both(values)
        expected = np.array([difference(i) for i in range(len(values))])
        found = np.array([(g * d).sum() for g, d in zip(gradient, directions, strict=True)])
    # An array without effect, such as a bias before a normalization, has a derivative of zero.
    floor = 1e-6 * np.abs(expected).max()
    # The loss is accurate to some units in its last place; this is the effect of one on a difference.
    rounding = 8 * np.spacing(np.float64(value)) / (2 * STEP)
    error = np.abs(found - expected) - rounding
    error /= np.maximum(np.abs(expected), floor)
    assert error.max() < 1e-3, error.argmax()
    assert (np.abs(expected) > floor).sum() > len(expected) / 2
