"""`--mode=restore` restores images from measurements y = A x + n, several times each."""

import json
import os

import numpy as np

from ncsn_jax import evaluation
from ncsn_jax._random import Stream
from ncsn_jax.app import devices, pictures, restoration, run_samplers, storage, units
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
    options, value_range = config.restore, units.unrounded(config.data.value_range)
    if options.measurements:
        measured, originals, truth = restoration.load(config), None, None
    else:
        originals = shared.load_originals(config, workdir, options.num_images, images, "restore")
        truth = units.to_unit(originals, value_range)
        measured = restoration.measure(config, truth)
    loaded, each = shared.load(config, workdir), options.num_samples
    shared.log.info(
        "restoring %d images, %d times each, by %r, from step %d",
        *(len(measured.y), each, options.method, loaded.step),
    )
    settings = measured.settings(measured.y if originals is None else originals)
    directory, samples = complete.draw(loaded, Stream.RESTORATION, settings, measured.known, each)
    if samples is None:
        return
    arrays = {
        "originals": originals,
        "measurements": measured.y,
        "masks": measured.masks,
        "samples": samples,
        "mean": samples.mean(axis=1, dtype=np.float64).astype(np.float32),
        "std": samples.std(axis=1, dtype=np.float64, ddof=min(1, each - 1)).astype(np.float32),
    }
    unit = units.to_unit(samples, value_range)
    if config.restore.noise:
        arrays["chi_square"] = measured.chi_square(unit)
    arrays = {name: array for name, array in arrays.items() if array is not None}
    pictures.write_npz(os.path.join(directory, "restored.npz"), **arrays)

    mean = units.to_unit(arrays["mean"], value_range)
    std, least = arrays["std"] / (value_range[1] - value_range[0]), measured.pseudo_inverse()
    columns = {"measured": measured.picture(least)}
    columns |= {f"sample {j + 1}": unit[:, j] for j in range(min(each, _SHOWN))}
    columns |= {"mean": mean, f"std x {_SCALE}": _SCALE * std}
    if truth is not None:
        columns["original"] = truth
    storage.write(os.path.join(directory, "restored.png"), _picture(columns))

    figures = {"images": len(samples), "samples": each, "method": options.method}
    figures["settings"] = loaded.sampler_settings() | {
        f"restore.{name}": options[name]
        for name in ("operator", "factor", "kernel", "mask", "noise")
    }
    figures |= _figures(arrays, unit, mean, least, truth)
    text = json.dumps(figures, indent=2) + "\n"
    storage.write(os.path.join(directory, "summary.json"), text.encode())
    far = np.argwhere(np.abs(unit - 0.5).max(axis=(2, 3, 4)) > run_samplers.FAR)
    if len(far):
        shared.log.warning(
            "%d of %d samples are far outside [0, 1], first sample %d of image %d: start at a smaller sigma, "
            "or take more steps, or stochastic ones",
            *(len(far), unit.shape[0] * each, far[0, 1], far[0, 0]),
        )
    shared.log.info(
        "%s; wrote restored.npz, restored.png and summary.json to %s", _line(figures), directory
    )


def _picture(columns: dict[str, np.ndarray]) -> bytes:
    """Returns a picture with a row for each image and named columns of `[n, H, W, C]`, in [0, 1]."""
    tiles = pictures.to_uint8(np.stack(list(columns.values()), axis=1))
    grid = pictures.grid(tiles.reshape(-1, *tiles.shape[2:]), len(columns))
    return pictures.encode_png(grid, columns=list(columns))


def _figures(
    arrays: dict[str, np.ndarray],
    samples: np.ndarray,
    mean: np.ndarray,
    least: np.ndarray,
    truth: np.ndarray | None,
) -> dict[str, float | None]:
    """Returns the figures of `summary.json`; None if one is infinite.

    Args:
      arrays: those of `restored.npz`.
      samples: `[n, S, H, W, C]`, in [0, 1] as all others.
      mean: of the samples.
      least: the pseudo-inverses.
      truth: the images that were measured, or None.
    """
    found = {}
    if truth is not None:
        found["psnr"] = evaluation.psnr(mean, truth).mean()
        found["ssim"] = evaluation.ssim(mean, truth).mean()
        found["psnr_pseudo_inverse"] = evaluation.psnr(least, truth).mean()
        covered = evaluation.coverage(samples.swapaxes(0, 1), truth)
        found["coverage"], found["coverage_nominal"] = covered
    if "chi_square" in arrays:
        found["chi_square"] = arrays["chi_square"].mean()
    return {name: float(v) if np.isfinite(v) else None for name, v in found.items()}


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
