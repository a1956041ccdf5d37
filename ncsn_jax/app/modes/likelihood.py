"""`--mode=likelihood`: bits per dimension of images, by the probability flow (Song et al., 2021, D.2)."""

import json
import logging
import os
from collections.abc import Callable

import numpy as np

from ncsn_jax.app import build, distributed, run_flows, storage, workdirs
from ncsn_jax.app.modes import shared
from ncsn_jax.app.sample_store import SampleStore
from ncsn_jax.errors import UserError

_log = logging.getLogger("ncsn_jax")


def likelihood(config, workdir: str) -> None:
    """Writes the bits per dimension of images, and their mean, to `likelihood/step_<step>/`."""
    shared.begin(config, workdir, "likelihood")
    options = config.likelihood
    dataset = build.load_images(config, options.split)
    described = workdirs.describe_images(dataset)
    dataset = np.asarray(dataset[: options.num_images])
    loaded = shared.load(config, workdir)
    directory = loaded.directory("likelihood")
    fields = ("split", "exact", "num_projections", "rtol", "atol", "end")
    settings = loaded.settings(*(f"likelihood.{f}" for f in fields), "sampling.dtype")
    settings["images"] = described
    distributed.agree("what it judges", settings)
    flow, size = run_flows.Flow(config), min(config.sampling.batch_size, len(dataset))

    def make(indices: list[int], advanced: Callable[[int], None]) -> np.ndarray:
        found = flow.bits_per_dim(loaded.params, indices, dataset[np.asarray(indices)], size)
        bad = np.asarray(indices)[~np.isfinite(found.values)]
        if len(bad):
            raise UserError(
                f"the likelihood of image {bad[0]} is not finite: config.likelihood.rtol={options.rtol} "
                f"and atol={options.atol} may be too small for float32"
            )
        advanced(len(indices))
        return np.stack([found.values, found.evaluations], axis=1).astype(np.float32)

    values = shared.make_missing(
        "likelihood",
        lambda: SampleStore(directory, settings, (2,), name="bits_per_dim", dtype=np.float32),
        len(dataset),
        size,
        make,
    )
    if values is None:
        return
    summary = _summarize(*values[: len(dataset)].T)
    text = json.dumps(summary, indent=2) + "\n"
    storage.write(os.path.join(directory, "summary.json"), text.encode())
    error = summary["standard_error"]
    _log.info(
        "%.4f bits per dimension of %d images of %r, standard error %s, %.0f evaluations each; wrote "
        "bits_per_dim.npz and summary.json to %s",
        summary["bits_per_dim"],
        summary["images"],
        options.split,
        "unknown" if error is None else f"{error:.4f}",
        summary["evaluations"],
        directory,
    )


def _summarize(bits: np.ndarray, evaluations: np.ndarray) -> dict:
    """Returns the means of values of images, `[n]` each, and the standard error of the mean bits."""
    count = len(bits)
    return {
        "bits_per_dim": float(np.mean(bits)),
        "standard_error": float(np.std(bits, ddof=1) / np.sqrt(count)) if count > 1 else None,
        "images": count,
        "evaluations": float(np.mean(evaluations)),
    }
