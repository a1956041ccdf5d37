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

from ncsn_jax import (
    augmentation,
    averages,
    models,
    objectives,
    preconditioning,
    sde,
    sigmas,
    training,
)
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


SCHEDULES = ("karras", "exponential", "cosine", "sde")
# The sampling methods that take their sigmas from a schedule.
SCHEDULED = ("heun", "euler", "dpm_solver")


def make_sampling_sigmas(config: ConfigDict) -> jax.Array:
    """Returns the sigmas `[num_steps]` of the methods in `SCHEDULED`."""
    model, options = config.model, config.sampling
    count, schedule = options.num_steps, options.schedule
    try:
        if schedule == "sde":
            return sigmas.from_sde(make_sde(config), count, end=options.end)
        ends = model.sigma_begin, model.sigma_end, count
        if schedule == "karras":
            return sigmas.karras(*ends, options.rho)
        return {"exponential": sigmas.exponential, "cosine": sigmas.cosine}[schedule](*ends)
    except ValueError as error:
        raise UserError(
            f"config.sampling.num_steps={count} for {options.method!r}: {error}"
        ) from None


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
    is_ve, embedding = config.training.sde == "ve", "positional"
    is_ladder = is_ve and not config.training.continuous
    if is_ve and not is_ladder:
        embedding = "fourier"
    elif config.training.sde == "edm" and config.ncsnpp.fir:  # NCSN++, not DDPM++
        embedding = "fourier_linear"
    parts = {k: tuple(v) if isinstance(v, tuple | list) else v for k, v in config.ncsnpp.items()}
    return network(
        model.features,
        image_size=min(image_shape(config)[:2]),
        embedding_type=embedding,
        scale_by_sigma=is_ve,
        sigmas=make_sigmas(config) if is_ladder else None,
        centered=config.data.centered,
        augment_features=augmentation.LABEL_SIZE if config.training.augment else 0,
        **parts,
        **options,
    )


def make_sde(config: ConfigDict) -> sde.SDE:
    """Returns the SDE; for a ladder and for 'edm', the variance-exploding SDE between the run's sigmas."""
    model, kind = config.model, config.training.sde
    if kind in ("vp", "subvp"):
        return SDES[kind](model.beta_min, model.beta_max)
    return sde.VE(model.sigma_end, model.sigma_begin)


def make_preconditioning(config: ConfigDict) -> preconditioning.Preconditioning:
    """Returns the coefficients of a denoiser, for `training.sde='edm'`."""
    kind = config.edm.preconditioning
    if kind == "edm":
        return preconditioning.edm(config.edm.sigma_data)
    return preconditioning.ve() if kind == "ve" else preconditioning.vp(_vp(config))


def _make_noise(config: ConfigDict) -> preconditioning.Noise:
    options, model = config.edm, config.model
    if options.noise == "edm":
        return preconditioning.edm_noise(options.sigma_data, options.p_mean, options.p_std)
    if options.noise == "ve":
        return preconditioning.ve_noise(model.sigma_end, model.sigma_begin)
    return preconditioning.vp_noise(_vp(config))


def _vp(config: ConfigDict) -> sde.VP:
    return sde.VP(config.model.beta_min, config.model.beta_max)


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
    if config.training.sde in ("none", "edm"):
        if config.training.sde == "edm":
            coefficients = make_preconditioning(config)
            sigma_score_fn = models.preconditioned_score_fn(model, params, coefficients, **given)
        else:
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
    options = {name: value for name, value in config.optim.items() if name != "schedule"}
    options |= _decay(config) | {"grad_clip": config.training.grad_clip}
    return training.make_optimizer(**options)


def make_schedule(config: ConfigDict) -> optax.Schedule:
    """Returns the learning rate as a function of the step."""
    optim = config.optim
    return training.make_schedule(optim.learning_rate, optim.warmup_steps, **_decay(config))


def _decay(config: ConfigDict) -> dict[str, int]:
    kind = config.optim.schedule
    return {
        "decay_steps": config.training.num_steps if kind == "cosine" else 0,
        "decay_after": config.optim.decay_after if kind == "rsqrt" else 0,
    }


def is_elementwise(config: ConfigDict) -> bool:
    """Returns whether the optimizer treats all elements alike, so that parameters may be packed."""
    return config.optim.name != "muon"


def gammas(config: ConfigDict) -> tuple[float, ...]:
    """Returns the gammas of the power-function averages that training keeps."""
    return tuple(averages.gamma_of_width(width) for width in config.model.ema_power)


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """Returns (H, W, C)."""
    return (*transforms.sides(config.data.image_size), config.data.channels)


def make_init(config: ConfigDict) -> Callable[[jax.Array], training.TrainState]:
    """Returns the function that maps a key to the initial state."""
    model, ema = make_model(config), config.model.ema_decay > 0 or config.model.ema_halflife > 0
    return training.make_init(
        model,
        make_optimizer(config),
        image_shape(config),
        ema=ema,
        averages=len(config.model.ema_power),
    )


def make_objective(
    config: ConfigDict, *, dtype: str = "float32", remat: bool = False
) -> objectives.Objective:
    """Returns the objective that training minimises, with its network."""
    model, options = make_model(config, dtype=dtype, remat=remat), config.training
    if options.sde == "edm":
        return objectives.edm(model, make_preconditioning(config), _make_noise(config))
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
    options, ema_decay = config.training, config.model.ema_decay
    if config.model.ema_halflife:
        ema_decay = training.make_ema_decay(
            config.model.ema_halflife, options.batch_size, config.model.ema_rampup
        )
    objective = make_objective(config, dtype=options.dtype, remat=options.remat)

    def score_fn(params, keys, **given):
        return at_precision(objective.score_fn(params, keys, **given), options.precision)

    return functools.partial(
        training.train_steps,
        objective=objective._replace(score_fn=score_fn),
        optimizer=make_optimizer(config),
        microbatches=options.microbatches,
        skip_nonfinite=options.skip_nonfinite > 0,
        ema_decay=ema_decay,
        gammas=gammas(config),
        random_flip=config.data.random_flip,
        dequantize=config.data.dequantize and not config.data.value_range,
        centered=config.data.centered,
        augment=options.augment,
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
