"""Checks the rules between the fields of a configuration.

A rule takes a configuration whose fields are each valid, and yields `(field, holds, allowed)`. If `holds` is
False, `ncsn_jax.app.schema.check` stops with "config.<field>=<value> must be <allowed>". So the code after a
`yield` may rely on it.
"""

import math
from collections.abc import Iterator

import jax.numpy as jnp

from ncsn_jax import models, sampling, sde
from ncsn_jax._checks import MAX_FLOAT
from ncsn_jax.app import build
from ncsn_jax.app.data import arrays
from ncsn_jax.errors import UserError, show

Found = Iterator[tuple[str, bool, str]]

# Networks not listed here have only instance normalization++.
_NORMALIZATIONS = {"ncsn": tuple(models.ncsn.NORMALIZATIONS), "ncsn_simplified": ("instance",)}
# Exact score matching takes one derivative per element of an image.
_MAX_EXACT_ELEMENTS = 1024
# How many numbers the images in memory at once may hold, and how many steps a chain may take.
_MAX_ELEMENTS, MAX_CHAIN = 2**34, 10**7
# How many numbers images compared in pixels may have: their covariance is the square of it.
MAX_PIXELS = 4096


def objective_exists(config) -> Found:
    """Requires an objective for the images, the network and the SDE."""
    model, training = config.model, config.training
    loss, count = training.loss, training.num_projections
    words = f"1 for config.training.loss={loss!r}; only 'ssm' uses projections"
    yield "training.num_projections", count == 1 or loss == "ssm", words
    yield (
        "training.loss",
        loss != "sm" or math.prod(build.image_shape(config)) <= _MAX_EXACT_ELEMENTS,
        f"'dsm' or 'ssm' for images of more than {_MAX_EXACT_ELEMENTS} elements: "
        "exact score matching takes one derivative per element",
    )
    name, kind, continuous = model.name, training.sde, training.continuous
    is_ncsnpp, of_kind = name == "ncsnpp", f"for config.training.sde={kind!r}"
    kinds = " or ".join(map(repr, (*build.SDES, "edm") if is_ncsnpp else ("none",)))
    yield "training.sde", is_ncsnpp == (kind != "none"), f"{kinds} for config.model.name={name!r}"
    yield "data.centered", is_ncsnpp or not config.data.centered, f"False for {name!r}"
    yield "data.centered", kind != "edm" or config.data.centered, f"True {of_kind}"
    yield "training.augment", is_ncsnpp or not training.augment, f"0 for config.model.name={name!r}"
    words = f"False for config.training.augment={training.augment}, which also flips"
    yield "data.random_flip", not (training.augment and config.data.random_flip), words
    yield "training.continuous", kind != "none" or not continuous, f"False {of_kind}"
    words = f"True {of_kind}, which has no discrete chain"
    yield "training.continuous", kind not in ("subvp", "edm") or continuous, words
    words = f"False for config.training.continuous={continuous}"
    yield "training.likelihood_weighting", continuous or not training.likelihood_weighting, words
    words = f"False {of_kind}"
    yield "training.likelihood_weighting", kind != "edm" or not training.likelihood_weighting, words
    if kind == "none":
        return
    yield "training.loss", loss == "dsm", f"'dsm' {of_kind}"
    yield "training.anneal_power", training.anneal_power == 2, f"2 {of_kind}"
    low, high = model.beta_min, model.beta_max
    if kind in ("vp", "subvp", "edm"):
        yield "model.beta_max", low <= high, f"at least config.model.beta_min={low}"
        yield "model.beta_max", high <= 1000, "at most 1000"
    if kind == "vp" and not continuous:
        words = f"at least {math.floor(high) + 1}, above config.model.beta_max={high}"
        yield "model.num_levels", model.num_levels > high, words


def network_exists(config) -> Found:
    """Requires that the network has the normalization, can halve the images, and can be built."""
    name = config.model.name
    allowed = _NORMALIZATIONS.get(name, ("instance++",))
    words = f"{' or '.join(map(repr, allowed))} for config.model.name={name!r}"
    yield "model.normalization", config.model.normalization in allowed, words
    sides, factor = build.image_shape(config)[:2], 2 ** build.halvings(config)
    words = f"a multiple of {factor} and at least 8 for config.model.name={name!r}"
    yield "data.image_size", all(n >= 8 and n % factor == 0 for n in sides), words
    if name != "ncsnpp":
        return
    features, multiples = config.model.features, tuple(config.ncsnpp.ch_mult)
    channels = models.normalized_channels(features, multiples, config.ncsnpp.num_res_blocks)
    uneven = sorted(c for c in channels if c < 4 or c % min(c // 4, 32))
    yield (
        "model.features",
        not uneven,
        f"a number whose multiples by config.ncsnpp.ch_mult={multiples} divide into normalization groups, "
        f"such as 4, 8, 16 or a multiple of 32: {uneven[0] if uneven else 0} channels do not",
    )
    parts = ("resblock_type", "fir", "progressive", "progressive_input")
    found = tuple(config.ncsnpp[part] for part in parts)
    if found not in models.ARCHITECTURES:
        raise UserError(
            f"config.ncsnpp: ({', '.join(parts)})={show(found)} must be one of "
            f"{', '.join(map(str, models.ARCHITECTURES))}"
        )
    embedding = build.make_model(config).embedding_type
    words = "0 for a network with Fourier features, whose fixed frequencies it would shrink"
    is_fixed = embedding.startswith("fourier")
    yield "optim.weight_decay", not (is_fixed and config.optim.weight_decay), words


def steps_of_training(config) -> Found:
    """Requires that periodic work falls between two calls."""
    training = config.training
    every, per_call = training.checkpoint_every, training.steps_per_call
    words = f"0 or a multiple of config.training.checkpoint_every={every}"
    yield "training.keep_every", training.keep_every % every == 0, words
    for name in ("num_steps", "checkpoint_every", "log_every", "sample_every"):
        words = f"a multiple of config.training.steps_per_call={per_call}"
        yield f"training.{name}", training[name] % per_call == 0, words
    yield "evaluation.every", config.evaluation.every % per_call == 0, words


def classes_and_guidance(config) -> Found:
    """Requires labels for classes, and classes or another run for guidance."""
    options, dataset = config.sampling, config.data.dataset
    has_labels = dataset != "image_folder" and not arrays.is_array(dataset)
    words = f"False for config.data.dataset={dataset!r}, which has no labels"
    yield "data.labels", has_labels or not config.data.labels, words
    count = build.num_classes(config)
    words = f"() or classes below {count}" if count else "() without config.data.labels"
    yield "sampling.label", all(label < count for label in options.label), words
    words = "without config.data.labels and config.sampling.guide"
    is_guided = bool(count or options.guide)
    yield "sampling.guidance", options.guidance == 1 or is_guided, f"1 {words}"
    yield "sampling.guidance_interval", is_guided or not options.guidance_interval, f"() {words}"
    words = "-1 without config.sampling.guide"
    yield "sampling.guide_step", options.guide_step == -1 or bool(options.guide), words


def evaluation_in_training(config) -> Found:
    """Requires features without a download, and distances to choose the best checkpoint by."""
    options, size = config.evaluation, math.prod(build.image_shape(config))
    yield (
        "evaluation.every",
        not options.every or options.features == "classifier" or size <= MAX_PIXELS,
        f"0 for images of {size} numbers, unless they have labels and config.evaluation.features="
        f"'classifier': pixels are compared up to {MAX_PIXELS}",
    )
    words = "False unless config.evaluation.every is above 0, such as 500"
    yield "training.keep_best", bool(options.every) or not config.training.keep_best, words


def averages_of_parameters(config) -> Found:
    """Requires one EMA at most, snapshots of averages, and none for an optimizer that has its own."""
    model, training, optim = config.model, config.training, config.optim
    words = f"0 for config.model.ema_halflife={model.ema_halflife}"
    yield "model.ema_decay", not (model.ema_decay and model.ema_halflife), words
    words = "0 unless config.model.ema_halflife is above 0"
    yield "model.ema_rampup", model.ema_halflife > 0 or not model.ema_rampup, words
    words = f"above 0 for config.model.ema_power={tuple(model.ema_power)}: the checkpoints that are kept are "
    words += "its snapshots; take about num_steps / 40"
    yield "training.keep_every", training.keep_every > 0 or not model.ema_power, words
    if optim.name == "schedule_free":
        of_optimizer = "for config.optim.name='schedule_free', which has its own"
        yield "model.ema_decay", model.ema_decay == 0, f"0 {of_optimizer} average"
        yield "model.ema_halflife", model.ema_halflife == 0, f"0 {of_optimizer} average"
        yield "model.ema_power", not model.ema_power, f"() {of_optimizer} average"
        yield "optim.schedule", optim.schedule == "constant", f"'constant' {of_optimizer} decay"
        yield "optim.beta1", optim.beta1 > 0, "above 0 for config.optim.name='schedule_free'"


def batches_on_devices(config, count: int) -> Found:
    """Requires that the devices share a batch evenly, and that images can fit in memory."""
    training, sampler = config.training, config.sampling
    parts = training.microbatches
    words = f"a multiple of the number of devices, {count}"
    words += f", times config.training.microbatches={parts}" if parts > 1 else ""
    yield "training.batch_size", training.batch_size % (count * parts) == 0, words
    elements = math.prod(build.image_shape(config))
    for field, images in (
        ("training.batch_size", training.batch_size * training.steps_per_call),
        ("sampling.num_samples", sampler.num_samples),
        ("sampling.batch_size", sampler.batch_size),
        ("sampling.preview_samples", sampler.preview_samples),
        ("classifier.batch_size", config.classifier.batch_size),
    ):
        words = f"smaller: {images} images of {elements} numbers do not fit in any memory"
        yield field, images * elements <= _MAX_ELEMENTS, words


def ladder_of_noise(config) -> Found:
    """Requires a decreasing ladder, a chain that ends, and finite weights of the levels."""
    levels = config.model.num_levels
    words = f"at most {MAX_CHAIN // levels} with config.model.num_levels={levels}"
    count = levels * config.sampling.steps_per_level
    yield "sampling.steps_per_level", count <= MAX_CHAIN, words
    build.make_sigmas(config)
    ends, power = (config.model.sigma_begin, config.model.sigma_end), config.training.anneal_power
    yield (
        "training.anneal_power",
        all(abs((power - 2) * math.log(end)) < math.log(MAX_FLOAT) for end in ends),
        "a number for which the weights of all levels are finite in float32",
    )


def predictor_and_corrector(config) -> Found:
    """Requires that the predictor and the corrector exist for the SDE and have enough steps."""
    options, process = config.sampling, build.make_sde(config)
    if options.method != "predictor_corrector":
        return
    predictor, corrector, snr = options.predictor, options.corrector, options.snr
    if corrector != "none" and config.training.sde != "subvp":
        words = f"above 0 for corrector {corrector!r}, such as 0.16"
        yield "sampling.snr", snr > 0, words
    try:
        sampling.check_choice(process, predictor, corrector, snr or None)
    except ValueError as error:
        raise UserError(f"config.sampling: {error}") from None
    beta_max = config.model.beta_max
    if type(process) is sde.VP and (predictor, corrector) != ("euler_maruyama", "none"):
        least = math.floor(beta_max) + 1
        yield (
            "sampling.num_steps",
            options.num_steps >= least,
            f"at least {least} for the discrete chain of 'vp' with config.model.beta_max={beta_max}; "
            "predictor 'euler_maruyama' without a corrector allows fewer",
        )


def sigmas_of_sampler(config) -> Found:
    """Requires that the sampler's sigmas exist and that the SDE reaches them."""
    options, model, kind = config.sampling, config.model, config.training.sde
    by_schedule = options.method in build.SCHEDULED
    if by_schedule:
        build.make_sampling_sigmas(config)
    from_model = by_schedule and options.schedule != "sde"
    if kind in ("vp", "subvp") and (from_model or options.method == "annealed_langevin"):
        largest = float(build.make_sde(config).sigma(jnp.ones(1))[0])
        yield (
            "model.sigma_begin",
            model.sigma_begin <= largest,
            f"at most {largest:.4g}, the sigma of config.training.sde={kind!r} at t = 1, "
            f"for config.sampling.method={options.method!r}",
        )


RULES = (
    objective_exists,
    network_exists,
    classes_and_guidance,
    steps_of_training,
    evaluation_in_training,
    averages_of_parameters,
    ladder_of_noise,
    predictor_and_corrector,
    sigmas_of_sampler,
)
