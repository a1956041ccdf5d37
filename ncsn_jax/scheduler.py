"""Annealed Langevin dynamics one step at a time, for callers with their own loop.

The scheduler follows the diffusers library's interface, with the argument names and numbers of its NCSN
scheduler. It is an immutable pytree: methods that change the schedule return a new one, and every method
works under `jit`, `vmap` and `scan`. The steps match `ncsn_jax.sampling.annealed_langevin`: bit for bit if
both are compiled as one loop, and to rounding in a Python loop:

    k = 0
    for t in scheduler.timesteps:
        for _ in range(scheduler.num_annealed_steps):
            sigma = jnp.broadcast_to(scheduler.sigmas[t], (batch,))
            key_step = jax.random.fold_in(key, k)  # k counts the steps from 0
            x = scheduler.step(key_step, score_fn(x, sigma), t, x).prev_sample
            k += 1
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ncsn_jax import _checks as check
from ncsn_jax._random import expand
from ncsn_jax.errors import show
from ncsn_jax.sampling._langevin import annealed_steps, langevin_update
from ncsn_jax.sigmas import geometric

__all__ = [
    "AnnealedLangevinDynamicsOutput",
    "AnnealedLangevinDynamicsScheduler",
]


class AnnealedLangevinDynamicsOutput(NamedTuple):
    """The result of a step.

    Attributes:
      prev_sample: the next state of the chain, like the sample.
    """

    prev_sample: jax.Array


def _static() -> dataclasses.Field:
    """Returns a field that is not a leaf of the pytree."""
    return dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class AnnealedLangevinDynamicsScheduler:
    """Annealed Langevin dynamics for noise conditional score networks (NCSN, Algorithm 1).

    As in the original, `set_timesteps` keeps the sigmas and `set_sigmas` keeps the timesteps. Arguments of
    `set_sigmas` apply to its result only, not to later calls. Unlike the original, `step` takes a key, 0 is
    an error instead of meaning None, and nothing changes in place.

    Args:
      num_train_timesteps: the number of noise levels L, >= 1.
      num_annealed_steps: updates per level T, >= 1; stored for the caller's loop, not used here.
      sigma_min: the smallest sigma, > 0, in units of the data; not used with L = 1.
      sigma_max: the largest sigma, > sigma_min.
      sampling_eps: epsilon of Algorithm 1, > 0: x + (alpha/2) s + sqrt(alpha) z with
        alpha_i = epsilon sigma_i^2 / sigma_L^2.

    Attributes:
      sigmas: float32 `[L]`, decreasing.
      step_size: float32 `[L]`, alpha.
      timesteps: int32, the levels to visit, 0 ... L - 1 at first.
      epsilon: float32 scalar, the epsilon of the step sizes; `set_sigmas` may change it.

    Raises:
      ValueError: if an argument is out of range.
    """

    num_train_timesteps: int = _static()
    num_annealed_steps: int = _static()
    sigma_min: float = _static()
    sigma_max: float = _static()
    sampling_eps: float = _static()
    # Derived from the arguments above; passed only to copy a scheduler.
    sigmas: jax.Array = dataclasses.field(default=None, kw_only=True)
    timesteps: jax.Array = dataclasses.field(default=None, kw_only=True)
    epsilon: jax.Array = dataclasses.field(default=None, kw_only=True)

    order: ClassVar[int] = 1

    def __post_init__(self):
        if self.sigmas is not None:
            return
        check.count("num_train_timesteps", self.num_train_timesteps)
        check.count("num_annealed_steps", self.num_annealed_steps)
        levels = self.num_train_timesteps
        made = _schedule(levels, self.sigma_min, self.sigma_max, self.sampling_eps)
        made["timesteps"] = jnp.arange(levels, dtype=jnp.int32)
        for name, value in made.items():
            object.__setattr__(self, name, value)

    @property
    def step_size(self) -> jax.Array:
        """alpha_i = epsilon sigma_i^2 / sigma_L^2, `[L]`."""
        return self.epsilon * jnp.square(self.sigmas / self.sigmas[-1])

    def scale_model_input(self, sample: jax.Array, timestep=None) -> jax.Array:
        """Returns the sample unchanged: the score network takes x itself."""
        del timestep
        return sample

    def set_timesteps(
        self, num_inference_steps: int, sampling_eps: float | None = None
    ) -> "AnnealedLangevinDynamicsScheduler":
        """Returns a scheduler with the timesteps 0 ... num_inference_steps - 1.

        Args:
          num_inference_steps: at least 1. Sigmas and step sizes do not change; see `set_sigmas`.
          sampling_eps: has no effect, as in the original.
        """
        del sampling_eps
        check.count("num_inference_steps", num_inference_steps)
        return dataclasses.replace(self, timesteps=jnp.arange(num_inference_steps, dtype=jnp.int32))

    def set_sigmas(
        self,
        num_inference_steps: int,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sampling_eps: float | None = None,
    ) -> "AnnealedLangevinDynamicsScheduler":
        """Returns a scheduler with another ladder and its step sizes.

        Args:
          num_inference_steps: the number of levels, >= 1. Timesteps do not change; see `set_timesteps`.
          sigma_min, sigma_max, sampling_eps: None keeps the scheduler's original value.

        Raises:
          ValueError: if an argument is out of range.
        """
        check.count("num_inference_steps", num_inference_steps)
        low = self.sigma_min if sigma_min is None else sigma_min
        high = self.sigma_max if sigma_max is None else sigma_max
        epsilon = self.sampling_eps if sampling_eps is None else sampling_eps
        return dataclasses.replace(self, **_schedule(num_inference_steps, low, high, epsilon))

    def step(
        self, key: jax.Array, model_output: jax.Array, timestep, sample: jax.Array
    ) -> AnnealedLangevinDynamicsOutput:
        """Takes one step of Langevin dynamics at a timestep's level.

        Args:
          key: one key, or one per example `[B]`.
          model_output: the score at the sample, shaped like it.
          timestep: integer scalar in [0, L).
          sample: `[B, ...]`, the state of the chains; keep it in float32, as bfloat16 and float16 round away
            the smallest steps.

        Returns:
          The next state, computed in at least float32, of the sample's type.

        Raises:
          ValueError: if the score is not shaped like the sample, or the level does not exist.
        """
        key = check.keys(key, check.batch("sample", sample))
        self._check_timesteps("timestep", timestep, ())
        check.shape("model_output", model_output, sample.shape)
        x, dtype = check.state("sample", sample)
        drift, noise = annealed_steps(self.sigmas, self.epsilon, x.dtype)
        x, _ = langevin_update(key, x, model_output, drift[timestep], noise[timestep])
        return AnnealedLangevinDynamicsOutput(x.astype(dtype))

    def add_noise(
        self, original_samples: jax.Array, noise: jax.Array, timesteps: jax.Array
    ) -> jax.Array:
        """Returns samples perturbed with the sigmas of their timesteps.

        Args:
          original_samples: `[B, ...]`.
          noise: like the samples, standard normal.
          timesteps: int `[B]` in [0, L).

        Raises:
          ValueError: if the shapes disagree, or a level does not exist.
        """
        batch = check.batch("original_samples", original_samples)
        self._check_timesteps("timesteps", timesteps, (batch,))
        timesteps = jnp.asarray(timesteps)
        check.shape("noise", noise, original_samples.shape)
        x, dtype = check.state("original_samples", original_samples)
        return (x + expand(self.sigmas[timesteps], x) * noise).astype(dtype)

    def _check_timesteps(self, name: str, timesteps, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless these are levels; traced values are not checked."""
        levels = self.sigmas.shape[0]
        traced = check.is_traced(timesteps)
        values = timesteps if traced else np.asarray(timesteps)
        valid = values.shape == shape and jnp.issubdtype(values.dtype, jnp.integer)
        if not (valid and (traced or np.all((values >= 0) & (values < levels)))):
            wanted = f"integers of shape {shape}" if shape else "an integer"
            raise ValueError(
                f"{name} must be {wanted} from 0 to {levels - 1}, got {show(timesteps)}"
            )


def _schedule(count: int, sigma_min: float, sigma_max: float, epsilon: float) -> dict:
    """Returns a scheduler's fields `sigmas` and `epsilon`."""
    ends = check.ends(sigma_max=sigma_max, sigma_min=sigma_min, equal=count == 1, traced=False)
    high, low = ends.values()
    epsilon = check.positive("sampling_eps", epsilon)
    sigmas = geometric(high, low, count) if count > 1 else jnp.asarray([high], jnp.float32)
    return {"sigmas": sigmas, "epsilon": jnp.asarray(epsilon, jnp.float32)}


def __dir__() -> list[str]:
    return __all__
