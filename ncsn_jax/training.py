"""The training state and the pure functions that advance it by one or several optimizer steps.

An example's noise, flip, dequantization and dropout depend only on (seed, step, its index in the global
batch), not on the number of devices. Nothing here jits, replicates, logs or touches files; averages across
devices need an explicit `axis_name`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ncsn_jax import augmentation, averages
from ncsn_jax._random import Stream, example_keys, fold_in, split_each, stream_key
from ncsn_jax.images import prepare
from ncsn_jax.objectives import Objective

__all__ = [
    "Metrics",
    "TrainState",
    "make_ema_decay",
    "make_init",
    "make_optimizer",
    "make_schedule",
    "sampling_params",
    "train_step",
    "train_steps",
]

# Folded into an example's key for the network's own draws, its augmentation and the dropout of its class.
_FOR_NETWORK, _FOR_AUGMENTATION, _FOR_CLASS = 3, 4, 5

OPTIMIZERS = ("adam", "adamw", "muon", "schedule_free")


class TrainState(NamedTuple):
    """The state that training updates.

    Attributes:
      step: int32 scalar, the number of optimizer steps taken.
      params: the network's parameters.
      ema_params: their EMA; an empty dict if it is off.
      opt_state: the optimizer's state.
      averages: power-function averages of the parameters (`ncsn_jax.averages`), one tree for each; () if off.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    averages: tuple = ()


def sampling_params(state: TrainState) -> Any:
    """Returns the parameters to sample with: schedule-free Adam's average, or the EMA, or the parameters."""
    if isinstance(state.opt_state, optax.contrib.ScheduleFreeState):
        return optax.contrib.schedule_free_eval_params(state.opt_state, state.params)
    return state.ema_params or state.params


class Metrics(NamedTuple):
    """Metrics of one step, already averaged or summed over devices.

    Attributes:
      loss: the mean loss over the global batch.
      grad_norm: the global norm of the averaged gradient, before clipping.
      level_loss: `[L]`, the sum of losses in each bin of the objective (for a ladder, each level).
      level_count: `[L]`, the number of examples in each bin.
    """

    loss: jax.Array
    grad_norm: jax.Array
    level_loss: jax.Array
    level_count: jax.Array


def make_schedule(
    learning_rate: float, warmup_steps: int = 0, decay_steps: int = 0, decay_after: int = 0
) -> optax.Schedule:
    """Returns the learning rate as a function of the step, from 0; see `make_optimizer`."""
    rate = optax.constant_schedule(learning_rate)
    if warmup_steps:
        rate = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    if decay_after:
        return lambda step: rate(step) / jnp.sqrt(jnp.maximum(step / decay_after, 1.0))
    if not decay_steps:
        return rate
    decay = optax.cosine_decay_schedule(1.0, decay_steps)
    return lambda step: rate(step) * decay(step)


def make_optimizer(
    learning_rate: float,
    *,
    name: str = "adam",
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    decay_steps: int = 0,
    decay_after: int = 0,
    grad_clip: float = 0.0,
) -> optax.GradientTransformation:
    """Returns an optimizer; by default Adam as the original runs use it, in PyTorch's convention.

    All others decouple the weight decay: they subtract rate * weight_decay * parameter.

    Args:
      learning_rate: above 0, reached linearly over `warmup_steps`: step k (from 0) uses
        learning_rate * min(k / warmup_steps, 1).
      name: 'adam' (Kingma & Ba, 2015).
        'adamw' (Loshchilov & Hutter, 2019).
        'muon' (Jordan et al., 2024): orthogonalizes the momentum of every array named "kernel": those of
        dense layers, and those of convolutions as matrices `[height * width * in, out]`. The momentum's
        decay, 0.95, and the five Newton-Schulz steps are the published ones. An update is 0.2 sqrt(max(rows,
        columns)) times an orthogonal matrix, about the size of Adam's, so Adam's learning rates suit it (Liu
        et al., 2025, "Muon is Scalable for LLM Training", section 2.2). AdamW with `beta1` and `beta2`, in
        Nesterov's form, trains all other parameters.
        'schedule_free' (Defazio et al., 2024, "The Road Less Scheduled", algorithm 1): AdamW without
        momentum; `beta1`, above 0, is the share of the average in the parameters at which it takes
        gradients. Sample with `sampling_params`.
      beta1, beta2: in [0, 1).
      eps: added to the root of the second moment.
      weight_decay: coefficient of the parameters; 0 is off. 'adam' adds the product to the gradient (L2).
      warmup_steps: at least 0.
      decay_steps: at least 0: multiplies the rate by (1 + cos(pi k / decay_steps)) / 2, which is 0 from step
        k = decay_steps on; 0 is off.
      decay_after: at least 0: divides the rate by sqrt(max(k / decay_after, 1)); t_ref of Karras et al.
        (2024). 0 is off. Only one of the two decays may be on.
      grad_clip: the largest global norm of the gradient; 0 is off.
    """
    # A schedule adds a step counter to the optimizer's state; a constant rate needs none.
    rates = warmup_steps, decay_steps, decay_after
    schedule = make_schedule(learning_rate, *rates) if any(rates) else learning_rate
    clip = optax.clip_by_global_norm(grad_clip) if grad_clip else optax.identity()
    decay = optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity()
    adam = optax.scale_by_adam(b1=beta1, b2=beta2, eps=eps)
    step = optax.scale_by_learning_rate(schedule)
    if name == "adam":
        return optax.chain(clip, decay, adam, step)
    if name == "adamw":
        return optax.chain(clip, adam, decay, step)
    if name == "muon":
        muon = optax.contrib.muon(
            schedule,
            eps=eps,
            weight_decay=weight_decay,
            adam_b1=beta1,
            adam_b2=beta2,
            adam_weight_decay=weight_decay,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        )
        return optax.chain(clip, muon)
    if name != "schedule_free":
        raise ValueError(f"name must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    # Adam without momentum, as optax's own schedule_free_adamw has it.
    scale = optax.scale_by_rms(beta2, eps, eps_in_sqrt=False, bias_correction=True)
    return optax.contrib.schedule_free(optax.chain(clip, scale, decay, step), schedule, b1=beta1)


def _matrices(params: Any) -> Any:
    """Returns which axes of each kernel are the rows and columns of Muon's matrix; None for other arrays."""

    def numbers(path: tuple, array: jax.Array):
        if path[-1].key != "kernel":
            return None
        rows = tuple(range(array.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(rows, array.ndim - 1)

    return jax.tree_util.tree_map_with_path(numbers, params)


def make_ema_decay(
    halflife: float, batch_size: int, rampup: float = 0.0
) -> Callable[[jax.Array], jax.Array]:
    """Returns the decay of the EMA as a function of the step, from a half-life in images.

    Step k, from 0, has the decay 2^(-batch_size / h). h is `halflife`, or at first, with a ramp-up,
    `rampup` times the k batch_size images seen so far, which lets the average forget its start.

    Args:
      halflife: the number of images, > 0, after which a parameter's weight in the average is halved.
      batch_size: examples per step.
      rampup: h as a fraction of the images seen; 0.05 in EDM; 0 is off.
    """

    def decay(step: jax.Array) -> jax.Array:
        images = jnp.float32(halflife)
        if rampup:
            images = jnp.minimum(images, rampup * batch_size * step.astype(jnp.float32))
        return jnp.exp2(-batch_size / images)

    return decay


def make_init(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    *,
    ema: bool,
    averages: int = 0,
) -> Callable[[jax.Array], TrainState]:
    """Returns a function from a key to the initial state.

    Do not jit it: compiled as a whole, its many draws take several times as long to start.

    Args:
      model: a network, called as `model.init(key, x, level)`; its parameters depend on shapes alone.
      optimizer: the optimizer to initialise.
      image_shape: (H, W, C).
      ema: whether to keep an EMA of the parameters.
      averages: how many power-function averages to keep.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.int32)

    # One program serves hundreds of small arrays. It returns new buffers, so none can be donated twice.
    @jax.jit
    def begin(params):
        return params if ema else {}, optimizer.init(params), (params,) * averages

    def init(key: jax.Array) -> TrainState:
        params = model.lazy_init(key, image, level)
        return TrainState(jnp.zeros((), jnp.int32), params, *begin(params))

    return init


def _measure(
    params: Any,
    images: jax.Array,
    classes: jax.Array | None,
    keys: jax.Array,
    *,
    objective: Objective,
    reduce_mean: bool,
    augment: float,
    num_classes: int,
    label_dropout: float,
    **options: bool,
) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """Returns (gradient, loss, level_loss, level_count) of examples `[B, ...]` with keys `[B]`."""
    image_keys, draw_keys, noise_keys = split_each(keys, 3)

    x, given = prepare(image_keys, images, **options), {}
    if augment:
        augment_keys = fold_in(keys, _FOR_AUGMENTATION)
        x, given["augment"] = augmentation.augment(augment_keys, x, probability=augment)
    noise = objective.draw(draw_keys)
    if classes is not None:
        chance = jax.vmap(jax.random.uniform)(fold_in(keys, _FOR_CLASS))
        given["classes"] = jnp.where(chance < label_dropout, num_classes, classes)

    def mean_loss(params):
        score_fn = objective.score_fn(params, fold_in(keys, _FOR_NETWORK), **given)
        per_example = objective.loss(noise_keys, score_fn, x, noise)
        weight = objective.weight
        mean = jnp.mean(per_example if weight is None else weight(noise) * per_example)
        if reduce_mean:
            mean = 2.0 * mean / math.prod(x.shape[1:])
        return mean, per_example

    (value, per_example), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
    level = objective.bin(noise)
    zeros = jnp.zeros(len(objective.sigmas))
    return grads, value, zeros.at[level].add(per_example), zeros.at[level].add(1.0)


def _measure_in_parts(measure: Callable, parts: int, params: Any, *arrays):
    """Returns `measure(params, *arrays)`, accumulated over `parts` microbatches."""
    examples = arrays[0].shape[0]
    if examples % parts:
        raise ValueError(
            f"microbatches must divide the {examples} examples on a device, got {parts}"
        )
    xs = jax.tree.map(lambda a: a.reshape(parts, examples // parts, *a.shape[1:]), arrays)

    def add(total, x):
        return jax.tree.map(jnp.add, total, measure(params, *x)), None

    shapes = jax.eval_shape(measure, params, *jax.tree.map(lambda a: a[0], xs))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    (grads, value, level_loss, level_count), _ = jax.lax.scan(add, zeros, xs)
    grads, value = jax.tree.map(lambda a: a / parts, (grads, value))
    return grads, value, level_loss, level_count


def train_step(
    state: TrainState,
    images: jax.Array | tuple[jax.Array, jax.Array],
    seed: jax.Array,
    first: jax.Array | int = 0,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    ema_decay: float | Callable[[jax.Array], jax.Array],
    gammas: Sequence[float] = (),
    random_flip: bool,
    dequantize: bool,
    centered: bool = False,
    augment: float = 0.0,
    reduce_mean: bool = False,
    microbatches: int = 1,
    skip_nonfinite: bool = False,
    num_classes: int = 0,
    label_dropout: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step on one batch, or on this device's shard of it.

    Args:
      state: the state to advance.
      images: uint8 `[B, H, W, C]`, or float32 in [0, 1] without `dequantize`: this device's shard, contiguous
        in the global batch. For a network of classes, a pair of these and of the classes, `int[B]`.
      seed: integer scalar, the seed of the whole run.
      first: integer scalar >= 0, the index of the shard's first example in the global batch.
      objective: the objective to minimise, with its network.
      optimizer: as made by `make_optimizer`.
      ema_decay: in [0, 1), the weight of the old average; 0 is off. Or a function of the step, see
        `make_ema_decay`.
      gammas: those of the power-function averages that `state` has.
      random_flip, dequantize, centered: see `images.prepare`.
      augment: the probability of each transformation of `augmentation.augment`, whose label the network is
        then given as `augment`; 0 is off.
      reduce_mean: use the mean square over an example's elements, 2 / D times half the sum of squares. The
        metrics by level keep half the sum.
      microbatches: at least 1, a divisor of B. Accumulates gradients over this many microbatches, which gives
        the same step to float32 rounding and uses the memory of one microbatch.
      skip_nonfinite: leave parameters, EMA and optimizer state unchanged if the loss or gradient is not
        finite. The step still counts, and its metrics show what happened.
      num_classes: K, the number of classes.
      label_dropout: in [0, 1), the probability with which an example's class becomes K, no class (Ho &
        Salimans, 2022, algorithm 1, p_uncond).
      axis_name: the mapped axis over which the batch is sharded, or None.

    Returns:
      The next state and the step's metrics.

    Raises:
      ValueError: if B is not a multiple of `microbatches`.
    """
    images, classes = images if isinstance(images, tuple) else (images, None)
    step_key = jax.random.fold_in(stream_key(seed, Stream.TRAINING), state.step)
    keys = example_keys(step_key, first + jnp.arange(images.shape[0]))
    measure = functools.partial(
        _measure,
        objective=objective,
        reduce_mean=reduce_mean,
        random_flip=random_flip,
        dequantize=dequantize,
        centered=centered,
        augment=augment,
        num_classes=num_classes,
        label_dropout=label_dropout,
    )
    if microbatches == 1:
        measured = measure(state.params, images, classes, keys)
    else:
        measured = _measure_in_parts(measure, microbatches, state.params, images, classes, keys)
    grads, value, level_loss, level_count = measured
    if axis_name is not None:
        grads, value = jax.lax.pmean((grads, value), axis_name)
        level_loss, level_count = jax.lax.psum((level_loss, level_count), axis_name)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_decay:
        decay = ema_decay(state.step) if callable(ema_decay) else ema_decay
        ema_params = optax.incremental_update(params, ema_params, 1.0 - decay)
    next_state = TrainState(state.step + 1, params, ema_params, opt_state, state.averages)
    metrics = Metrics(value, optax.tree.norm(grads), level_loss, level_count)
    if skip_nonfinite:
        # Checking the averages over all devices makes every device decide alike.
        valid = jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm)
        skipped = state._replace(step=next_state.step)
        next_state = jax.tree.map(lambda a, b: jnp.where(valid, a, b), next_state, skipped)
    # A skipped step counts too: its parameters are those before.
    kept = tuple(
        averages.update(average, next_state.params, next_state.step, gamma)
        for average, gamma in zip(state.averages, gammas, strict=True)
    )
    return next_state._replace(averages=kept), metrics


def train_steps(
    state: TrainState,
    images: jax.Array | tuple[jax.Array, jax.Array],
    seed: jax.Array,
    first: jax.Array | int = 0,
    **options,
) -> tuple[TrainState, Metrics]:
    """Takes K optimizer steps in one `lax.scan`: images `[K, B, H, W, C]`, every metric `[K, ...]`.

    Classes are `[K, B]`. The other arguments are those of `train_step`. For K = 1 there is no loop.
    """
    if jax.tree.leaves(images)[0].shape[0] == 1:
        one = jax.tree.map(lambda a: a[0], images)
        state, metrics = train_step(state, one, seed, first, **options)
        return state, jax.tree.map(lambda a: a[None], metrics)
    return jax.lax.scan(lambda s, x: train_step(s, x, seed, first, **options), state, images)


def __dir__() -> list[str]:
    return __all__
