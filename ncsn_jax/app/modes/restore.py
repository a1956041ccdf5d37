"""`--mode=restore` restores images from measurements y = A x + n, several times each."""

import json
import os

import numpy as np

from ncsn_jax import evaluation
from ncsn_jax._random import Stream
from ncsn_jax.app import devices, pictures, restoration, storage, units
from ncsn_jax.app.modes import complete, shared

# Samples of each image in the picture, and the factor that makes the deviation visible.
_SHOWN, _SCALE = 4, 2


@devices.jax_defaults()
def restore(config, workdir: str, images: np.ndarray | None = None) -> None:
    """Restores what was measured, and writes to `restoration/step_<step>/`.

    Args:
      config, workdir: the run's.
      images: the array the run began with, if any.
    """
    shared.begin(config, workdir, "restore", Stream.RESTORATION)
    options, originals = config.restore, None
    operator_of = restoration.make_operator(config)
    if options.measurements:
        measured = restoration.load(config, operator_of)
    else:
        originals = shared.load_originals(config, workdir, options.num_images, images, "restore")
        unit = units.to_unit(originals, config.data.value_range)
        measured = restoration.measure(config, operator_of, unit)
    loaded, each = shared.load(config, workdir), options.num_samples
    shared.log.info(
        "restoring %d images, %d times each, by %r, from step %d",
        *(len(measured.y), each, options.method, loaded.step),
    )
    settings = restoration.settings(config, measured)
    directory, samples = complete.draw(loaded, Stream.RESTORATION, settings, measured.known, each)
    if samples is None:
        return
    results = _Results(config, operator_of, measured, originals, samples)
    pictures.write_npz(os.path.join(directory, "restored.npz"), **results.arrays())
    storage.write(os.path.join(directory, "restored.png"), results.picture())
    figures = results.figures()
    text = json.dumps(figures, indent=2) + "\n"
    storage.write(os.path.join(directory, "summary.json"), text.encode())
    shared.log.info(
        "%s; wrote restored.npz, restored.png and summary.json to %s", _line(figures), directory
    )


class _Results:
    """The samples of measurements.

    Args:
      config: the run's configuration.
      operator_of, measured: what was measured; see `restoration`.
      originals: the images in the data's units, or None.
      samples: `[n, S, H, W, C]`, in the same units but not rounded.
    """

    def __init__(self, config, operator_of, measured, originals, samples: np.ndarray):
        value_range = units.unrounded(config.data.value_range)
        self._inputs, self._measured = (config, operator_of, measured), measured
        self._originals, self._samples = originals, samples
        self._mean = samples.mean(axis=1, dtype=np.float64).astype(np.float32)
        spread = samples.std(axis=1, dtype=np.float64, ddof=min(1, samples.shape[1] - 1))
        self._std = spread.astype(np.float32)
        # In [0, 1].
        self._unit, self._unit_mean = (units.to_unit(a, value_range) for a in (samples, self._mean))
        self._unit_std = self._std / (value_range[1] - value_range[0])
        self._truth = None if originals is None else units.to_unit(originals, value_range)
        self._least = restoration.pseudo_inverse(*self._inputs)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays of `restored.npz`."""
        given = {
            "originals": self._originals,
            "measurements": self._measured.y,
            "masks": self._measured.masks,
        }
        made = {"samples": self._samples, "mean": self._mean, "std": self._std}
        return {name: array for name, array in given.items() if array is not None} | made

    def picture(self) -> bytes:
        """Returns a picture with one row for each image."""
        columns = {"measured": restoration.picture(*self._inputs, self._least)}
        columns |= {
            f"sample {j + 1}": self._unit[:, j] for j in range(self._unit.shape[1])[:_SHOWN]
        }
        columns |= {"mean": self._unit_mean, f"std x {_SCALE}": _SCALE * self._unit_std}
        if self._truth is not None:
            columns["original"] = self._truth
        tiles = pictures.to_uint8(np.stack(list(columns.values()), axis=1))
        grid = pictures.grid(tiles.reshape(-1, *tiles.shape[2:]), len(columns))
        return pictures.encode_png(grid, columns=list(columns))

    def figures(self) -> dict:
        """Returns the figures of `summary.json`; None if one is infinite."""
        options, found = self._inputs[0].restore, {}
        if self._truth is not None:
            found["psnr"] = evaluation.psnr(self._unit_mean, self._truth).mean()
            found["ssim"] = evaluation.ssim(self._unit_mean, self._truth).mean()
            found["psnr_pseudo_inverse"] = evaluation.psnr(self._least, self._truth).mean()
            covered = evaluation.coverage(self._unit.swapaxes(0, 1), self._truth)
            found["coverage"], found["coverage_nominal"] = covered
        if options.noise:
            found["chi_square"] = restoration.chi_square(*self._inputs, self._unit).mean()
        found = {n: float(v) if np.isfinite(v) else None for n, v in found.items()}
        count, each = self._samples.shape[:2]
        return {"images": count, "samples": each, "method": options.method} | found


def _line(figures: dict) -> str:
    """Returns the figures in words."""
    words = {
        "images": "{} images restored",
        "psnr": "PSNR of the mean {:.2f}",
        "psnr_pseudo_inverse": "of the pseudo-inverse {:.2f}",
        "ssim": "SSIM {:.3f}",
        "coverage": "coverage {:.3f}",
        "coverage_nominal": "nominally {:.3f}",
        "chi_square": "chi square {:.3f}",
    }
    known = {name: value for name, value in figures.items() if value is not None}
    return ", ".join(text.format(known[name]) for name, text in words.items() if name in known)
