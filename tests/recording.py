"""Records the application's calls to the library."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax import likelihood, models, objectives, preconditioning, sampling, sigmas, training
from ncsn_jax._random import Stream
from ncsn_jax.app import data, samplers

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), dtype=np.uint8)


class Recorder:
    """The arguments of calls, by the names of function and parameter."""

    def __init__(self, patch):
        self.calls, self._patch = {}, patch

    def watch(self, owner, name: str, result=None) -> None:
        """Records the calls of a function, which then returns `result(**arguments)` if `result` is given."""
        real = getattr(owner, name)
        signature = inspect.signature(real)
        rest = [p.name for p in signature.parameters.values() if p.kind == p.VAR_KEYWORD]

        @functools.wraps(real)
        def recorded(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            arguments = dict(bound.arguments)
            for options in rest:
                arguments |= arguments.pop(options)
            self.calls.setdefault(name, []).append(arguments)
            return result(**arguments) if result else real(*args, **kwargs)

        self._patch.setattr(owner, name, recorded)


def _spent(x, **_):
    return x, sampling.SamplerInfo(
        *[jnp.zeros(len(x), jnp.int32)] * len(sampling.SamplerInfo._fields)
    )


def _solved(x, denoised, **_):
    return x, sampling.DPMSolverInfo(jnp.zeros(len(x), jnp.int32), denoised)


def record_library(patch) -> Recorder:
    """Records the application's calls to the library; samplers and solvers do nothing."""
    recorder = Recorder(patch)
    recorder.watch(data, "load", lambda **_: data.Images(IMAGES))
    recorder.watch(data, "load_labels", lambda **_: (np.arange(10, dtype=np.int32) % 3, 3))
    recorder.watch(training, "train_steps", lambda **_: None)
    recorder.watch(training, "make_optimizer")
    recorder.watch(training, "make_init")
    recorder.watch(objectives, "ladder")
    recorder.watch(objectives, "diffusion")
    for name in ("edm_noise", "ve_noise", "vp_noise"):
        recorder.watch(preconditioning, name)
    recorder.watch(models, "score_fn")
    recorder.watch(models, "time_score_fn")
    recorder.watch(sigmas, "karras")
    recorder.watch(sampling, "initial_samples")
    recorder.watch(sampling, "guided")
    recorder.watch(sampling, "classifier_free")
    recorder.watch(sampling, "known_grey")
    recorder.watch(sampling, "annealed_langevin", lambda x, **_: x)
    recorder.watch(sampling, "inpaint", lambda x, **_: x)
    recorder.watch(sampling, "predictor_corrector", _spent)
    recorder.watch(sampling, "heun", _spent)
    recorder.watch(sampling, "euler", _spent)
    recorder.watch(sampling, "dpm_solver", _solved)
    recorder.watch(sampling, "probability_flow", _spent)
    flat = lambda x, **_: (jnp.zeros(len(x)), _spent(x)[1])
    recorder.watch(likelihood, "log_prob", flat)
    recorder.watch(likelihood, "bits_per_dim")
    return recorder


def draw(config, task=Stream.SAMPLES, *known, params=None, of_classes=None, count=2):
    """Returns a sampler's starting points and the samples."""
    sampler = samplers.make(config, task, of_classes)
    x = sampler.start(jax.random.split(jax.random.key(0), count))
    keys = jax.random.split(jax.random.key(1), count)
    return x, sampler.advance(keys, params, x, (0, sampler.num_steps), *known)[0]
