"""`--mode=suggest` prints the ladder and the step size that suit a configuration's images."""

import math

import numpy as np

from ncsn_jax import sigmas
from ncsn_jax.app import build, devices, logs, schema, units
from ncsn_jax.errors import UserError
from ncsn_jax.images import center

# How many numbers the compared images may hold. As floats, in pairs, each takes eight bytes.
_NUMBERS_TO_COMPARE = 500_000_000

# The largest sigma for which a network that is not divided by sigma has been trained.
_LARGEST_SIGMA_OF_NCSN = 2

# A longer ladder is printed with only this many sigmas at each end.
_LONGEST_LADDER, _SHOWN = 20, 4


@devices.jax_defaults()
def suggest(config, images: np.ndarray | None = None) -> None:
    """Prints the ladder and the step size that techniques 1, 2 and 4 of NCSNv2 give for the images.

    Args:
      config: a run's configuration.
      images: an array in place of `config.data.dataset`.
    """
    schema.check(config)
    logs.start(None)  # it names images that are left out
    dataset = build.load_images(config, images=images)
    stride = -(-math.prod(dataset.shape) // _NUMBERS_TO_COMPARE)
    points = dataset[::stride]
    interval = "[-1, 1]" if config.data.centered else "[0, 1]"
    some = f" of {len(points)} of them, evenly spaced" if stride > 1 else ""
    print(
        f"{len(dataset)} images of shape {dataset.shape[1:]} in {interval}; comparing all pairs{some}",
        flush=True,
    )
    model, steps = config.model, config.sampling.steps_per_level
    try:
        found = sigmas.suggest(
            center(units.to_unit(points, config.data.value_range), config.data.centered),
            sigma_end=model.sigma_end,
            steps_per_level=steps,
        )
    except ValueError as error:
        raise UserError(
            f"config.model.sigma_end={model.sigma_end}, for these images: {error}"
        ) from None
    ladder, here = found.sigmas, build.make_sigmas(config)
    print(
        f"largest distance between two images: {found.largest_distance:.4g} (NCSNv2, technique 1)",
        f"ratio of neighbouring sigmas in {points[0].size} dimensions: {found.ratio:.5g} (technique 2)",
        f"variance after a level, for {steps} steps, in units of its noise: "
        f"{found.variance_ratio:.4g} (technique 4)",
        f"ladder: {_shorten([f'{sigma:.4g}' for sigma in ladder])}",
        "",
        f"--config.model.sigma_begin={ladder[0]:.4g} --config.model.num_levels={len(ladder)} "
        f"--config.model.sigma_end={model.sigma_end!r} --config.sampling.epsilon={found.epsilon:.4g} "
        f"--config.sampling.steps_per_level={steps}",
        "",
        f"with these, a sample takes {len(ladder) * steps} network evaluations; "
        "a different --config.sampling.steps_per_level needs a different epsilon",
        sep="\n",
    )
    if ladder[0] > _LARGEST_SIGMA_OF_NCSN and model.name == "ncsn":
        print(
            "sigmas this large need a network whose output is divided by sigma: --config.model.name=ncsnv2"
        )
    print(
        f"the configuration has sigmas from {here[0]:.4g} to {here[-1]:.4g} in {len(here)} levels, and "
        f"epsilon {config.sampling.epsilon:.4g}"
    )


def _shorten(ladder: list[str]) -> str:
    if len(ladder) > _LONGEST_LADDER:
        ladder = [*ladder[:_SHOWN], "...", *ladder[-_SHOWN:]]
    return " ".join(ladder)
