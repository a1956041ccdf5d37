"""Makes the sampler that a configuration describes, for every kind of run and conditioning.

A `Sampler` is a chain of steps that can run in parts. Annealed Langevin dynamics, Heun's method and
DPM-Solver++ take a score of sigma, the others a score of an SDE's time. A run's network may give either, and
its SDE may work on images in [-1, 1]; this module converts. `Stream` names what samples are made for.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ncsn_jax import classifier, inverse, sampling
from ncsn_jax import sde as sdes
from ncsn_jax._random import Stream
from ncsn_jax.app import build, guides, restoration, schema
from ncsn_jax.errors import UserError
from ncsn_jax.images import center, width

NAMES = {
    Stream.SAMPLES: "samples",
    Stream.INPAINTING: "inpainting",
    Stream.COLORIZATION: "colorization",
    Stream.CLASSES: "classconditional",
    Stream.RESTORATION: "restoration",
}

# The methods available for it.
_METHODS = {
    Stream.SAMPLES: schema.METHODS,
    Stream.INPAINTING: ("annealed_langevin", "predictor_corrector"),
    Stream.COLORIZATION: ("predictor_corrector",),
    Stream.CLASSES: schema.METHODS,
    Stream.RESTORATION: schema.METHODS,
}

# The fields that determine a method's samples, besides seed and checkpoint. All but `_OF_START` are also the
# names of arguments of the library's functions.
_FIELDS = {
    "annealed_langevin": "epsilon steps_per_level denoise clip init",
    "predictor_corrector": "predictor corrector snr corrector_steps num_steps end denoise",
    "probability_flow": "rtol atol end temperature",
    "heun": "num_steps schedule churn",
    "euler": "num_steps schedule churn",
    "dpm_solver": "num_steps schedule order stochastic",
}
# The further fields of a schedule.
_OF_SCHEDULE = {"karras": ("rho",), "sde": ("end",)}
_OF_START = ("init", "temperature")

# The fields of guidance, which has an effect for runs with classes and for those with a guide.
_OF_GUIDANCE = ("sampling.guidance", "sampling.guidance_interval")


class Sampler(NamedTuple):
    """A chain of steps from noise to images.

    Attributes:
      num_steps: the number of steps.
      evaluations: a sample's network evaluations (NFE), or None if only sampling tells.
      start: `start(keys [B]) -> state`: x, in the space of the SDE, or a tuple that begins with it.
      advance: `advance(keys [B], params, state, (start, stop), *known) -> (state, evaluations int32 [B])`,
        runs a part of the steps. `known` is `[B, ...]` each: observed images and masks, grey images,
        measurements and perhaps their masks, or classes; images are in [0, 1]. For a network of classes
        its classes are the last. With a guide, `params` are a pair of the network's and the guide's.
      cause: the most likely cause of samples that are not finite.
      classes: the classes that the samples of a network of classes have in turn, `int32[n]`; None for
        another network.
      guide: the parameters of a guide, on the host; None if there is none.
    """

    num_steps: int
    evaluations: int | None
    start: Callable[[jax.Array], jax.Array]
    advance: Callable[..., tuple[jax.Array, jax.Array]]
    cause: str
    classes: np.ndarray | None = None
    guide: Any = None


def check(config: ConfigDict, task: Stream = Stream.SAMPLES) -> None:
    """Raises UserError if the configured method cannot do the task."""
    methods, name = _METHODS[task], NAMES[task]
    method = config.sampling.method
    if method not in methods:
        raise UserError(
            f"config.sampling.method={method!r} must be {' or '.join(map(repr, methods))} for {name}"
        )
    if task == Stream.COLORIZATION and config.data.channels != 3:
        raise UserError(f"config.data.channels={config.data.channels} must be 3 for {name}")
    if (scale := config.sampling.guidance) != 1:
        text = f"config.sampling.guidance={scale} must be 1 for {name}"
        if task == Stream.CLASSES:
            raise UserError(f"{text}, which a classifier guides")
        if not (task == Stream.SAMPLES or config.sampling.label or config.sampling.guide):
            raise UserError(f"{text} without config.sampling.label, which has no class")
    if task == Stream.RESTORATION:
        restoration.check(config)
    if config.sampling.gif and task == Stream.SAMPLES and method == "probability_flow":
        raise UserError(
            "config.sampling.gif=True must be False for config.sampling.method='probability_flow', whose "
            "solver chooses its own steps"
        )


def settings(config: ConfigDict) -> dict:
    """Returns the fields that determine a checkpoint's samples, with their values."""
    flat = schema.flatten(config)
    method = config.sampling.method
    names = [*_FIELDS[method].split(), "dtype", "precision"]
    if method in build.SCHEDULED:
        names += _OF_SCHEDULE.get(config.sampling.schedule, ())
    fields = [f"sampling.{name}" for name in ("method", *names)]
    # Without an SDE, the run fixes the ladder. With one, training may not use it, but these samplers do, and
    # every sampler of 'edm'.
    kind, by_sigma = config.training.sde, method in ("annealed_langevin", *build.SCHEDULED)
    if kind == "edm" or (kind != "none" and by_sigma):
        fields += ["model.sigma_begin", "model.sigma_end", "model.num_levels"]
    if config.data.labels:
        fields.append("sampling.label")
    if config.data.labels or config.sampling.guide:
        fields += _OF_GUIDANCE
    guide = guides.settings(config) if guides.is_used(config) else {}
    return {f: flat[f] for f in fields} | guide | {"seed": config.seed}


def classes_of(config: ConfigDict, task: Stream = Stream.SAMPLES) -> np.ndarray | None:
    """Returns the classes that a run's samples have in turn, `int32[n]`; None for a run without labels."""
    count = build.num_classes(config)
    if not count:
        return None
    all_classes = range(count) if task == Stream.SAMPLES else [count]  # the last is no class
    chosen = [count] if task == Stream.CLASSES else list(config.sampling.label) or all_classes
    return np.asarray(chosen, np.int32)


def make(
    config: ConfigDict, task: Stream = Stream.SAMPLES, of_classes: nn.Module | None = None
) -> Sampler:
    """Returns the sampler that a configuration describes, and opens its guide.

    Its `advance` takes the network's `params`; for `Stream.CLASSES` a pair of these and the parameters of the
    classifier `of_classes`.

    Raises:
      UserError: if the method cannot do the task.
    """
    check(config, task)
    guide, classes = guides.load(config), classes_of(config, task)
    if config.sampling.guidance == 1:
        score_fns = functools.partial(_score_fns, config, of_classes)
    else:
        score_fns = functools.partial(
            _guided_score_fns, config, guide and guide.config, _intervals(config)
        )
    if task == Stream.RESTORATION:
        operator_of = restoration.make_operator(config)
        score_fns = functools.partial(_posterior_score_fns, config, operator_of, score_fns)
    sampler = _MAKERS[config.sampling.method](config, score_fns, task)
    scale, interval = config.sampling.guidance, config.sampling.guidance_interval
    if scale not in (0, 1) or (scale == 0 and interval):
        sampler = _counted_twice(sampler)
    return sampler._replace(classes=classes, guide=guide and guide.params)


def _given(config, known: tuple) -> dict:
    """Returns what a network is given of each example: the classes, which are the last that is known."""
    return {"classes": known[-1]} if config.data.labels else {}


def _score_fns(
    config, of_classes: nn.Module | None, params: Any, known: tuple
) -> tuple[Callable, Callable]:
    """Returns the score functions of sigma and of time; with a classifier, given the known classes."""
    if of_classes is None:
        return build.make_score_fn(config, params, **_given(config, known))
    params, classifier_params = params
    process = build.make_sde(config)
    _, time_score_fn = build.make_score_fn(config, params)
    log_likelihood = classifier.log_likelihood(of_classes, classifier_params, process, known[0])
    time_score_fn = sampling.guided(time_score_fn, log_likelihood, config.classifier.scale)
    return sdes.to_sigma_score(process, time_score_fn), time_score_fn


def _guided_score_fns(
    config, guide: ConfigDict | None, intervals: tuple, params: Any, known: tuple
) -> tuple[Callable, Callable]:
    """Returns the score functions, guided away from no class, or from a guide of this configuration."""
    if guide is None:
        others = build.make_score_fn(config, params)
    else:
        params, guide_params = params
        given = _given(config, known) if guide.data.labels else {}
        others = build.make_score_fn(guide, guide_params, **given)
    score_fns = build.make_score_fn(config, params, **_given(config, known))
    scale = config.sampling.guidance
    functions = zip(score_fns, others, intervals, strict=True)
    return tuple(sampling.classifier_free(f, g, scale, interval) for f, g, interval in functions)


def _posterior_score_fns(
    config, operator_of: Callable, score_fns: Callable, params: Any, known: tuple
) -> tuple[Callable, Callable]:
    """Returns the score functions given the known measurements."""
    sigma_score_fn, _ = score_fns(params, known)
    given = inverse.posterior_score(
        sigma_score_fn,
        *restoration.condition(config, operator_of, known),
        method=config.restore.method,
        data_std=restoration.DATA_STD * width(config.data.centered),
    )
    return given, sdes.from_sigma_score(build.make_sde(config), given)


def _intervals(config) -> tuple:
    """Returns the interval with guidance, in sigma and in the SDE's time."""
    if not (interval := tuple(config.sampling.guidance_interval)):
        return ((0.0, math.inf),) * 2
    return interval, tuple(build.make_sde(config).time(jnp.asarray(interval, jnp.float32)).tolist())


def _counted_twice(sampler: Sampler) -> Sampler:
    """Returns the sampler, whose score takes two network evaluations."""

    def advance(*args):
        x, evaluations = sampler.advance(*args)
        return x, 2 * evaluations

    total = sampler.evaluations and 2 * sampler.evaluations
    return sampler._replace(evaluations=total, advance=advance)


def _arguments(config) -> dict:
    """Returns those fields of `config.sampling` that are arguments of the method's function."""
    names = _FIELDS[config.sampling.method].split()
    return {name: config.sampling[name] for name in names if name not in _OF_START}


def _prior(config, keys: jax.Array) -> jax.Array:
    """Draws from the SDE's prior, once per key."""
    shape, process = build.image_shape(config), build.make_sde(config)
    return jax.vmap(lambda key: process.prior_sample(key, shape))(keys)


def _no_count(x: jax.Array) -> jax.Array:
    """Returns zeros for the evaluations of a batch if they are known beforehand."""
    return jnp.zeros(x.shape[0], jnp.int32)


def _annealed_langevin(config, score_fns: Callable, task: Stream) -> Sampler:
    options, ladder, centered = config.sampling, build.make_sigmas(config), config.data.centered
    count = config.model.num_levels * options.steps_per_level + bool(options.denoise)
    arguments = _arguments(config)
    arguments["clip"] = tuple(center(c, centered) for c in options.clip) or None
    if task == Stream.INPAINTING:
        arguments |= {name: config.inpainting[name] for name in ("keep_observed", "scheme")}

    def start(keys):
        shape, scale = (keys.shape[0], *build.image_shape(config)), config.model.sigma_begin
        x = sampling.initial_samples(keys, shape, options.init, scale=scale / width(centered))
        return center(x, centered)

    def advance(keys, params, x, steps, *known):
        sigma_score_fn, _ = score_fns(params, known)
        inputs = keys, sigma_score_fn, x, ladder
        if task == Stream.INPAINTING:
            observed, mask = center(known[0], centered), known[1]
            x = sampling.inpaint(*inputs, observed, mask, steps=steps, **arguments)
        else:
            x = sampling.annealed_langevin(*inputs, steps=steps, **arguments)
        return x, _no_count(x)

    cause = f"config.sampling.epsilon={options.epsilon} is too large"
    return Sampler(count, count, start, advance, cause)


def _predictor_corrector(config, score_fns: Callable, task: Stream) -> Sampler:
    options, process, last = config.sampling, build.make_sde(config), config.sampling.num_steps
    arguments = _arguments(config) | {"snr": options.snr or None}
    corrections = options.corrector_steps if options.corrector != "none" else 0
    evaluations = last * (corrections + (options.predictor != "none"))

    def advance(keys, params, x, steps, *known):
        _, time_score_fn = score_fns(params, known)
        constrain, mask = None, None
        if task == Stream.INPAINTING:
            observed, mask = center(known[0], config.data.centered), known[1]
            constrain = sampling.known_pixels(process, observed, mask)
        elif task == Stream.COLORIZATION:
            constrain = sampling.known_grey(process, center(known[0], config.data.centered))
        x, _ = sampling.predictor_corrector(
            keys, process, time_score_fn, x, constrain=constrain, steps=steps, **arguments
        )
        if mask is not None and config.inpainting.keep_observed:
            x = jnp.where((steps[1] == last) & mask.astype(bool), observed, x)
        return x, _no_count(x)

    cause = f"config.sampling.num_steps={last} is too few, or snr={options.snr} too large"
    return Sampler(last, evaluations, functools.partial(_prior, config), advance, cause)


def _probability_flow(config, score_fns: Callable, task: Stream) -> Sampler:
    options, process = config.sampling, build.make_sde(config)

    def start(keys):
        return options.temperature * _prior(config, keys)

    def advance(keys, params, x, steps, *known):
        del keys, steps

        def solve(x, *known):
            # Mapping the solver over examples lets each take its own steps.
            _, time_score_fn = score_fns(params, tuple(a[None] for a in known))
            x, info = sampling.probability_flow(
                process, time_score_fn, x[None], **_arguments(config)
            )
            return x[0], info.evaluations[0]

        return jax.vmap(solve)(x, *known)

    cause = f"config.sampling.rtol={options.rtol} could not be met"
    return Sampler(1, None, start, advance, cause)


def _noise(config, keys: jax.Array, sigma: jax.Array) -> jax.Array:
    """Draws from the SDE's prior, once per key, and scales it to sigma."""
    return sigma / build.make_sde(config).prior_std() * _prior(config, keys)


def _heun(config, score_fns: Callable, task: Stream) -> Sampler:
    options, last = config.sampling, config.sampling.num_steps
    ladder, is_heun = build.make_sampling_sigmas(config), options.method == "heun"
    sample = sampling.heun if is_heun else sampling.euler

    def advance(keys, params, x, steps, *known):
        sigma_score_fn, _ = score_fns(params, known)
        x, _ = sample(keys, sigma_score_fn, x, ladder, churn=options.churn, steps=steps)
        return x, _no_count(x)

    start = functools.partial(_noise, config, sigma=ladder[0])
    cause = f"config.sampling.num_steps={last} is too few"
    return Sampler(last, 2 * last - 1 if is_heun else last, start, advance, cause)


def _dpm_solver(config, score_fns: Callable, task: Stream) -> Sampler:
    options, last = config.sampling, config.sampling.num_steps
    ladder = build.make_sampling_sigmas(config)

    def start(keys):
        x = _noise(config, keys, ladder[0])
        return x, jnp.zeros((options.order - 1, *x.shape))

    def advance(keys, params, state, steps, *known):
        sigma_score_fn, _ = score_fns(params, known)
        x, info = sampling.dpm_solver(
            keys,
            sigma_score_fn,
            state[0],
            ladder,
            order=options.order,
            stochastic=options.stochastic,
            steps=steps,
            denoised=state[1],
        )
        return (x, info.denoised), _no_count(x)

    cause = f"config.sampling.num_steps={last} is too few"
    return Sampler(last, last, start, advance, cause)


_MAKERS = {
    "annealed_langevin": _annealed_langevin,
    "predictor_corrector": _predictor_corrector,
    "probability_flow": _probability_flow,
    "heun": _heun,
    "euler": _heun,
    "dpm_solver": _dpm_solver,
}
