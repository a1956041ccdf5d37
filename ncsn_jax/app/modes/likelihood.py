"""`--mode=likelihood` computes bits per dimension by the probability flow (Song et al., 2021, D.2)."""

import json
import os
from collections.abc import Callable

import numpy as np

from ncsn_jax.app import devices, distributed, run_flows, storage, units
from ncsn_jax.app.modes import shared
from ncsn_jax.app.sample_store import SampleStore
from ncsn_jax.errors import UserError


@devices.jax_defaults()
def likelihood(config, workdir: str, images: np.ndarray | None = None) -> None:
    """Writes the bits per dimension of images, and their mean, to `likelihood/step_<step>/`.

    For a run with classes they are of the density of all images, not of that given the class.

    Args:
      config, workdir: the run's.
      images: the array the run began with, if any.
    """
    shared.begin(config, workdir, "likelihood")
    options = config.likelihood
    dataset = shared.load_images(config, workdir, options.split, images)
    described = dataset.describe()
    dataset = np.asarray(dataset[: options.num_images])
    loaded = shared.load(config, workdir)
    directory = loaded.directory("likelihood")
    fields = ("split", "exact", "num_projections", "rtol", "atol", "end")
    settings = loaded.settings(
        *(f"likelihood.{f}" for f in fields), "sampling.dtype", "sampling.precision"
    )
    settings["images"] = described
    distributed.agree("what it evaluates", settings)
    bits_per_dim = run_flows.on_devices(config, run_flows.bits_per_dim)
    size = min(config.sampling.batch_size, len(dataset))

    def make(indices: list[int], advanced: Callable[[int], None]) -> np.ndarray:
        images = units.to_input(dataset[np.asarray(indices)], config.data.value_range)
        bits, evaluations = bits_per_dim(loaded.params, images, size, indices)
        if not np.isfinite(bits).all():
            bad = indices[np.argmin(np.isfinite(bits))]
            raise UserError(
                f"the likelihood of image {bad} is not finite: config.likelihood.rtol={options.rtol} "
                f"and atol={options.atol} may be too small for float32"
            )
        advanced(len(indices))
        return np.stack([bits, evaluations], axis=1).astype(np.float32)

    values = shared.make_missing(
        "likelihood",
        lambda: SampleStore(directory, settings, (2,), name="bits_per_dim", dtype=np.float32),
        len(dataset),
        size,
        make,
    )
    if values is None:
        return
    bits, evaluations = values[: len(dataset)].T
    count = len(bits)
    error = float(np.std(bits, ddof=1) / np.sqrt(count)) if count > 1 else None
    summary = {
        "bits_per_dim": float(np.mean(bits)),
        "standard_error": error,
        "images": count,
        "evaluations": float(np.mean(evaluations)),
    }
    text = json.dumps(summary, indent=2) + "\n"
    storage.write(os.path.join(directory, "summary.json"), text.encode())
    shared.log.info(
        "%.4f bits per dimension%s%s of %d images of %r, standard error %s, %.0f evaluations each; wrote "
        "bits_per_dim.npz and summary.json to %s",
        summary["bits_per_dim"],
        ", of the density in the data's units," if config.data.value_range else "",
        ", not given the class," if config.data.labels else "",
        count,
        options.split,
        "unknown" if error is None else f"{error:.4f}",
        summary["evaluations"],
        directory,
    )
