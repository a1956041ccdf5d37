"""The training state and the pure functions that advance it by one or several optimizer steps.

Everything random in a step is a function of (seed, step, index of the example in the global batch):
level, noise, flip and dequantization of an example are the same whether one device or eight share the
batch. Nothing here jits, replicates, logs or touches files; averages across devices need an explicit
`axis_name`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ncsn_jax import losses, models
from ncsn_jax._random import expand, normal_like, uniform_like
from ncsn_jax.types import ScoreFn

# The run's seed is also used for other purposes; this one is folded into its key.
_FOR_STEPS = 1

LossFn = Callable[[jax.Array, Any, jax.Array, jax.Array], jax.Array]


def _score_matching(key: jax.Array, score_fn: ScoreFn, x: jax.Array, sigma: jax.Array) -> jax.Array:
    """Exact score matching of the perturbed data x + sigma z, for clean x."""
    return losses.score_matching(score_fn, x + expand(sigma, x) * normal_like(key, x), sigma)


LOSSES: dict[str, LossFn] = {
    "dsm": losses.denoising_score_matching,
    "ssm": losses.sliced_score_matching,
    "sm": _score_matching,
}


class TrainState(NamedTuple):
    """Everything that training changes.

    Attributes:
      step: int32 scalar, the number of optimizer steps taken.
      params: the network's parameters.
      ema_params: their exponential moving average; an empty dict if it is off.
      opt_state: the optimizer's state.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any


class Metrics(NamedTuple):
    """What one step measured, already averaged or summed over devices.

    Attributes:
      loss: the mean loss over the global batch.
      grad_norm: the global norm of the averaged gradient, before clipping.
      level_loss: `[L]`, the sum of the losses of the examples that were at each level.
      level_count: `[L]`, their number.
    """

    loss: jax.Array
    grad_norm: jax.Array
    level_loss: jax.Array
    level_count: jax.Array


def make_optimizer(
    learning_rate: float,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    grad_clip: float = 0.0,
) -> optax.GradientTransformation:
    """Adam as the original runs use it, in PyTorch's convention.

    Args:
      learning_rate: > 0, reached linearly over `warmup_steps`: step k (from 0) uses
        learning_rate * min(k / warmup_steps, 1).
      beta1, beta2: in [0, 1).
      eps: added to the root of the second moment.
      weight_decay: coefficient of the parameters added to the gradient (L2, not decoupled); 0 is off.
      warmup_steps: >= 0.
      grad_clip: the largest global norm of the gradient; 0 is off.
    """
    schedule = learning_rate
    if warmup_steps:
        schedule = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.chain(
        optax.clip_by_global_norm(grad_clip) if grad_clip else optax.identity(),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        optax.scale_by_adam(b1=beta1, b2=beta2, eps=eps),
        optax.scale_by_learning_rate(schedule),
    )


def init_state(
    key: jax.Array,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    *,
    ema: bool,
) -> TrainState:
    """Returns the state before the first step; `image_shape` is (H, W, C).

    Call it as it is: compiled as a whole, it takes several times as long to start.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.int32)
    # Draws one array after the other and never runs the network.
    params = model.lazy_init(key, image, level)
    # A copy, since the state is donated and no buffer can be donated twice.
    ema_params = jax.tree.map(jnp.copy, params) if ema else {}
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, optimizer.init(params))


def prepare_images(
    keys: jax.Array, images: jax.Array, *, random_flip: bool, dequantize: bool
) -> jax.Array:
    """Turns 8-bit images into the network's training input.

    Args:
      keys: one key per example, `[B]`.
      images: uint8 `[B, H, W, C]`.
      random_flip: mirror each image left to right with probability 1/2.
      dequantize: spread each 8-bit value v uniformly over [v/256, (v+1)/256), as the authors do:
        (v / 255) * 255/256 + u/256. Otherwise v / 255.

    Returns:
      float32 `[B, H, W, C]` in [0, 1].
    """
    keys = jax.vmap(lambda k: jax.random.split(k))(keys)
    if random_flip:
        flip = jax.vmap(jax.random.bernoulli)(keys[:, 0])
        images = jnp.where(expand(flip, images), images[:, :, ::-1, :], images)
    x = images.astype(jnp.float32)
    if dequantize:
        return (x + uniform_like(keys[:, 1], x)) / 256.0
    return x / 255.0


def _measure(
    params: Any,
    images: jax.Array,
    keys: jax.Array,
    *,
    model: nn.Module,
    sigmas: jax.Array,
    loss: LossFn,
    random_flip: bool,
    dequantize: bool,
    anneal_power: float,
) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """Returns (gradient, loss, level_loss, level_count) of examples `[B, ...]` with keys `[B]`."""
    image_keys, level_keys, noise_keys = jnp.moveaxis(
        jax.vmap(lambda k: jax.random.split(k, 3))(keys), 1, 0
    )

    x = prepare_images(image_keys, images, random_flip=random_flip, dequantize=dequantize)
    sigma = losses.sample_levels(level_keys, sigmas, images.shape[0])

    def mean_loss(params):
        per_example = loss(noise_keys, models.score_fn(model, params, sigmas), x, sigma)
        if anneal_power == 2:
            return jnp.mean(per_example), per_example
        return jnp.mean(sigma ** (anneal_power - 2) * per_example), per_example

    (value, per_example), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
    level = models.levels_of(sigma, sigmas)
    level_loss = jnp.zeros_like(sigmas).at[level].add(per_example)
    level_count = jnp.zeros_like(sigmas).at[level].add(1.0)
    return grads, value, level_loss, level_count


def _measure_in_parts(measure: Callable, parts: int, params: Any, images, keys, sigmas):
    """Returns what `measure(params, images, keys)` would, from as many parts, one after another."""
    examples = images.shape[0]
    if examples % parts:
        raise ValueError(f"{examples} examples on a device are no multiple of {parts} microbatches")
    xs = [a.reshape(parts, examples // parts, *a.shape[1:]) for a in (images, keys)]

    def add(total, x):
        return jax.tree.map(jnp.add, total, measure(params, *x)), None

    zeros = (params, jnp.zeros((), jnp.float32), sigmas, sigmas)
    (grads, value, level_loss, level_count), _ = jax.lax.scan(
        add, jax.tree.map(jnp.zeros_like, zeros), xs
    )
    grads, value = jax.tree.map(lambda a: a / parts, (grads, value))
    return grads, value, level_loss, level_count


def train_step(
    state: TrainState,
    images: jax.Array,
    seed: jax.Array,
    first: jax.Array | int = 0,
    *,
    model: nn.Module,
    sigmas: jax.Array,
    optimizer: optax.GradientTransformation,
    loss: LossFn,
    ema_decay: float,
    random_flip: bool,
    dequantize: bool,
    anneal_power: float = 2.0,
    microbatches: int = 1,
    skip_nonfinite: bool = False,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One optimizer step on one batch, or on this device's part of it.

    Args:
      state: the state to advance.
      images: uint8 `[B, H, W, C]`, this device's examples, neighbours in the global batch.
      seed: integer scalar, the seed of the whole run.
      first: integer scalar >= 0, the place of the first of them in the global batch.
      model: a network conditioned on the level's index.
      sigmas: `[L]`, the ladder.
      optimizer: as made by `make_optimizer`.
      loss: one of `LOSSES`, `loss(key, score_fn, x, sigma) -> [B]`, with the weight sigma^2.
      ema_decay: in [0, 1), the weight of the old average; 0 is off.
      random_flip, dequantize: see `prepare_images`.
      anneal_power: p of the weight lambda(sigma) = sigma^p with which levels enter the mean (NCSN,
        section 4.2, takes 2; NCSNv2's code calls it so). The metrics by level keep sigma^2.
      microbatches: >= 1, a divisor of B: in so many parts, one after another, are the examples
        computed. The step is the same to float32 rounding and takes the memory of one part.
      skip_nonfinite: whether a step whose loss or gradient is not finite leaves parameters, their
        average and the optimizer's state as they were. It counts, and its metrics say what happened.
      axis_name: the mapped axis over which the batch is spread, or None.

    Returns:
      The next state and the step's metrics.

    Raises:
      ValueError: if B is not a multiple of `microbatches`.
    """
    step_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _FOR_STEPS), state.step)
    places = first + jnp.arange(images.shape[0])
    keys = jax.vmap(lambda i: jax.random.fold_in(step_key, i))(places)
    measure = functools.partial(
        _measure,
        model=model,
        sigmas=sigmas,
        loss=loss,
        random_flip=random_flip,
        dequantize=dequantize,
        anneal_power=anneal_power,
    )
    if microbatches == 1:
        measured = measure(state.params, images, keys)
    else:
        measured = _measure_in_parts(measure, microbatches, state.params, images, keys, sigmas)
    grads, value, level_loss, level_count = measured
    if axis_name is not None:
        grads, value = jax.lax.pmean((grads, value), axis_name)
        level_loss, level_count = jax.lax.psum((level_loss, level_count), axis_name)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_decay:
        ema_params = optax.incremental_update(params, ema_params, 1.0 - ema_decay)
    next_state = TrainState(state.step + 1, params, ema_params, opt_state)
    metrics = Metrics(value, optax.tree.norm(grads), level_loss, level_count)
    if skip_nonfinite:
        # The averages over all devices are looked at, so that all devices do alike.
        sound = jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm)
        skipped = state._replace(step=next_state.step)
        next_state = jax.tree.map(lambda a, b: jnp.where(sound, a, b), next_state, skipped)
    return next_state, metrics


def train_steps(
    state: TrainState,
    images: jax.Array,
    seed: jax.Array,
    first: jax.Array | int = 0,
    **options,
) -> tuple[TrainState, Metrics]:
    """Several optimizer steps in one `lax.scan`: images `[K, B, H, W, C]`, every metric `[K, ...]`.

    The other arguments are those of `train_step`. For K = 1 there is no loop at all.
    """
    if images.shape[0] == 1:
        state, metrics = train_step(state, images[0], seed, first, **options)
        return state, jax.tree.map(lambda a: a[None], metrics)
    return jax.lax.scan(lambda s, x: train_step(s, x, seed, first, **options), state, images)
