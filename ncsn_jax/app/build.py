"""Builds what a configuration describes: networks, SDEs, objectives, optimizers, images."""

import functools
import os
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ncsn_jax import models, objectives, sde, sigmas, training
from ncsn_jax.app import cpu, data, storage
from ncsn_jax.app.data import arrays, transforms
from ncsn_jax.app.data.sources import Labels
from ncsn_jax.errors import UserError
from ncsn_jax.types import ScoreFn

MODELS = {
    "ncsn": models.NCSN,
    "ncsnv2": models.NCSNv2,
    "ncsnv2_deeper": models.NCSNv2Deeper,
    "ncsnv2_deepest": models.NCSNv2Deepest,
    "ncsn_simplified": models.SimplifiedNCSN,
    "ncsnpp": models.NCSNpp,
}
_MAX_WORKERS = 16
SDES = {"ve": sde.VE, "vp": sde.VP, "subvp": sde.SubVP}


def make_sigmas(config: ConfigDict) -> jax.Array:
    """Returns the noise ladder `[L]`."""
    model = config.model
    try:
        return sigmas.geometric(model.sigma_begin, model.sigma_end, model.num_levels)
    except ValueError as error:
        raise UserError(f"config.model: {error}") from None


def make_model(config: ConfigDict, *, dtype: str = "float32", remat: bool = False) -> nn.Module:
    """Returns the network, which computes in `dtype`; with `remat` it keeps few activations."""
    model, network = config.model, MODELS[config.model.name]
    options = {"dtype": jnp.dtype(dtype), "remat": remat}
    if config.data.labels:
        options["num_classes"] = num_classes(config)
    if network is models.NCSN:
        return network(model.features, model.num_levels, model.normalization, **options)
    if model.name != "ncsnpp":
        return network(model.features, make_sigmas(config), **options)
    is_ve = config.training.sde == "ve"
    is_fourier = is_ve and config.training.continuous
    parts = {k: tuple(v) if isinstance(v, tuple | list) else v for k, v in config.ncsnpp.items()}
    return network(
        model.features,
        image_size=min(image_shape(config)[:2]),
        embedding_type="fourier" if is_fourier else "positional",
        scale_by_sigma=is_ve,
        sigmas=make_sigmas(config) if is_ve and not is_fourier else None,
        centered=config.data.centered,
        **parts,
        **options,
    )


def make_sde(config: ConfigDict) -> sde.SDE:
    """Returns the SDE; for a ladder, the variance-exploding SDE from its first to its last sigma."""
    model, kind = config.model, config.training.sde
    if kind in ("none", "ve"):
        return sde.VE(model.sigma_end, model.sigma_begin)
    return SDES[kind](model.beta_min, model.beta_max)


def num_levels(config: ConfigDict) -> int | None:
    """Returns the number of levels an SDE's network was trained on, or None for continuous time."""
    return None if config.training.continuous else config.model.num_levels


def num_classes(config: ConfigDict) -> int:
    """Returns the number of classes that a run's network knows, 0 without labels."""
    return config.model.num_classes if config.data.labels else 0


def make_score_fn(
    config: ConfigDict, params, **given: jax.Array
) -> tuple[ScoreFn, sde.TimeScoreFn]:
    """Returns a run's score for samplers: as a function of sigma, and of the SDE's time.

    Args:
      config: the run's configuration.
      params: its parameters.
      **given: what else the network is given of each example, `[B, ...]` each.
    """
    model, process = make_model(config, dtype=config.sampling.dtype), make_sde(config)
    precision = config.sampling.precision
    if config.training.sde == "none":
        sigma_score_fn = models.score_fn(model, params, make_sigmas(config), **given)
        sigma_score_fn = at_precision(sigma_score_fn, precision)
        return sigma_score_fn, sde.from_sigma_score(process, sigma_score_fn)
    time_score_fn = models.time_score_fn(
        model, params, process, num_levels=num_levels(config), **given
    )
    time_score_fn = at_precision(time_score_fn, precision)
    return sde.to_sigma_score(process, time_score_fn), time_score_fn


def at_precision(function: Callable, precision: str) -> Callable:
    """Returns the function with its float32 products, and its derivatives', at that precision."""

    def call(*args):
        with jax.default_matmul_precision(precision):
            return function(*args)

    return function if precision == "default" else call


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the optimizer."""
    adam = {name: value for name, value in config.optim.items() if name != "schedule"}
    options = adam | {"decay_steps": _decay_steps(config)}
    return training.make_optimizer(**options, grad_clip=config.training.grad_clip)


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """Returns the learning rate as a function of the step."""
    optim = config.optim
    return training.make_schedule(optim.learning_rate, optim.warmup_steps, _decay_steps(config))


def _decay_steps(config: ConfigDict) -> int:
    return config.training.num_steps if config.optim.schedule == "cosine" else 0


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """Returns (H, W, C)."""
    return (*transforms.sides(config.data.image_size), config.data.channels)


def make_init(config: ConfigDict) -> Callable[[jax.Array], training.TrainState]:
    """Returns the function that maps a key to the initial state."""
    model, ema = make_model(config), config.model.ema_decay > 0
    return training.make_init(model, make_optimizer(config), image_shape(config), ema=ema)


def make_objective(
    config: ConfigDict, *, dtype: str = "float32", remat: bool = False
) -> objectives.Objective:
    """Returns the objective that training minimises, with its network."""
    model, options = make_model(config, dtype=dtype, remat=remat), config.training
    if options.sde != "none":
        return objectives.diffusion(
            model,
            make_sde(config),
            num_levels=num_levels(config),
            likelihood_weighting=options.likelihood_weighting,
        )
    loss = objectives.LOSSES[options.loss]
    if options.loss == "ssm":
        loss = functools.partial(loss, num_projections=options.num_projections)
    return objectives.ladder(model, make_sigmas(config), loss, anneal_power=options.anneal_power)


def make_train_steps(config: ConfigDict) -> Callable:
    """Returns `training.train_steps(state, images, seed, ...)` with this configuration's options."""
    options = config.training
    objective = make_objective(config, dtype=options.dtype, remat=options.remat)

    def score_fn(params, keys, **given):
        return at_precision(objective.score_fn(params, keys, **given), options.precision)

    return functools.partial(
        training.train_steps,
        objective=objective._replace(score_fn=score_fn),
        optimizer=make_optimizer(config),
        microbatches=options.microbatches,
        skip_nonfinite=options.skip_nonfinite > 0,
        ema_decay=config.model.ema_decay,
        random_flip=config.data.random_flip,
        dequantize=config.data.dequantize and not config.data.value_range,
        centered=config.data.centered,
        reduce_mean=options.reduce_mean,
        num_classes=num_classes(config),
        label_dropout=config.model.label_dropout,
    )


def load_labels(config: ConfigDict, split: str = "train") -> tuple[np.ndarray | Labels, int]:
    """Returns the class of each image of a split, `[N]`, and the number of classes."""
    options = config.data
    return data.load_labels(
        options.dataset, options.data_dir, split=split, cache_bytes=options.cache_bytes
    )


def load_classes(config: ConfigDict, *, given: bool = False) -> np.ndarray | Labels | None:
    """Returns the class of each training image of a run with labels, `[N]`; None for other runs.

    Args:
      config: the run's configuration.
      given: whether its images are an array that no file holds.

    Raises:
      UserError: if there are no labels, or the network has another number of classes.
    """
    if not config.data.labels:
        return None
    if given:
        raise UserError(
            "config.data.labels=True must be False for an array of images, which has no labels"
        )
    labels, count = load_labels(config)
    if count != config.model.num_classes:
        raise UserError(
            f"config.model.num_classes={config.model.num_classes} must be {count}, the number of classes of "
            f"config.data.dataset={config.data.dataset!r}"
        )
    return labels


def load_images(
    config: ConfigDict, split: str = "train", images: np.ndarray | None = None
) -> data.Images:
    """Returns the images of one split of `config.data.dataset`, or of the array `images` if given.

    They are `[N, H, W, C]`: floating point if `config.data.value_range` is set, else uint8.
    """
    options = config.data
    source, cache_bytes = images, options.cache_bytes
    if images is None and arrays.is_array(options.dataset):
        source = os.path.join(storage.path(options.data_dir), storage.path(options.dataset))
    if source is not None:
        ranges, shape = options.value_range, image_shape(config)
        return arrays.load(
            source,
            shape,
            ranges,
            split=split,
            holdout=options.holdout,
            cache_bytes=cache_bytes,
        )
    if options.value_range:
        raise UserError(
            f"data.value_range={tuple(options.value_range)} must be () for data.dataset="
            f"{options.dataset!r}, whose images are bytes; floating-point data come in .npy and .npz files"
        )
    if options.channels not in (1, 3):
        raise UserError(
            f"data.channels={options.channels} must be 1 or 3 for data.dataset={options.dataset!r}; only "
            "arrays may have other numbers"
        )
    return data.load(
        options.dataset,
        options.data_dir,
        options.image_size,
        options.channels,
        split=split,
        crop_size=options.crop_size,
        background=options.background,
        holdout=options.holdout,
        cache_bytes=cache_bytes,
    )


def num_workers(config: ConfigDict) -> int:
    """Returns how many threads decode training images: by default all spare cores.

    An accelerator needs one core of its host. On a CPU the cores also train, so half of them decode. More
    than 16 threads in one process slow each other down.
    """
    if config.data.workers >= 0:
        return config.data.workers
    spare = cpu.cores() - 1 if jax.default_backend() != "cpu" else cpu.cores() // 2
    return min(max(1, spare), _MAX_WORKERS)


def halvings(config: ConfigDict) -> int:
    """Returns how often the network halves the sides of an image."""
    if config.model.name == "ncsnpp":
        return max(len(config.ncsnpp.ch_mult) - 1, 0)
    return MODELS[config.model.name].HALVINGS
