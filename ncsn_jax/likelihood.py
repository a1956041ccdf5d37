"""Log densities and latents from the probability flow, an invertible map between data and noise.

See Song et al., 2021, section 4.3 and appendix D. `log_prob` computes the density of data by the change of
variables; `dequantize` and `bits_per_dim` make it comparable for images. `encode` maps data to latents and
`decode` maps them back; `interpolate` goes from one latent to another. The solver, in
`ncsn_jax.sampling._probability_flow`, needs diffrax.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ncsn_jax import _checks as check
from ncsn_jax._random import fold_in, normal_like, rademacher_like
from ncsn_jax.errors import show
from ncsn_jax.images import dequantize
from ncsn_jax.sampling._predictor_corrector import SamplerInfo
from ncsn_jax.sampling._probability_flow import (
    MAX_STEPS,
    integrate,
    probability_flow,
    score_of_one,
    velocity,
)
from ncsn_jax.sde import SDE
from ncsn_jax.types import TimeScoreFn

__all__ = [
    "PROJECTIONS",
    "bits_per_dim",
    "decode",
    "dequantize",
    "encode",
    "interpolate",
    "log_prob",
]

PROJECTIONS = {"rademacher": rademacher_like, "gaussian": normal_like}
# An exact trace takes directional derivatives in batches of this size.
_DIRECTIONS = 16


def log_prob(
    key: jax.Array | None,
    sde: SDE,
    score_fn: TimeScoreFn,
    x: ArrayLike,
    *,
    exact: bool = False,
    num_projections: int = 1,
    projection: str = "rademacher",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    end: ArrayLike = 1e-5,
    max_steps: int = MAX_STEPS,
    return_info: bool = False,
) -> jax.Array | tuple[jax.Array, SamplerInfo]:
    """Returns the log density of data under the probability flow (equations 39 and 13).

        log p(x) = log prior(x_1) + int_end^1 div(f(x, t) - g(t)^2 s(x, t) / 2) dt,    x at t = end

    This is the density of samples that `probability_flow` carries from the prior to `end`, which still have
    noise of `sde.sigma(end)`; x is treated as one of them. It does not correct for the step from `end` to 0.
    The drift's divergence is exact. The score's is the trace of its Jacobian J: computed with one derivative
    for each of the D elements if `exact`, otherwise estimated without bias as the mean of v^T J v
    (equation 40), with vectors v fixed along the trajectory.

    Args:
      key: one key, or one per example `[B]`; not used with `exact`, where it may be None.
      sde: the SDE.
      score_fn: `score_fn(x, t)`, differentiable in x by `jax.jvp`.
      x: `[B, ...]`, data in the score function's scale, floating point.
      exact: whether to compute the exact trace, with D derivatives.
      num_projections: the number of vectors v, >= 1; each costs one derivative. The estimate's standard error
        falls with its root.
      projection: 'rademacher', signs, or 'gaussian', which has the larger variance.
      rtol, atol, max_steps: as in `probability_flow`; atol is also that of the log density, in nats per
        dimension.
      end: the time of x, in (0, 1).
      return_info: whether to return a `SamplerInfo` too: evaluations of the score with its derivatives.

    Returns:
      Nats `[B]`, float32 (float64 for float64 x), NaN for an example that ran out of steps or met non-finite
      values; and the `SamplerInfo` if requested.

    Raises:
      ValueError: if an argument is out of range, or the score is not shaped like x.
      ImportError: if diffrax is not installed.
    """
    check.sde(sde)
    x, _ = check.state("x", x, elements=True)
    end = check.times(end, 1.0)[0]
    tolerances = check.tolerances(rtol, atol, max_steps)
    num_projections = check.count("num_projections", num_projections)
    if not (isinstance(projection, str) and projection in PROJECTIONS):
        raise ValueError(f"projection must be one of {[*PROJECTIONS]}, got {show(projection)}")
    vectors = None
    if not exact:
        key = check.keys(key, x.shape[0])
        draws = [PROJECTIONS[projection](fold_in(key, i), x) for i in range(num_projections)]
        vectors = jnp.stack(draws, axis=1)
    size = math.prod(x.shape[1:])

    def field(t, state, vectors):
        score, directional = jax.linearize(lambda x: score_of_one(score_fn, x, t), state[0])
        if exact:
            trace = _exact_trace(directional, state[0])
        else:
            trace = jnp.mean(jax.vmap(lambda v: jnp.sum(v * directional(v)))(vectors))
        g = sde.diffusion(t[None])[0]
        divergence = sde.drift_coefficient(t[None])[0] - 0.5 * g**2 * trace / size
        return velocity(sde, state[0], t, score), divergence.astype(x.dtype)

    start = (x, jnp.zeros(x.shape[0], x.dtype))
    (latent, change), info = integrate(field, start, end, 1.0, **tolerances, args=vectors)
    nats = sde.prior_log_prob(latent) + size * change
    return (nats, info) if return_info else nats


def _exact_trace(directional, x: jax.Array) -> jax.Array:
    """Returns the trace of a linear function of arrays like x, computed in batches of directions."""
    basis = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    at_once = min(x.size, _DIRECTIONS)
    return jnp.sum(jax.lax.map(lambda e: jnp.sum(e * directional(e)), basis, batch_size=at_once))


def bits_per_dim(
    log_prob: jax.Array, shape: tuple[int, ...], *, levels: int = 256, width: float = 1.0
) -> jax.Array:
    """Converts log densities of dequantized data to bits per dimension of the discrete data.

        bits = -log_prob / (D log 2) + log2(levels / width)

    Take data on a grid of `levels` values that fill an interval of length `width`, plus uniform noise of one
    cell (`dequantize`). Their mean log density plus the log of the cell's volume (width / levels)^D is at
    most the log probability of the discrete data. So on average over the noise, the bits bound its cost from
    above. The offset is 8 bits for images in [0, 1] and 7 for [-1, 1].

    Args:
      log_prob: `[B]`, nats.
      shape: `[B, ...]`, the shape of the data; D is the number of elements of one example.
      levels: the number of values of an element, >= 1.
      width: the length of the data's interval, > 0: 1 for [0, 1], 2 for [-1, 1].

    Returns:
      `[B]`.

    Raises:
      ValueError: if an argument has the wrong shape or is out of range.
    """
    log_prob = jnp.asarray(log_prob)
    if not (isinstance(shape, tuple | list) and len(shape) > 1 and log_prob.shape == shape[:1]):
        raise ValueError(
            "shape must be that of the data, (B, ...), for log_prob [B], "
            f"got {show(shape)} and {log_prob.shape}"
        )
    for size in shape[1:]:
        check.count("shape", size)
    levels, width = check.count("levels", levels), check.positive("width", width)
    size = math.prod(shape[1:])
    return -log_prob / (size * math.log(2)) + math.log2(levels / width)


def encode(
    sde: SDE,
    score_fn: TimeScoreFn,
    x: ArrayLike,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    end: ArrayLike = 1e-5,
    max_steps: int = MAX_STEPS,
) -> jax.Array:
    """Returns the latents of data: `probability_flow` from `end` to 1.

    For VE they are about as large as sigma_max. A change of x by the tolerance changes them by sigma_max
    times as much in units of the data's standard deviation.

    Args:
      sde: the SDE.
      score_fn: `score_fn(x, t)`.
      x: `[B, ...]`, data, taken as samples at time `end`.
      end: the time of x, in (0, 1).
      rtol, atol, max_steps: as in `probability_flow`.

    Returns:
      `[B, ...]`, NaN for an example that could not be solved. Raises as `probability_flow` does.
    """
    tolerances = {"rtol": rtol, "atol": atol, "max_steps": max_steps}
    return probability_flow(sde, score_fn, x, start=end, end=1.0, **tolerances)[0]


def decode(
    sde: SDE,
    score_fn: TimeScoreFn,
    z: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    end: ArrayLike = 1e-5,
    max_steps: int = MAX_STEPS,
) -> jax.Array:
    """Returns the data of latents: `probability_flow` of `temperature` z from 1 to `end`; inverts `encode`.

    Args:
      sde, score_fn, rtol, atol, end, max_steps: as in `encode`.
      z: `[B, ...]`, latents.
      temperature: factor of the latents, > 0; below 1, samples vary less.

    Returns:
      `[B, ...]`, NaN for an example that could not be solved. Raises as `probability_flow` does, and
      ValueError for a temperature out of range.
    """
    z, dtype = check.state("z", z, elements=True)
    z = (check.positive("temperature", temperature) * z).astype(z.dtype)
    tolerances = {"rtol": rtol, "atol": atol, "max_steps": max_steps}
    x, _ = probability_flow(sde, score_fn, z, start=1.0, end=end, **tolerances)
    return x.astype(dtype)


def interpolate(z0: jax.Array, z1: jax.Array, num: int) -> jax.Array:
    """Returns latents on the arc from one latent to another (spherical interpolation).

        z_w = (sin((1 - w) theta) z0 + sin(w theta) z1) / sin(theta),    theta the angle between z0 and z1

    Two draws from a normal prior are almost orthogonal, so the norm stays that of a draw. For several
    pairs, use `jax.vmap`.

    Args:
      z0: one latent, of any shape `[...]`, without a batch axis.
      z1: the other, of the same shape; not opposite to z0, where no arc is the shortest.
      num: the number of latents, including z0 and z1, >= 2.

    Returns:
      `[num, ...]`, a batch to `decode`.

    Raises:
      ValueError: if the shapes differ or are (), or `num` is below 2.
    """
    (z0, dtype), (z1, _) = (check.state(n, z, elements=True) for n, z in (("z0", z0), ("z1", z1)))
    check.shape("z1", z1, z0.shape)
    num = check.count("num", num, 2)
    units = [z / jnp.linalg.norm(z.reshape(-1)) for z in (z0, z1)]
    # Unlike the arc cosine, this is exact for small angles.
    distances = [jnp.linalg.norm((units[0] + s * units[1]).reshape(-1)) for s in (-1, 1)]
    theta = 2 * jnp.arctan2(*distances)
    w = jnp.linspace(0.0, 1.0, num, dtype=z0.dtype).reshape(num, *(1,) * z0.ndim)
    weights = [jnp.where(theta > 0, jnp.sin(v * theta) / jnp.sin(theta), v) for v in (1 - w, w)]
    return (weights[0] * z0[None] + weights[1] * z1[None]).astype(dtype)


def __dir__() -> list[str]:
    return __all__
