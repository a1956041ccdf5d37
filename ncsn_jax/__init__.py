"""Noise conditional score networks in JAX.

Each module loads on first use, as `ncsn_jax.sampling` or by `from ncsn_jax import sampling`:

| name | content |
|---|---|
| `sampling` | samplers for any score function: Langevin, inpainting, predictor-corrector, Heun, ODE |
| `sigmas` | noise ladders, and how to choose one for a dataset |
| `sde` | the SDEs VE, VP and sub-VP; score functions of time and of sigma |
| `inverse` | the score of the data given a measurement: inpainting, deblurring, super-resolution |
| `likelihood` | log densities, bits per dimension, latents |
| `scheduler` | annealed Langevin dynamics one step at a time |
| `scores` | closed-form scores |
| `losses` | score matching, one value per example |
| `models` | NCSN, NCSNv2, NCSN++ and other networks, and their score functions |
| `convert` | converts the authors' PyTorch parameters to these networks, and back |
| `evaluation` | measures of samples: FID, KID, inception score, precision and recall |
| `objectives`, `training` | training objectives; the training state and step |
| `preconditioning`, `augmentation` | EDM's denoisers, noise and loss weights; non-leaky augmentation |
| `averages` | averages of the parameters whose width is chosen after training |
| `classifier` | classifiers of noisy images, which guide samplers |
| `images` | converts bytes to floats, and between ranges |
| `types`, `errors` | `ScoreFn` and `TimeScoreFn`; `UserError` |
| `load_run` | loads a network that the application trained |
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ncsn_jax import (
        augmentation,
        averages,
        classifier,
        convert,
        errors,
        evaluation,
        images,
        inverse,
        likelihood,
        losses,
        models,
        objectives,
        preconditioning,
        sampling,
        scheduler,
        scores,
        sde,
        sigmas,
        training,
        types,
    )
    from ncsn_jax.app.run import Run

__version__ = "0.2.0"

__all__ = [
    "__version__",
    "augmentation",
    "averages",
    "classifier",
    "convert",
    "errors",
    "evaluation",
    "images",
    "inverse",
    "likelihood",
    "load_run",
    "losses",
    "models",
    "objectives",
    "preconditioning",
    "sampling",
    "scheduler",
    "scores",
    "sde",
    "sigmas",
    "training",
    "types",
]


def load_run(workdir: str, step: int | None = None) -> "Run":
    """Opens a trained or converted run, read-only.

    Args:
      workdir: written by `main.py` or `python -m ncsn_jax.convert`: a local path, or gs://BUCKET/PATH.
      step: the checkpoint's step; the newest by default.

    Returns:
      The run, with `config, step, model, params, sigmas, sde, score_fn(x, sigma), time_score_fn(x, t)`, and
      methods `sample(key, n)`, `prepare(images)`, `restore(x)` and `to_uint8(images)`. `help(run)` says more.

    Raises:
      UserError: if the run or checkpoint does not exist, or another version of this package wrote it.

    Example:
      >>> run = ncsn_jax.load_run("runs/digits")  # doctest: +SKIP
      >>> images = run.sample(jax.random.key(0), 16)  # doctest: +SKIP
      >>> x = run.prepare(images)  # doctest: +SKIP
      >>> score = run.score_fn(x, jnp.full(len(x), 0.1))  # doctest: +SKIP
    """
    from ncsn_jax.app import run

    return run.load_run(workdir, step)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"ncsn_jax.{name}")
    raise AttributeError(f"module 'ncsn_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
