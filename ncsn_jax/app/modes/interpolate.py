"""`--mode=interpolate` interpolates pairs of images by the probability flow (Song et al., 2021, D.4)."""

import os
import zlib
from collections.abc import Callable

import numpy as np

from ncsn_jax import likelihood
from ncsn_jax.app import build, devices, distributed, pictures, run_flows, units
from ncsn_jax.app.modes import shared
from ncsn_jax.app.sample_store import SampleStore
from ncsn_jax.errors import UserError


@devices.jax_defaults()
def interpolate(config, workdir: str, images: np.ndarray | None = None) -> None:
    """Encodes pairs of images, decodes latents between them, and writes to `interpolation/step_<step>/`.

    Args:
      config, workdir: the run's.
      images: the array the run began with, if any.
    """
    shared.begin(config, workdir, "interpolate")
    count, shape = config.interpolation.num_steps, build.image_shape(config)
    value_range = config.data.value_range
    originals = shared.load_originals(config, workdir, 2 * config.interpolation.num_pairs, images)
    pairs = len(originals) // 2
    if not pairs:
        raise UserError("there is only one image: interpolation needs two")
    originals = originals[: 2 * pairs].reshape(pairs, 2, *shape)
    loaded = shared.load(config, workdir)
    directory = loaded.directory("interpolation")
    fields = [f"sampling.{f}" for f in ("rtol", "atol", "end", "temperature", "dtype", "precision")]
    settings = loaded.settings(*fields, "interpolation.num_steps")
    settings["images"] = zlib.crc32(originals.tobytes())
    distributed.agree("what it interpolates", settings)
    at_once = min(pairs, max(1, config.sampling.batch_size // count))
    encode, decode = (run_flows.on_devices(config, f) for f in (run_flows.encode, run_flows.decode))

    def make(indices: list[int], advanced: Callable[[int], None]) -> np.ndarray:
        ends = units.to_unit(originals[np.asarray(indices)].reshape(-1, *shape), value_range)
        latents = encode(loaded.params, ends, 2 * at_once)[0].reshape(-1, 2, *shape)
        between = np.concatenate([likelihood.interpolate(*pair, count) for pair in latents])
        decoded = decode(loaded.params, between, count * at_once)[0]
        if not np.isfinite(decoded).all():
            raise UserError(
                "an image cannot be encoded and decoded: config.sampling.rtol and atol may be too "
                "small for float32"
            )
        advanced(len(indices))
        return units.from_unit(decoded, value_range).reshape(-1, count, *shape)

    found = shared.make_missing(
        "interpolation",
        lambda: SampleStore(
            os.path.join(directory, "pairs"),
            settings,
            (count, *shape),
            name="interpolations",
            dtype=units.dtype(value_range),
        ),
        pairs,
        at_once,
        make,
        unit="pairs",
    )
    if found is None:
        return
    path = os.path.join(directory, "interpolation")
    pictures.write_npz(f"{path}.npz", originals=originals, interpolations=found)
    rows = np.concatenate([originals[:, :1], found, originals[:, 1:]], axis=1)
    shown = units.to_picture(rows.reshape(-1, *shape), value_range)
    pictures.write_png(f"{path}.png", pictures.grid(shown, columns=count + 2))
    shared.log.info("wrote interpolation.png and interpolation.npz to %s", directory)
