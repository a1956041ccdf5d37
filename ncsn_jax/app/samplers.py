"""The samplers that a configuration describes, for every kind of run and for what is known of the samples.

A `Sampler` is a chain of steps of which parts can be run. It hides that annealed Langevin dynamics and Heun's
method want a score of sigma and the others one of an SDE's time, that a run's network may give either, and
that the SDE may work on images in [-1, 1].
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ncsn_jax import classifier, sampling, sigmas
from ncsn_jax import sde as sdes
from ncsn_jax._random import Stream
from ncsn_jax.app import build, schema
from ncsn_jax.errors import UserError
from ncsn_jax.images import center, width

NAMES = {
    Stream.SAMPLES: "samples",
    Stream.INPAINTING: "inpainting",
    Stream.COLORIZATION: "colorization",
    Stream.CLASSES: "classconditional",
}

# The methods that there are for it.
_METHODS = {
    Stream.SAMPLES: schema.METHODS,
    Stream.INPAINTING: ("annealed_langevin", "predictor_corrector"),
    Stream.COLORIZATION: ("predictor_corrector",),
    Stream.CLASSES: schema.METHODS,
}

# The fields that determine the samples of a method, besides seed and checkpoint.
_FIELDS = {
    "annealed_langevin": ("epsilon", "steps_per_level", "denoise", "clip", "init"),
    "predictor_corrector": (
        *("predictor", "corrector", "snr", "corrector_steps", "num_steps", "end", "denoise"),
    ),
    "probability_flow": ("rtol", "atol", "end", "temperature"),
    "heun": ("num_steps", "rho", "churn"),
}


class Sampler(NamedTuple):
    """A chain of steps from noise to images.

    Attributes:
      num_steps: the number of steps.
      evaluations: network evaluations of a sample, or None where only the samples tell.
      start: `start(key, batch size) -> x`, in the space of the SDE.
      advance: `advance(key, params, x, start, stop, *known) -> (x, evaluations int32 [B])`, runs a part of
        the steps. What is known of the samples, `[B, ...]` each: observed images and masks, grey images, or
        classes; images in [0, 1].
      cause: what is wrong, most likely, where the samples are not finite.
    """

    num_steps: int
    evaluations: int | None
    start: Callable[[jax.Array, int], jax.Array]
    advance: Callable[..., tuple[jax.Array, jax.Array]]
    cause: str


def check(config: ConfigDict, task: Stream = Stream.SAMPLES) -> None:
    """Raises UserError if the configured method cannot do what the samples are made for."""
    methods, name = _METHODS[task], NAMES[task]
    method = config.sampling.method
    if method not in methods:
        raise UserError(
            f"config.sampling.method={method!r} must be {' or '.join(map(repr, methods))} for {name}"
        )
    if task == Stream.COLORIZATION and config.data.channels != 3:
        raise UserError(f"config.data.channels={config.data.channels} must be 3 for {name}")
    if config.sampling.gif and task == Stream.SAMPLES and method == "probability_flow":
        raise UserError(
            "config.sampling.gif=True must be False for config.sampling.method='probability_flow', whose "
            "solver chooses its own steps"
        )


def settings(config: ConfigDict) -> dict:
    """Returns the fields that determine the samples of a checkpoint, with their values."""
    flat = schema.flatten(config)
    method = config.sampling.method
    fields = [f"sampling.{f}" for f in ("method", *_FIELDS[method], "dtype")]
    # A ladder is that of the run; with an SDE, training may not use what the samplers along sigmas do.
    if config.training.sde != "none" and method in ("annealed_langevin", "heun"):
        fields += ["model.sigma_begin", "model.sigma_end", "model.num_levels"]
    return {f: flat[f] for f in fields} | {"seed": config.seed}


def make(
    config: ConfigDict, task: Stream = Stream.SAMPLES, of_classes: nn.Module | None = None
) -> Sampler:
    """Returns the sampler that a configuration describes.

    Args:
      config: the configuration.
      task: one of the constants above. `params` of `advance` are the network's; `Stream.CLASSES` those and
        the classifier's.
      of_classes: the classifier, `Stream.CLASSES`.

    Raises:
      UserError: if the method cannot do that.
    """
    check(config, task)
    makers = {
        "annealed_langevin": _annealed_langevin,
        "predictor_corrector": _predictor_corrector,
        "probability_flow": _probability_flow,
        "heun": _heun,
    }
    return makers[config.sampling.method](
        config, functools.partial(_score_fns, config, of_classes), task
    )


def _score_fns(
    config, of_classes: nn.Module | None, params: Any, known: tuple
) -> tuple[Callable, Callable]:
    """Returns the score functions of sigma and of the time; with a classifier, those of known classes."""
    if of_classes is None:
        return build.make_score_fn(config, params)
    params, classifier_params = params
    process = build.make_sde(config)
    _, time_score_fn = build.make_score_fn(config, params)
    log_likelihood = classifier.log_likelihood(of_classes, classifier_params, process, known[0])
    time_score_fn = sampling.guided(time_score_fn, log_likelihood, config.classifier.scale)
    return sdes.to_sigma_score(process, time_score_fn), time_score_fn


def _prior(config, key: jax.Array, batch: int) -> jax.Array:
    """Draws from the SDE's prior, with one key for each of the batch."""
    shape, process = build.image_shape(config), build.make_sde(config)
    return jax.vmap(lambda k: process.prior_sample(k, shape))(key)


def _annealed_langevin(config, score_fns: Callable, task: Stream) -> Sampler:
    options, ladder = config.sampling, build.make_sigmas(config)
    count = config.model.num_levels * options.steps_per_level + bool(options.denoise)

    def start(key, batch):
        x = sampling.initial_samples(
            key,
            (batch, *build.image_shape(config)),
            options.init,
            scale=config.model.sigma_begin / width(config.data.centered),
        )
        return center(x, config.data.centered)

    def advance(key, params, x, start, stop, *known):
        sigma_score_fn, _ = score_fns(params, known)
        clip = tuple(center(c, config.data.centered) for c in options.clip)
        arguments = {
            "epsilon": options.epsilon,
            "steps_per_level": options.steps_per_level,
            "denoise": options.denoise,
            "clip": clip or None,
            "steps": (start, stop),
        }
        if task == Stream.INPAINTING:
            observed, mask = known
            x = sampling.inpaint(
                key,
                sigma_score_fn,
                x,
                ladder,
                center(observed, config.data.centered),
                mask,
                keep_observed=config.inpainting.keep_observed,
                scheme=config.inpainting.scheme,
                **arguments,
            )
        else:
            x = sampling.annealed_langevin(key, sigma_score_fn, x, ladder, **arguments)
        return x, jnp.zeros(x.shape[0], jnp.int32)

    return Sampler(
        count, count, start, advance, f"config.sampling.epsilon={options.epsilon} is too large"
    )


def _predictor_corrector(config, score_fns: Callable, task: Stream) -> Sampler:
    options, process = config.sampling, build.make_sde(config)
    corrections = options.corrector_steps if options.corrector != "none" else 0

    def advance(key, params, x, start, stop, *known):
        _, time_score_fn = score_fns(params, known)
        constrain, observed, mask = None, None, None
        if task == Stream.INPAINTING:
            observed, mask = center(known[0], config.data.centered), known[1]
            constrain = sampling.known_pixels(process, observed, mask)
        elif task == Stream.COLORIZATION:
            constrain = sampling.known_grey(process, center(known[0], config.data.centered))
        x, _ = sampling.predictor_corrector(
            key,
            process,
            time_score_fn,
            x,
            predictor=options.predictor,
            corrector=options.corrector,
            num_steps=options.num_steps,
            snr=options.snr or None,
            corrector_steps=options.corrector_steps,
            end=options.end,
            denoise=options.denoise,
            constrain=constrain,
            steps=(start, stop),
        )
        if mask is not None and config.inpainting.keep_observed:
            x = jnp.where((stop == options.num_steps) & mask.astype(bool), observed, x)
        return x, jnp.zeros(x.shape[0], jnp.int32)

    evaluations = options.num_steps * (corrections + (options.predictor != "none"))
    cause = (
        f"config.sampling.num_steps={options.num_steps} is too few, or snr={options.snr} too large"
    )
    return Sampler(
        options.num_steps, evaluations, functools.partial(_prior, config), advance, cause
    )


def _probability_flow(config, score_fns: Callable, task: Stream) -> Sampler:
    options, process = config.sampling, build.make_sde(config)

    def start(key, batch):
        return options.temperature * _prior(config, key, batch)

    def advance(key, params, x, start, stop, *known):
        del key, start, stop

        def solve(x, *known):
            # Examples are solved one by one there, and what is known of them has to be theirs.
            _, time_score_fn = score_fns(params, tuple(a[None] for a in known))
            x, info = sampling.probability_flow(
                process,
                time_score_fn,
                x[None],
                rtol=options.rtol,
                atol=options.atol,
                end=options.end,
            )
            return x[0], info.evaluations[0]

        return jax.vmap(solve)(x, *known)

    return Sampler(
        1, None, start, advance, f"config.sampling.rtol={options.rtol} could not be kept"
    )


def _heun(config, score_fns: Callable, task: Stream) -> Sampler:
    options = config.sampling
    ladder = sigmas.karras(
        config.model.sigma_begin, config.model.sigma_end, options.num_steps, options.rho
    )

    def start(key, batch):
        return ladder[0] / build.make_sde(config).prior_std() * _prior(config, key, batch)

    def advance(key, params, x, start, stop, *known):
        sigma_score_fn, _ = score_fns(params, known)
        x, _ = sampling.heun(
            key, sigma_score_fn, x, ladder, churn=options.churn, steps=(start, stop)
        )
        return x, jnp.zeros(x.shape[0], jnp.int32)

    evaluations = 2 * options.num_steps - 1
    cause = f"config.sampling.num_steps={options.num_steps} is too few"
    return Sampler(options.num_steps, evaluations, start, advance, cause)
