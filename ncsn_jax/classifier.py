"""Trains a classifier of noisy images, and evaluates its log p(y | x_t, t).

These pure functions serve class-conditional sampling (Song et al., 2021, section 5 and appendix I.1) with
any SDE. The network sees x_t / alpha_t = x_0 + sigma z, the noise that `NoisyClassifier` expects. As in
`ncsn_jax.training`, whose state they share, everything random in a step depends on (seed, step, index of the
example) only. Nothing here jits, logs or touches files.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ncsn_jax import _checks as check
from ncsn_jax import losses
from ncsn_jax._random import Stream, example_keys, expand, normal_like, stream_key
from ncsn_jax.errors import show
from ncsn_jax.images import to_float
from ncsn_jax.sde import SDE
from ncsn_jax.training import TrainState

__all__ = [
    "LogitsFn",
    "Metrics",
    "log_likelihood",
    "logits_fn",
    "loss",
    "train_step",
]

LogitsFn = Callable[[jax.Array, jax.Array], jax.Array]
"""`logits_fn(x, t) -> logits`: x `[B, ...]`, t `[B]` in (0, 1], logits `[B, K]`."""


class Metrics(NamedTuple):
    """Metrics of one step.

    Attributes:
      loss: the mean cross-entropy of the batch, in nats.
      accuracy: the fraction of the batch classified correctly.
    """

    loss: jax.Array
    accuracy: jax.Array


def logits_fn(model: nn.Module, params, sde: SDE) -> LogitsFn:
    """Returns the classifier as a function of x_t and t.

    Args:
      model: with `apply(params, x, sigma) -> [B, K]` for x = x_0 + sigma z, such as
        `ncsn_jax.models.NoisyClassifier`.
      params: its parameters.
      sde: the SDE of x_t.
    """

    def logits(x: jax.Array, t: jax.Array) -> jax.Array:
        return model.apply(params, x / expand(sde.alpha(t), x), sde.sigma(t))

    return logits


def log_likelihood(
    model: nn.Module, params, sde: SDE, y: jax.Array | int
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns `f(x, t) -> [B]`, log p(y | x_t, t) in nats, whose gradient in x steers a sampler.

    Args:
      model, params, sde: as for `logits_fn`.
      y: the target class of each example, integers `[B]`, or one for all; in [0, K).

    Raises:
      ValueError: if y is not integers, or (from f) has the wrong shape or is out of range. Traced values
        are not checked, and give NaN if out of range.
    """
    classify = logits_fn(model, params, sde)
    y = _check_classes(y)

    def function(x: jax.Array, t: jax.Array) -> jax.Array:
        return -_cross_entropy(classify(x, t), y)

    return function


def loss(
    key: jax.Array, sde: SDE, logits_fn: LogitsFn, x: jax.Array, y: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the cross-entropy of the classes of x_t = alpha_t x + std_t z, with z ~ N(0, I).

    The classifier p(y | x_t) minimises its expectation over the data.

    Args:
      key: one key, or one per example `[B]`.
      sde: the SDE.
      logits_fn: `logits_fn(x, t) -> [B, K]`.
      x: `[B, ...]`, clean data.
      y: its classes, integers `[B]` in [0, K).
      t: `[B]`, in (0, 1].

    Returns:
      The cross-entropy in nats, and whether the likeliest class is y, both `[B]`.

    Raises:
      ValueError: if an argument has the wrong shape or type, or y is out of range.
    """
    key, x, _ = check.chains(key, x)
    check.shape("y", y, x.shape[:1])
    y, t = _check_classes(y), check.each("t", x, t)
    mean, std = sde.marginal(x, t)
    logits = logits_fn(mean + expand(std, x) * normal_like(key, x), t)
    return _cross_entropy(logits, y), jnp.argmax(logits, axis=1) == y


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    seed: jax.Array | int,
    *,
    model: nn.Module,
    sde: SDE,
    optimizer: optax.GradientTransformation,
    centered: bool,
    end: float = 1e-5,
) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step on one batch, with times uniform in (end, 1].

    Args:
      state: made by `training.make_init` for this model and optimizer.
      images: uint8 `[B, H, W, C]`.
      labels: integers `[B]` in [0, K).
      seed: integer scalar, the seed of the whole run.
      model, sde: as for `logits_fn`.
      optimizer: as made by `training.make_optimizer`.
      centered: whether the SDE's data is in [-1, 1] instead of [0, 1].
      end: the earliest time, in (0, 1).

    Returns:
      The next state, with unchanged `ema_params`, and the step's metrics.
    """
    step_key = jax.random.fold_in(stream_key(seed, Stream.CLASSIFIER_TRAINING), state.step)
    time_keys, noise_keys = example_keys(step_key, jnp.arange(images.shape[0]), 2)
    x = to_float(images, centered=centered)
    t = losses.sample_times(time_keys, images.shape[0], end=end)

    def mean_loss(params):
        cross_entropy, correct = loss(noise_keys, sde, logits_fn(model, params, sde), x, labels, t)
        return jnp.mean(cross_entropy), jnp.mean(correct.astype(jnp.float32))

    (value, accuracy), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, opt_state=opt_state), Metrics(
        value, accuracy
    )


def _check_classes(y: jax.Array | int) -> jax.Array:
    classes = jnp.asarray(y)
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise ValueError(f"y must be integers, got {show(y)}")
    return classes


def _cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Returns minus the log-probability `[B]` of the classes y, `[B]` or one for all."""
    batch_size, classes = logits.shape
    if y.shape not in ((), (batch_size,)):
        raise ValueError(f"y must have shape () or ({batch_size},), got {y.shape}")
    if not isinstance(y, jax.core.Tracer):
        outside = np.asarray(y)[(np.asarray(y) < 0) | (np.asarray(y) >= classes)]
        if outside.size:
            raise ValueError(f"y must be in [0, {classes}), got {outside[0]}")
    y = jnp.broadcast_to(jnp.where(y < 0, classes, y), batch_size)
    log_probability = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(
        log_probability, y[:, None], axis=1, mode="fill", fill_value=jnp.nan
    )[:, 0]


def __dir__() -> list[str]:
    return __all__
