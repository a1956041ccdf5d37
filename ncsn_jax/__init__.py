"""Noise conditional score networks in JAX.

Each part loads when it is first used, as `ncsn_jax.sampling` or by `from ncsn_jax import sampling`:

| | |
|---|---|
| `sampling` | samplers for any score function: Langevin, inpainting, predictor-corrector, Heun, ODE |
| `sigmas` | noise ladders, and what suits a data set |
| `sde` | the SDEs VE, VP and sub-VP; score functions of time and of sigma |
| `likelihood` | log densities, bits per dimension, latents |
| `scheduler` | annealed Langevin dynamics one step at a time |
| `scores` | closed-form scores |
| `losses` | score matching, one value per example |
| `models` | the networks NCSN, NCSNv2, NCSN++ and others, and their score functions |
| `convert` | the authors' PyTorch parameters to these networks, and back |
| `objectives`, `training` | what training minimises; the state of training and its step |
| `classifier` | classifiers of noisy images, which guide samplers |
| `images` | bytes and the ranges of images |
| `types`, `errors` | `ScoreFn` and `TimeScoreFn`; `UserError` |
| `load_run` | a trained network of the application, for code of one's own |
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ncsn_jax import (
        classifier,
        convert,
        errors,
        images,
        likelihood,
        losses,
        models,
        objectives,
        sampling,
        scheduler,
        scores,
        sde,
        sigmas,
        training,
        types,
    )

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "classifier",
    "convert",
    "errors",
    "images",
    "likelihood",
    "load_run",
    "losses",
    "models",
    "objectives",
    "sampling",
    "scheduler",
    "scores",
    "sde",
    "sigmas",
    "training",
    "types",
]


def load_run(workdir, step: int | None = None):
    """Opens a run of `main.py`: its network, parameters, ladder, SDE, score functions and samples.

    It is `ncsn_jax.app.reading.load_run`, and needs the application's packages, `ncsn_jax[app]`.

    Args:
      workdir: the run's directory.
      step: which checkpoint to read; None for the last one.

    Returns:
      A `Run`.
    """
    return importlib.import_module("ncsn_jax.app.reading").load_run(workdir, step)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"ncsn_jax.{name}")
    raise AttributeError(f"module 'ncsn_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
