"""The part of `benchmarks.accelerator` that asks whether results are right: goldens and closed forms."""

import importlib
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator_tools import Bench, Part, compile_all, figures_of, options
from benchmarks.workers import ROOT
from ncsn_jax import convert, models, scores, sigmas
from ncsn_jax.sampling import annealed_langevin, heun, langevin

# Networks whose parameters and outputs are stored.
_GOLDENS = {
    "ncsn_v1_28": lambda g: models.NCSN(8, 10),
    "ncsn_v1_32": lambda g: models.NCSN(8, 10),
    "ncsnv2_32": lambda g: models.NCSNv2(8, g["state/sigmas"]),
    "ncsnpp_32": lambda g: models.NCSNpp(16, (1, 2), 1),
}
_PRECISIONS = ("default", "high", "highest")


def goldens(bench: Bench) -> Part:
    """Errors of networks against the originals' figures, relative to an example's largest value."""
    stored, builds = {}, {}
    for precision in _PRECISIONS[: 1 if bench.small else None]:
        for name in _GOLDENS:
            stored[name] = _stored(name)
            builds[f"{name} {precision}"] = lambda g=stored[name], n=name, p=precision: (
                _compile_golden(bench, _GOLDENS[n](g), g, p)
            )
    programs = compile_all(bench, builds, bench.ends - 5)
    for name in builds:
        yield name, figures_of(bench, programs.get(name), lambda run: {"relative error": run()})
    for precision in _PRECISIONS:
        with jax.default_matmul_precision(precision):
            yield f"annealed Langevin {precision}", {"relative error": _golden_chain()}
    yield "annealed Langevin of N(0, 1)", {"standard errors": _langevin_of_a_gaussian()}
    yield "Heun of N(0.6, 0.25^2)", {"relative error": _heun_of_a_gaussian()}


def _stored(name: str) -> dict[str, np.ndarray]:
    with np.load(ROOT / "tests" / "data" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def _compile_golden(bench: Bench, model, g: dict, precision: str) -> Callable[[], float]:
    """Returns a function that computes the error of a network's output."""
    state = {k.removeprefix("state/"): v for k, v in g.items() if k.startswith("state/")}
    params = convert.from_torch(state, model)
    expected = g["out/score"].transpose(0, 2, 3, 1)
    inputs = g["in/x"].transpose(0, 2, 3, 1), g["in/y"] if "in/y" in g else g["in/t"]
    with jax.default_matmul_precision(precision):
        program = jax.jit(model.apply).lower(params, *inputs).compile(options(bench))
    axes = (1, 2, 3)

    def error() -> float:
        difference = np.abs(np.asarray(program(params, *inputs)) - expected)
        return float((difference.max(axes) / np.abs(expected).max(axes)).max())

    return error


def _golden_chain() -> float:
    """Returns the error of the states of an annealed Langevin chain with the original's noise."""
    g = _stored("ald")
    noise = jnp.asarray(g["in/gmm/noise"]).reshape(20, 6, 2)
    mixture = scores.gaussian_mixture([[-5.0, -5.0], [5.0, 5.0]], [1.0, 1.0], [0.2, 0.8])
    module = importlib.import_module(langevin.__module__)
    with (
        mock.patch.object(module, "fold_in", lambda key, index: index),
        mock.patch.object(module, "normal_like", lambda i, x: noise[jnp.minimum(i, 19)]),
    ):
        _, info = annealed_langevin(
            jax.random.key(0),
            mixture.score,
            jnp.asarray(g["in/gmm/x0"]),
            jnp.asarray(g["in/gmm/sigmas"]),
            epsilon=0.1,
            steps_per_level=5,
            return_info=True,
            num_frames=20,
        )
    expected = g["out/gmm/paper/x"][-20:]
    return float(np.abs(np.asarray(info.samples) - expected).max() / np.abs(expected).max())


def _langevin_of_a_gaussian() -> float:
    """Returns how many standard errors the variance of 20,000 chains is off the exact one."""
    count, steps, epsilon, variance = 20_000, 7, 0.02, 0.0
    ladder = sigmas.geometric(5.0, 0.2, 4)
    x = annealed_langevin(
        jax.random.key(3),
        lambda x, s: -x / (1 + jnp.square(s))[:, None],
        jnp.full((count, 1), 2.0),
        ladder,
        epsilon=epsilon,
        steps_per_level=steps,
    )
    for sigma in np.asarray(ladder, np.float64).repeat(steps):
        alpha = epsilon * (sigma / float(ladder[-1])) ** 2
        variance = (1 - alpha / 2 / (1 + sigma**2)) ** 2 * variance + alpha
    return float(abs(np.asarray(x).var() / variance - 1) / np.sqrt(2 / count))


def _heun_of_a_gaussian() -> float:
    """Returns the error of 320 steps of Heun's method against the exact probability flow."""
    x, ladder = jnp.asarray([[-3.0], [0.7], [5.0]]), jnp.geomspace(5.0, 0.05, 321)
    score = lambda x, s: (0.6 - x) / (0.25**2 + jnp.square(s))[:, None]  # noqa: E731
    found, _ = heun(jax.random.key(0), score, x, ladder, steps=(0, 320))
    exact = 0.6 + (x - 0.6) * np.sqrt((0.25**2 + 0.05**2) / (0.25**2 + 5.0**2))
    return float(np.abs(found - exact).max() / np.abs(exact).max())
