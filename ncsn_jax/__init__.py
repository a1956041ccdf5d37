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
    from ncsn_jax.app.run import Run

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


def load_run(workdir: str, step: int | None = None) -> "Run":
    """Opens a run that was trained or converted, of which nothing is changed.

    Args:
      workdir: of `main.py` or `python -m ncsn_jax.convert`, on a disk or such as gs://BUCKET/PATH.
      step: of the checkpoint; the newest by default.

    Returns:
      A `Run`: `config, step, model, params, sigmas, sde, score_fn(x, sigma), time_score_fn(x, t)`, and the
      methods `sample(key, n)`, `prepare(images)`, `restore(x)` and `to_uint8(images)`. `help(run)` says more.

    Raises:
      UserError: if there is no run, no such checkpoint, or a run of another version of this package.

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
