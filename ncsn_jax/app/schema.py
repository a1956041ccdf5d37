"""The fields of a configuration, and what they may hold. `check` refuses a value that cannot work, before
anything is loaded or compiled.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from ncsn_jax import models, objectives, sampling, sde, sigmas
from ncsn_jax.app import build
from ncsn_jax.errors import UserError, show

METHODS = ("annealed_langevin", "predictor_corrector", "probability_flow", "heun")

# The normalizations that a network exists with, where they are not just instance normalization++.
_NORMALIZATIONS = {
    "ncsn": tuple(models.ncsn.NORMALIZATIONS),
    "ncsn_simplified": ("instance",),
}

# The types that a network can compute in.
_DTYPES = ("float32", "bfloat16")

# Exact score matching takes one derivative for each of so many elements of an image.
_MAX_EXACT_ELEMENTS = 1024

_COUNTS = (
    "data.image_size",
    "model.features",
    "training.batch_size",
    "training.num_steps",
    "training.steps_per_call",
    "training.checkpoint_every",
    "training.log_every",
    "training.checkpoints_kept",
    "training.num_projections",
    "training.microbatches",
    "ncsnpp.num_res_blocks",
    "sampling.steps_per_level",
    "sampling.corrector_steps",
    "sampling.num_steps",
    "sampling.num_samples",
    "sampling.batch_size",
    "sampling.preview_samples",
    "inpainting.num_images",
    "inpainting.num_completions",
    "likelihood.num_images",
    "likelihood.num_projections",
    "interpolation.num_pairs",
    "interpolation.num_steps",
    "classifier.features",
    "classifier.num_steps",
    "classifier.batch_size",
)
_POSITIVE = (
    "optim.learning_rate",
    "optim.eps",
    "model.beta_min",
    "model.beta_max",
    "ncsnpp.fourier_scale",
    "sampling.epsilon",
    "sampling.rho",
    "sampling.rtol",
    "sampling.atol",
    "sampling.temperature",
    "likelihood.rtol",
    "likelihood.atol",
    "classifier.learning_rate",
)
_NOT_NEGATIVE = (
    "seed",
    "training.skip_nonfinite",
    "training.sample_every",
    "training.keep_every",
    "training.grad_clip",
    "optim.weight_decay",
    "optim.warmup_steps",
    "ncsnpp.init_scale",
    "sampling.snr",
    "sampling.churn",
    "classifier.scale",
)
_FRACTIONS = ("model.ema_decay", "ncsnpp.dropout", "optim.beta1", "optim.beta2")

# What every field holds.
_INTEGERS = (
    *_COUNTS,
    "seed",
    "data.channels",
    "data.crop_size",
    "classifier.label",
    "model.num_levels",
    "training.sample_every",
    "training.keep_every",
    "training.skip_nonfinite",
    "optim.warmup_steps",
)
_NUMBERS = (
    *_POSITIVE,
    *_FRACTIONS,
    "model.sigma_begin",
    "model.sigma_end",
    "training.anneal_power",
    "training.grad_clip",
    "optim.weight_decay",
    "ncsnpp.init_scale",
    "sampling.snr",
    "sampling.churn",
    "sampling.end",
    "likelihood.end",
    "classifier.scale",
)
_BOOLEANS = (
    "data.random_flip",
    "data.dequantize",
    "data.centered",
    "ncsnpp.fir",
    "ncsnpp.skip_rescale",
    "training.continuous",
    "training.likelihood_weighting",
    "training.reduce_mean",
    "sampling.denoise",
    "sampling.gif",
    "training.remat",
    "inpainting.keep_observed",
    "likelihood.exact",
)
_STRINGS = (
    "data.dataset",
    "data.data_dir",
    "model.name",
    "model.normalization",
    "ncsnpp.resblock_type",
    "ncsnpp.progressive",
    "ncsnpp.progressive_input",
    "training.loss",
    "training.sde",
    "training.dtype",
    "sampling.method",
    "sampling.predictor",
    "sampling.corrector",
    "sampling.init",
    "sampling.name",
    "sampling.dtype",
    "inpainting.mask",
    "inpainting.images",
    "inpainting.scheme",
    "likelihood.split",
)
_LISTS = ("ncsnpp.ch_mult", "ncsnpp.attn_resolutions")
_TYPES = (
    dict.fromkeys(_INTEGERS, ((int,), "a whole number"))
    | dict.fromkeys(_NUMBERS, ((int, float), "a number"))
    | dict.fromkeys(_BOOLEANS, ((bool,), "True or False"))
    | dict.fromkeys(_STRINGS, ((str,), "a string"))
    | {"sampling.clip": ((list,), "() or (low, high)")}
    | dict.fromkeys(_LISTS, ((list,), "a tuple of whole numbers, such as (1, 2)"))
)

# The largest values: of any integer (steps are counted in int32), and those beyond which no machine gets.
_MAX_INTEGER = 2**31 - 1
_MOST = dict.fromkeys(_INTEGERS, _MAX_INTEGER) | {
    "seed": 2**32 - 1,
    "data.image_size": 4096,
    "model.features": 1024,
    "model.num_levels": 100_000,
    "ncsnpp.num_res_blocks": 100,
    "training.num_projections": 1000,
    "inpainting.num_completions": 10_000,
    "likelihood.num_projections": 1000,
    "interpolation.num_pairs": 10_000,
    "interpolation.num_steps": 1000,
    "classifier.features": 1024,
}
# Images that are in memory at once, in numbers, and steps of a chain.
_MAX_ELEMENTS, _MAX_CHAIN = 2**34, 10**7
# The numbers above 0 that float32 holds, and the largest below 1.
_SMALLEST, _LARGEST, _BELOW_ONE = 1.2e-38, 3.4e38, 1 - 2**-24
_MAX_NAME = 100


def flatten(config: ml_collections.ConfigDict) -> dict:
    """Returns the fields as one dictionary from dotted names to plain values."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat.update({f"{name}.{k}": v for k, v in flatten(value).items()})
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


# When training ends, and what it writes on its way: nothing of the steps themselves.
SCHEDULE = (
    "training.num_steps",
    "training.checkpoint_every",
    "training.log_every",
    "training.sample_every",
    "training.checkpoints_kept",
    "training.keep_every",
)
# How the fields begin that are of what is made with a trained network.
NOT_OF_TRAINING = ("sampling.", "inpainting.", "likelihood.", "interpolation.", "classifier.")


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for the first field whose value cannot work."""
    try:
        flat = flatten(config)
    # A configuration is the user's code: it may hold itself, or fields without a value.
    except Exception as error:
        raise UserError(f"--config: {type(error).__name__}: {error}") from None

    def require(field: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise UserError(f"config.{field}={show(flat[field])} must be {allowed}")

    for field in _TYPES:
        if field not in flat:
            raise UserError(f"config.{field} is missing (configs/default.py lists all fields)")
    for field in flat:
        if field not in _TYPES:
            raise UserError(f"config.{field} is no field (configs/default.py lists all fields)")
    for field, (types, name) in _TYPES.items():
        value = flat[field]
        sound = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        require(field, sound, name)
    for field in _COUNTS:
        require(field, flat[field] >= 1, "at least 1")
    for field, most in _MOST.items():
        require(field, flat[field] <= most, f"at most {most}")
    for field in _POSITIVE:
        allowed = f"a finite number above 0, from {_SMALLEST:g} to {_LARGEST:g}"
        require(field, _SMALLEST <= flat[field] <= _LARGEST, allowed)
    for field in _NOT_NEGATIVE:
        require(field, 0 <= flat[field] <= _LARGEST, f"0 or more, at most {_LARGEST:g}")
    for field in _FRACTIONS:
        require(field, 0 <= flat[field] <= _BELOW_ONE, "in [0, 1), also in float32")
    for field, choices in (
        ("data.channels", (1, 3)),
        ("model.name", tuple(build.MODELS)),
        ("training.loss", tuple(objectives.LOSSES)),
        ("training.dtype", _DTYPES),
        ("sampling.dtype", _DTYPES),
        ("training.sde", ("none", *build.SDES)),
        ("sampling.method", METHODS),
        ("inpainting.scheme", ("paper", "ncsn", "ncsnv2")),
        ("likelihood.split", ("train", "test")),
        ("sampling.init", ("uniform", "normal", "centred_normal")),
    ):
        require(field, flat[field] in choices, " or ".join(map(repr, choices)))
    require("data.crop_size", flat["data.crop_size"] >= -1, "-1, 0 or a number of pixels")
    allowed = _NORMALIZATIONS.get(flat["model.name"], ("instance++",))
    require(
        "model.normalization",
        flat["model.normalization"] in allowed,
        f"{' or '.join(map(repr, allowed))} for config.model.name={flat['model.name']!r}",
    )
    require(
        "training.num_projections",
        flat["training.num_projections"] == 1 or flat["training.loss"] == "ssm",
        f"1 for config.training.loss={flat['training.loss']!r}; 'ssm' projects",
    )
    size = flat["data.image_size"]
    require(
        "training.loss",
        flat["training.loss"] != "sm" or size**2 * flat["data.channels"] <= _MAX_EXACT_ELEMENTS,
        f"'dsm' or 'ssm' for images of more than {_MAX_EXACT_ELEMENTS} elements, as these are: "
        "exact score matching takes one derivative for each",
    )
    _check_sde(flat, require)
    factor = 2 ** build.halvings(config)
    require(
        "data.image_size",
        size >= 8 and size % factor == 0,
        f"a multiple of {factor}, 8 or more, for config.model.name={flat['model.name']!r}",
    )
    require("model.num_levels", flat["model.num_levels"] >= 2, "at least 2")
    _check_network(flat, require)
    require("model.features", flat["model.features"] >= 2, "at least 2")
    clip = flat["sampling.clip"]
    sound = not clip or (
        len(clip) == 2
        and all(isinstance(c, int | float) and not isinstance(c, bool) for c in clip)
        and -_LARGEST <= clip[0] < clip[1] <= _LARGEST
    )
    require("sampling.clip", sound, "() or (low, high), finite")
    name = flat["sampling.name"]
    require(
        "sampling.name",
        len(name) <= _MAX_NAME and not set(name) - _NAME,
        f"made of letters, digits, '-', '_' and '.', {_MAX_NAME} at most",
    )
    every = flat["training.checkpoint_every"]
    allowed = f"0 or a multiple of config.training.checkpoint_every={every}"
    require("training.keep_every", flat["training.keep_every"] % every == 0, allowed)
    per_call = flat["training.steps_per_call"]
    for name in ("num_steps", "checkpoint_every", "log_every", "sample_every"):
        field = f"training.{name}"
        allowed = f"a multiple of config.training.steps_per_call={per_call}"
        require(field, flat[field] % per_call == 0, allowed)
    count, parts = jax.device_count(), flat["training.microbatches"]
    require(
        "training.batch_size",
        flat["training.batch_size"] % (count * parts) == 0,
        f"a multiple of the {count} devices"
        + (f" times config.training.microbatches={parts}" if parts > 1 else ""),
    )
    elements = size**2 * flat["data.channels"]
    for field, images_ in (
        ("training.batch_size", flat["training.batch_size"] * per_call),
        ("sampling.num_samples", flat["sampling.num_samples"]),
        ("sampling.batch_size", flat["sampling.batch_size"]),
        ("sampling.preview_samples", flat["sampling.preview_samples"]),
        ("classifier.batch_size", flat["classifier.batch_size"]),
    ):
        allowed = f"smaller: {images_} images of {elements} numbers are too much for any memory"
        require(field, images_ * elements <= _MAX_ELEMENTS, allowed)
    levels = flat["model.num_levels"]
    require(
        "sampling.steps_per_level",
        levels * flat["sampling.steps_per_level"] <= _MAX_CHAIN,
        f"at most {_MAX_CHAIN // levels} with config.model.num_levels={levels}",
    )
    build.make_sigmas(config)
    _check_sampler(config, flat, require)
    power = flat["training.anneal_power"]
    weights = [(power - 2) * math.log(flat[f"model.sigma_{end}"]) for end in ("begin", "end")]
    require(
        "training.anneal_power",
        all(abs(weight) < math.log(_LARGEST) for weight in weights),
        "a finite number for which the weights of all levels are float32",
    )


def _check_sde(flat: dict, require: Callable) -> None:
    """Refuses an objective that there is none of for the network and the SDE."""
    name, kind, continuous = flat["model.name"], flat["training.sde"], flat["training.continuous"]
    is_ncsnpp, of_kind = name == "ncsnpp", f"for config.training.sde={kind!r}"
    require(
        "training.sde",
        is_ncsnpp == (kind != "none"),
        f"{' or '.join(map(repr, build.SDES)) if is_ncsnpp else repr('none')} for config.model.name={name!r}",
    )
    require("data.centered", is_ncsnpp or not flat["data.centered"], f"False for {name!r}")
    require("training.continuous", kind != "none" or not continuous, f"False {of_kind}")
    require(
        "training.continuous", kind != "subvp" or continuous, f"True {of_kind}, which has no chain"
    )
    require(
        "training.likelihood_weighting",
        continuous or not flat["training.likelihood_weighting"],
        f"False for config.training.continuous={continuous}",
    )
    if kind == "none":
        return
    require("training.loss", flat["training.loss"] == "dsm", f"'dsm' {of_kind}")
    require("training.anneal_power", flat["training.anneal_power"] == 2, f"2 {of_kind}")
    low, high, levels = flat["model.beta_min"], flat["model.beta_max"], flat["model.num_levels"]
    if kind != "ve":
        require("model.beta_max", low <= high, f"at least config.model.beta_min={low}")
        require("model.beta_max", high <= 1000, "at most 1000")
    if kind == "vp" and not continuous:
        least = f"at least {math.floor(high) + 1}, above config.model.beta_max={high}"
        require("model.num_levels", levels > high, least)


def _check_network(flat: dict, require: Callable) -> None:
    """Refuses parts that no NCSN++ or DDPM++ is made of."""
    for field in _LISTS:
        value = flat[field]
        sound = all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= 4096 for n in value)
        require(field, sound, "a tuple of whole numbers, such as (1, 2)")
    count = len(flat["ncsnpp.ch_mult"])
    require("ncsnpp.ch_mult", 1 <= count <= 12, "one to twelve numbers, one for each level")
    if flat["model.name"] != "ncsnpp":
        return
    features, multiples = flat["model.features"], tuple(flat["ncsnpp.ch_mult"])
    channels = models.normalized_channels(features, multiples, flat["ncsnpp.num_res_blocks"])
    uneven = sorted(c for c in channels if c < 4 or c % min(c // 4, 32))
    require(
        "model.features",
        not uneven,
        f"such that its multiples by config.ncsnpp.ch_mult={multiples} can be normalized in groups, such as "
        f"4, 8, 16 or a multiple of 32: {uneven[0] if uneven else 0} channels cannot",
    )
    parts = ("resblock_type", "fir", "progressive", "progressive_input")
    found = tuple(flat[f"ncsnpp.{part}"] for part in parts)
    if found not in models.ARCHITECTURES:
        raise UserError(
            f"config.ncsnpp: ({', '.join(parts)})={show(found)} must be one of "
            f"{', '.join(map(str, models.ARCHITECTURES))}"
        )


def _check_sampler(config: ml_collections.ConfigDict, flat: dict, require: Callable) -> None:
    """Refuses a sampler that does not exist for the SDE, or an SDE that does not reach its sigmas."""
    for field in ("sampling.end", "likelihood.end"):
        require(field, 1e-7 <= flat[field] <= 0.5, "from 1e-7 to 0.5")
    require("interpolation.num_steps", flat["interpolation.num_steps"] >= 2, "at least 2")
    features = flat["classifier.features"]
    even = features >= 4 and all(c % min(c // 4, 32) == 0 for c in (features, 2 * features))
    require(
        "classifier.features", even, "4, 8, 16, 32 or another number that is normalized in groups"
    )
    require("sampling.rho", 1 <= flat["sampling.rho"] <= 100, "from 1 to 100")
    for section in ("sampling", "likelihood"):
        for field in (f"{section}.rtol", f"{section}.atol"):
            require(field, 1e-6 <= flat[field] <= 0.5, "from 1e-6, which float32 allows, to 0.5")
    require("sampling.churn", flat["sampling.churn"] <= 1000, "at most 1000")
    require("classifier.label", flat["classifier.label"] >= -1, "-1 or a class")
    require("sampling.num_steps", flat["sampling.num_steps"] <= _MAX_CHAIN, f"at most {_MAX_CHAIN}")
    process, method = build.make_sde(config), flat["sampling.method"]
    if method == "predictor_corrector":
        snr, corrector = flat["sampling.snr"], flat["sampling.corrector"]
        if corrector in sampling.CORRECTORS and flat["training.sde"] != "subvp":
            allowed = f"the signal-to-noise ratio of corrector {corrector!r}, such as 0.16"
            require("sampling.snr", snr > 0, allowed)
        try:
            sampling.check_choice(
                process, flat["sampling.predictor"], flat["sampling.corrector"], snr or None
            )
        except ValueError as error:
            raise UserError(f"config.sampling: {error}") from None
        least = math.floor(flat["model.beta_max"]) + 1
        on_chain = (flat["sampling.predictor"], flat["sampling.corrector"]) != (
            "euler_maruyama",
            "none",
        )
        chain = type(process) is sde.VP and on_chain
        require(
            "sampling.num_steps",
            not chain or flat["sampling.num_steps"] >= least,
            f"at least {least} for the chain of 'vp' with config.model.beta_max={flat['model.beta_max']}; "
            "predictor 'euler_maruyama' without a corrector takes fewer",
        )
    if method == "heun":
        ends, steps = (config.model.sigma_begin, config.model.sigma_end), flat["sampling.num_steps"]
        try:
            sigmas.karras(*ends, steps, flat["sampling.rho"])
        except ValueError as error:
            raise UserError(f"config.sampling.num_steps={steps} for 'heun': {error}") from None
    if flat["training.sde"] in ("vp", "subvp") and method in ("annealed_langevin", "heun"):
        largest = float(process.sigma(jnp.ones(1))[0])
        require(
            "model.sigma_begin",
            flat["model.sigma_begin"] <= largest,
            f"at most {largest:.4g}, the sigma of config.training.sde={flat['training.sde']!r} at t = 1, "
            f"for config.sampling.method={method!r}",
        )


_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
