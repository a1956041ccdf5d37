"""Predictor-corrector samplers of the reverse-time SDE (Song et al., 2021, section 4.2 and appendix G).

At each time in a table, a corrector runs a few Langevin steps at that time's noise, and a predictor steps
to the next time. Each maps a state, the score's time and noise to (next state, its mean); `PREDICTORS` and
`CORRECTORS` list their names. The corrector comes first, as in the authors' code. The compiled program
contains the score once per predictor and corrector.

Unlike the authors' code, the Langevin corrector uses a step size per sample. With `average_step_size` it uses
the mean over the batch, which makes a sample depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ncsn_jax import _checks as check
from ncsn_jax._random import expand, fold_in, normal_like
from ncsn_jax.errors import show
from ncsn_jax.sampling._loop import run_steps
from ncsn_jax.sde import SDE, VE, VP, SubVP
from ncsn_jax.types import TimeScoreFn

# Far more than any corrector uses.
_MAX_SNR = 1e6

Update = tuple[jax.Array, jax.Array]

Constrain = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], Update]
"""`constrain(key, x, mean, t) -> (x, mean)`: replaces the result of each `predictor_corrector` update."""


class SamplerInfo(NamedTuple):
    """The cost of sampling from an SDE.

    Attributes:
      evaluations: the NFE (network evaluations) of each sample, int32 `[B]`.
    """

    evaluations: jax.Array


def euler_maruyama(sde: SDE, score_fn: TimeScoreFn, x, t, num_steps: int, noise) -> Update:
    """Takes an Euler-Maruyama step of size 1 / num_steps on the reverse-time SDE (equation 6)."""
    g = sde.diffusion(t)
    drift = sde.drift(x, t) - expand(g**2, x) * score_fn(x, t)
    mean = x - drift / num_steps
    return mean + expand(g / math.sqrt(num_steps), x) * noise, mean


def reverse_diffusion(sde: SDE, score_fn: TimeScoreFn, x, t, num_steps: int, noise) -> Update:
    """Reverses the forward chain's step (equation 46)."""
    f, g = sde.discretize(x, t, num_steps)
    mean = x - f + expand(g**2, x) * score_fn(x, t)
    return mean + expand(g, x) * noise, mean


def probability_flow(sde: SDE, score_fn: TimeScoreFn, x, t, num_steps: int, noise) -> Update:
    """Takes a probability flow step (appendix D.3): half the score, without noise."""
    del noise
    f, g = sde.discretize(x, t, num_steps)
    mean = x - f + 0.5 * expand(g**2, x) * score_fn(x, t)
    return mean, mean


def ancestral(sde: SDE, score_fn: TimeScoreFn, x, t, num_steps: int, noise) -> Update:
    """Samples the posterior of the forward chain (equation 4 for VP, appendix F for VE)."""
    g = sde.discretize(x, t, num_steps)[1]
    score = score_fn(x, t)
    if isinstance(sde, VE):
        variance = sde.std(jnp.floor(t * (num_steps - 1)) / max(num_steps - 1, 1)) ** 2
        before = variance - g**2
        mean = x + expand(g**2, x) * score
        return mean + expand(jnp.sqrt(before / variance) * g, x) * noise, mean
    mean = (x + expand(g**2, x) * score) / expand(jnp.sqrt(1 - g**2), x)
    return mean + expand(g, x) * noise, mean


PREDICTORS: dict[str, Callable] = {
    f.__name__: f for f in (euler_maruyama, reverse_diffusion, ancestral, probability_flow)
}
CORRECTORS = ("langevin", "annealed_langevin")


def langevin_step(
    sde: SDE,
    score: jax.Array,
    x: ArrayLike,
    t: jax.Array,
    noise: jax.Array,
    *,
    kind: str,
    snr: float,
    num_steps: int,
    average_step_size: bool = False,
) -> Update:
    """Takes a corrector step x + step s + sqrt(2 step) z (algorithms 4 and 5), with s the score at (x, t).

    'langevin' uses step = 2 alpha (snr ||z|| / ||s||)^2, 'annealed_langevin' step = 2 alpha (snr std_t)^2,
    where alpha is 1 - beta_i for VP and 1 for VE. As the step of 'langevin' depends on the noise, it samples
    correctly only where norms hardly vary, that is, in many dimensions.
    """
    alpha = 1.0
    if isinstance(sde, VP):
        alpha = 1.0 - sde.discretize(x, t, num_steps)[1] ** 2
    if kind == "langevin":
        norms = [jnp.linalg.norm(a.reshape(a.shape[0], -1), axis=1) for a in (noise, score)]
        if average_step_size:
            norms = [jnp.broadcast_to(jnp.mean(n), n.shape) for n in norms]
        step = 2 * alpha * (snr * norms[0] / norms[1]) ** 2
    else:
        step = 2 * alpha * (snr * sde.std(t)) ** 2
    mean = x + expand(step, x) * score
    return mean + expand(jnp.sqrt(2 * step), x) * noise, mean


def predictor_corrector(
    key: jax.Array,
    sde: SDE,
    score_fn: TimeScoreFn,
    x: ArrayLike,
    *,
    predictor: str = "reverse_diffusion",
    corrector: str = "none",
    num_steps: int = 1000,
    snr: ArrayLike | None = None,
    corrector_steps: int = 1,
    end: ArrayLike = 1e-5,
    denoise: bool = True,
    average_step_size: bool = False,
    constrain: Constrain | None = None,
    steps: tuple[int, int] | None = None,
) -> tuple[jax.Array, SamplerInfo]:
    """Samples with a predictor and a corrector (algorithm 1 of the paper, as its code runs it).

    Args:
      key: one key, or one per example `[B]`.
      sde: the SDE.
      score_fn: `score_fn(x, t)`.
      x: `[B, ...]` from the prior, at t = 1; the result has its type, as in `annealed_langevin`.
      predictor: a name in `PREDICTORS`, or 'none'. All but 'euler_maruyama' step along the chain of N
        levels. For a network trained on a chain, `num_steps` must be the chain's.
      corrector: 'langevin', 'annealed_langevin' or 'none'.
      num_steps: N >= 1, the number of times from 1 to `end` inclusive. If VP's chain is used, N must be above
        beta_max, so that beta_i = beta(t) / N is below 1.
      snr: signal-to-noise ratio r of the corrector, in (0, 1e6]; 0.075 to 0.17 in the published runs.
      corrector_steps: corrector steps at each time, >= 1.
      end: the last time, in (0, 1): 1e-5 for VE, 1e-3 for VP and sub-VP in the published runs.
      denoise: whether to return the last step's mean, without its noise.
      average_step_size: whether a batch's samples share the Langevin corrector's step size.
      constrain: `constrain(key, x, mean, t) -> (x, mean)`, applied to each update's result; see
        `known_pixels` and `known_grey`. Its t `[B]` is the time of x: the step's time after a corrector, the
        next step's after a predictor, `end` after the last one. Its key is shaped like `key` and differs for
        every update.
      steps: `(start, stop)`, to run only some of the N steps, as in `annealed_langevin`. Only the call
        that runs the last step returns the mean.

    Returns:
      `[B, ...]`, and the NFE.

    Raises:
      ValueError: if an argument is out of range, or the SDE does not support the predictor or corrector.
        Traced values, which `snr`, `end` and the SDE's parameters may be, are not checked.
    """
    key, x, dtype = check.chains(key, x)
    check_choice(sde, predictor, corrector, snr)
    snr = None if snr is None else check.as_float("snr", snr)
    num_steps = check.count("num_steps", num_steps)
    corrector_steps = check.count("corrector_steps", corrector_steps)
    _check_chain(sde, predictor, corrector, num_steps)
    end = check.fraction("end", end)
    start, stop = check.part(steps, num_steps)
    times = jnp.linspace(1.0, end, num_steps, dtype=x.dtype)
    table = (jnp.arange(num_steps), times, jnp.append(times[1:], times[-1]))
    inner = corrector_steps if corrector != "none" else 0

    def score(x, t):
        return check.score(x, score_fn(x, t))

    def constrained(key, j, state, t):
        if constrain is not None:
            state = constrain(fold_in(key, inner + 1 + j), *state, t)
        return tuple(a.astype(x.dtype) for a in state)

    def correct(key, j, x, t):
        noise = normal_like(fold_in(key, j), x)
        options = {"kind": corrector, "snr": snr, "average_step_size": average_step_size}
        state = langevin_step(sde, score(x, t), x, t, noise, num_steps=num_steps, **options)
        return constrained(key, j, state, t)

    def predict(key, x, t, later):
        noise = normal_like(fold_in(key, inner), x)
        state = PREDICTORS[predictor](sde, score, x, t, num_steps, noise)
        return constrained(key, inner, state, later)

    def step(state, row):
        index, now, later = row
        now, later = (jnp.broadcast_to(time, x.shape[:1]) for time in (now, later))
        step_key = fold_in(key, index)
        if inner:
            state = jax.lax.fori_loop(
                0, inner, lambda j, state: correct(step_key, j, state[0], now), state
            )
        return state if predictor == "none" else predict(step_key, state[0], now, later)

    last, mean = run_steps(step, (x, x), table, (start, stop))
    evaluations = (stop - start) * (inner + (predictor != "none"))
    info = SamplerInfo(jnp.full(x.shape[0], evaluations, jnp.int32))
    x = jnp.where(stop == num_steps, mean, last) if denoise else last
    return x.astype(dtype), info


def check_choice(sde: SDE, predictor: str, corrector: str, snr: float | None) -> None:
    """Raises ValueError for a predictor and a corrector that cannot be run together on an SDE."""
    if predictor not in (*PREDICTORS, "none"):
        raise ValueError(f"predictor must be one of {[*PREDICTORS, 'none']}, got {show(predictor)}")
    if corrector not in (*CORRECTORS, "none"):
        raise ValueError(f"corrector must be one of {[*CORRECTORS, 'none']}, got {show(corrector)}")
    if predictor == corrector == "none":
        raise ValueError("predictor and corrector cannot both be 'none'")
    if isinstance(sde, SubVP) and predictor == "ancestral":
        raise ValueError(
            "predictor 'ancestral' is not available for sub-VP, which has no discrete chain"
        )
    if isinstance(sde, SubVP) and corrector != "none":
        raise ValueError(f"corrector {corrector!r} is not available for sub-VP")
    ratio = 0.0 if snr is None else check.as_float("snr", snr)
    if corrector != "none" and not (check.is_traced(ratio) or 0 < ratio <= _MAX_SNR):
        raise ValueError(
            f"corrector {corrector!r} needs a signal-to-noise ratio snr in (0, {_MAX_SNR:g}], "
            f"got {show(snr)}"
        )


def _check_chain(sde: SDE, predictor: str, corrector: str, num_steps: int) -> None:
    """Rejects a chain of VP with too few steps for every beta_i to be below 1."""
    uses_chain = predictor not in ("euler_maruyama", "none") or corrector != "none"
    chain_of_vp = isinstance(sde, VP) and not isinstance(sde, SubVP) and uses_chain
    if chain_of_vp and not check.is_traced(sde.beta_max) and num_steps <= sde.beta_max:
        raise ValueError(
            f"num_steps must be above beta_max={sde.beta_max} for the chain of VP, got {num_steps}"
        )
