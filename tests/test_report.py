import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ncsn_jax import metrics, report, training
from ncsn_jax.errors import UserError


def test_multiply_adds_of_known_programs():
    x, w = jnp.zeros((2, 8, 6, 3)), jnp.zeros((3, 3, 3, 5))

    def conv(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        padding = ((1, 1), (1, 1))
        return jax.lax.conv_general_dilated(x, w, (2, 2), padding, dimension_numbers=numbers)

    def looped(a):
        return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, a), None), a, length=7)[0]

    assert report.count_multiply_adds(conv, x, w) == 2 * 4 * 3 * 5 * 27
    assert report.count_multiply_adds(jnp.matmul, jnp.zeros((4, 5)), jnp.zeros((5, 6))) == 120
    assert report.count_multiply_adds(looped, jnp.zeros((5, 5))) == 7 * 125


def test_units():
    assert report.human_bytes(1536) == "1.5 KiB" and report.human_bytes(3 * 2**40) == "3 TiB"
    assert [report.human_time(s) for s in (5, 600, 36000)] == ["5 s", "10.0 min", "10.0 h"]


def test_loss_by_level_is_one_for_a_score_of_zero(monkeypatch):
    window = metrics.Window(jnp.asarray([1.0, 0.1]), (4, 4, 1), 0)
    measured = training.Metrics(
        loss=np.array([8.0]),
        grad_norm=np.array([1.0]),
        level_loss=np.array([[24.0, 4.0]]),
        level_count=np.array([[3.0, 1.0]]),
    )
    monkeypatch.setattr(metrics.parallel, "to_host", lambda tree: tree)
    window.add(1, measured, store=None)
    scalars = window.scalars()
    assert scalars["loss_by_level/0000_sigma_1"] == 1.0
    assert scalars["loss_by_level/0001_sigma_0.1"] == 0.5
    assert scalars["loss"] == 8.0


def test_steps_that_are_not_finite_are_counted_until_too_many_are_in_a_row(monkeypatch):
    class Store:
        def wait(self):
            pass

        def steps(self):
            return [3]

    monkeypatch.setattr(metrics.parallel, "to_host", lambda tree: tree)
    window = metrics.Window(jnp.asarray([1.0, 0.1]), (4, 4, 1), 0, skip_nonfinite=2)

    def add(step, *values):
        loss = np.array(values)
        level_loss = np.stack([loss, loss], axis=1)
        ones = np.ones_like(level_loss)
        window.add(step, training.Metrics(loss, np.ones_like(loss), level_loss, ones), Store())

    add(4, 8.0, np.nan, np.inf, 4.0)
    scalars = window.scalars()
    assert scalars["loss"] == 6.0 and scalars["skipped"] == 2
    assert scalars["loss_by_level/0000_sigma_1"] == 6.0 / 8
    add(5, np.nan)
    window.restart(5)
    add(6, np.nan)
    assert np.isnan(window.scalars()["loss"]) and "nan" in window.line(6, 9, window.scalars())
    message = "the loss is inf and the gradient's norm 1.0 at step 7; stopped, .* of step 3"
    with pytest.raises(UserError, match=message):
        add(8, np.inf, 1.0)
