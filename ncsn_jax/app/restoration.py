"""Makes what `--mode=restore` restores: operators, masks and measurements, as `config.restore` says.

A measurement is y = A x + n, n ~ N(0, noise^2 I), of images x in [0, 1]. Masks are `[n, H, W]`, of pixels or
of Fourier coefficients.
"""

import logging
import math
import os
import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ncsn_jax import inverse
from ncsn_jax._random import Stream, example_keys, stream_key
from ncsn_jax.app import build, storage
from ncsn_jax.app.data import arrays
from ncsn_jax.app.data.masks import make_masks, random_masks, read_masks
from ncsn_jax.errors import UserError
from ncsn_jax.images import width

OPERATORS = ("downsample", "mask", "blur", "fourier", "grey")
_MASKED = ("mask", "fourier")

# Standard deviation of the data for "pigdm": in [-1, 1] that of the paper, 1.
DATA_STD = 0.5

_log = logging.getLogger(__name__)

# The grey of hidden pixels in a picture.
_HIDDEN = 0.75

# Returns the operator of some images, `operator_of()` or `operator_of(masks)`.
OperatorOf = Callable[..., inverse.LinearOperator]


class Measured(NamedTuple):
    """The measurements of n images.

    Attributes:
      config: the run's configuration.
      operator_of: by `make_operator`.
      y: float32 `[n, ...]`; 0 where nothing is measured.
      masks: bool `[n, H, W]`, or None for an operator without.
    """

    config: ConfigDict
    operator_of: OperatorOf
    y: np.ndarray
    masks: np.ndarray | None

    @property
    def known(self) -> tuple[np.ndarray, ...]:
        """What a sampler knows."""
        return (self.y,) if self.masks is None else (self.y, self.masks)

    @property
    def observed(self) -> np.ndarray:
        """Which elements of y are measured, bool like y."""
        observed = self.operator_of(*self.known[1:]).observed
        return np.broadcast_to(True if observed is None else np.asarray(observed), self.y.shape)

    def settings(self, given: np.ndarray) -> dict:
        """Returns what determines the samples, besides the sampler's settings.

        Args:
          given: the images that were measured, or else y. The rounding of computed measurements depends on
            the machine, and another may continue.
        """
        names = ["operator", "noise", "method", "num_samples"]
        names += ["factor"] * (self.config.restore.operator == "downsample")
        found = {f"restore.{name}": self.config.restore[name] for name in names}
        if self.config.restore.operator == "blur":
            found["kernel"] = zlib.crc32(_kernel(self.config).tobytes())
        if self.masks is not None:
            found["masks"] = zlib.crc32(self.masks.tobytes())
        return found | {"images or measurements": zlib.crc32(given.tobytes())}

    def pseudo_inverse(self) -> np.ndarray:
        """Returns the images of least norm that fit y best, `[n, H, W, C]`, in [0, 1]."""
        shape = (1, *build.image_shape(self.config))

        def one(y, *masks):
            return inverse.pseudo_inverse(self.operator_of(*masks), y, shape)

        return _one_by_one(one, *self.known)

    def picture(self, pseudo_inverses: np.ndarray) -> np.ndarray:
        """Returns how y looks, `[n, H, W, C]`: blurred images as they are, others by pseudo-inverses."""
        if self.config.restore.operator == "blur":
            return self.y
        if self.config.restore.operator == "mask":
            return np.where(self.masks[..., None], self.y, np.float32(_HIDDEN))
        return pseudo_inverses

    def chi_square(self, samples: np.ndarray) -> np.ndarray:
        """Returns |y - A x|^2 / (noise^2 m) for m measured values.

        Args:
          samples: x in [0, 1], `[n, S, H, W, C]`.

        Returns:
          float64 `[n, S]`.
        """

        def one(x, y, *masks):
            return (y - self.operator_of(*masks).apply(x[0]))[None]

        residual = _one_by_one(one, samples, *self.known).astype(np.float64)
        counts = self.observed.reshape(len(samples), -1).sum(axis=1)
        squares = np.square(residual).reshape(*samples.shape[:2], -1).sum(axis=2)
        return squares / (self.config.restore.noise**2 * counts[:, None])


def check(config: ConfigDict) -> None:
    """Raises UserError if `config.restore` cannot work, as far as it shows without reading files."""
    options = config.restore
    operator, factor, mask = options.operator, options.factor, options.mask
    sides = build.image_shape(config)[:2]
    if operator == "downsample" and (factor % 1 or any(side % factor for side in sides)):
        raise UserError(
            f"config.restore.factor={factor} must be an integer that divides the images' sides, "
            f"{sides[0]} and {sides[1]}"
        )
    if operator == "blur" and not arrays.is_array(options.kernel):
        _std(options.kernel)
    is_array = arrays.is_array(mask)
    if operator == "fourier" and not (mask == "random" or is_array):
        raise UserError(
            f"config.restore.mask={mask!r} must be 'random' or FILE.npy for operator 'fourier'"
        )
    if options.measurements and operator in _MASKED and mask in ("random", "left", "box"):
        raise UserError(
            f"config.restore.mask={mask!r} must be a file for config.restore.measurements: "
            "it says what they measure"
        )
    if options.measurements and options.images:
        raise UserError(
            f"config.restore.images={options.images!r} must be '' for config.restore.measurements"
        )
    if options.method == "dps" and not options.noise:
        raise UserError("config.restore.noise=0 must be above 0 for config.restore.method='dps'")


def make_operator(config: ConfigDict) -> OperatorOf:
    """Returns the function that makes A, for 'mask' and 'fourier' from masks `[B, H, W]`.

    Raises:
      UserError: if the kernel cannot be read or does not fit.
    """
    operator = config.restore.operator
    if operator == "mask":
        return lambda masks: inverse.mask(masks[..., None])
    if operator == "fourier":
        return lambda masks: inverse.fourier_mask(masks[..., None])
    if operator == "downsample":
        made = inverse.downsample(int(config.restore.factor))
    else:
        made = inverse.grey() if operator == "grey" else inverse.blur(_kernel(config))
    return lambda: made


def condition(
    config: ConfigDict, operator_of: OperatorOf, known: tuple
) -> tuple[inverse.LinearOperator, jax.Array, float]:
    """Returns A, y and the noise of images in the range of the SDE.

    Images in [-1, 1] are 2 x - 1, so their measurement is 2 y - A 1, with twice the noise.

    Args:
      config: the run's configuration.
      operator_of: by `make_operator`.
      known: arrays `[B, ...]` that begin with `Measured.known`.
    """
    y, *masks = known[: 1 + (config.restore.operator in _MASKED)]
    operator, scale = operator_of(*masks), width(config.data.centered)
    if config.data.centered:
        y = scale * y - operator.apply(jnp.ones((len(y), *build.image_shape(config)), y.dtype))
    return operator, y, scale * config.restore.noise


def measure(config: ConfigDict, images: np.ndarray) -> Measured:
    """Measures images in [0, 1], `[n, H, W, C]`; mask and noise of image i depend on the seed and i alone."""
    operator_of, masks = make_operator(config), _masks(config, len(images))
    key = stream_key(config.seed, Stream.MEASUREMENTS)

    def one(index, x, *masks):
        keys = example_keys(key, index)
        return inverse.measure(keys, operator_of(*masks), x, config.restore.noise)

    inputs = (images,) if masks is None else (images, masks)
    y = _one_by_one(one, np.arange(len(images)), *inputs)
    return Measured(config, operator_of, y, masks)


def load(config: ConfigDict) -> Measured:
    """Returns the measurements that `config.restore.measurements` names.

    Raises:
      UserError: if they cannot be read or do not fit the operator.
    """
    options, field = config.restore, "config.restore.measurements"
    path = storage.path(options.measurements)
    what = f"{field}={options.measurements!r}"
    if not arrays.is_array(path):
        raise UserError(f"{what} must be FILE.npy, FILE.npz or FILE.npz:KEY")
    y = arrays.read(path, field, options.num_images + 1)
    if y.ndim and len(y) > options.num_images:
        y = y[:-1]
        _log.warning("%s holds more than config.restore.num_images=%d", what, len(y))
    if y.dtype.kind == "c" and options.operator == "fourier":
        y = np.stack([y.real, y.imag], axis=-1)
    if y.dtype.kind != "f":
        raise UserError(
            f"{what} has type {y.dtype}, but must be floating point, of images in [0, 1]"
        )
    operator_of, masks = make_operator(config), _masks(config, len(y) if y.ndim else 0)
    x = jax.ShapeDtypeStruct((1, *build.image_shape(config)), jnp.float32)
    some = () if masks is None else (np.ones((1, *masks.shape[1:]), bool),)
    wanted = jax.eval_shape(lambda x: operator_of(*some).apply(x), x).shape[1:]
    if y.shape[1:] != wanted or not y.size:
        raise UserError(
            f"{what} has shape {y.shape}, but must be [N, {', '.join(map(str, wanted))}] for "
            f"config.restore.operator={options.operator!r} and not empty"
        )
    with np.errstate(over="ignore"):  # an overflow is found as not finite
        measured = Measured(config, operator_of, y.astype(np.float32), masks)
    y = np.where(measured.observed, measured.y, np.float32(0))
    if not np.isfinite(y).all():
        bad = np.argmin(np.isfinite(y).reshape(len(y), -1).all(axis=1))
        raise UserError(f"{what} holds a non-finite value in measurement {bad}")
    if (found := np.abs(y).max()) > (most := _largest(config)) + 6 * options.noise:
        _log.warning(
            "%s has values up to %.3g, but those of images in [0, 1] are at most %.3g",
            what,
            found,
            most,
        )
    return measured._replace(y=y)


def _largest(config: ConfigDict) -> float:
    """Returns a bound on A x for images in [0, 1]."""
    if config.restore.operator == "fourier":
        return math.prod(build.image_shape(config)[:2]) ** 0.5
    return float(np.abs(_kernel(config)).sum()) if config.restore.operator == "blur" else 1.0


def _masks(config: ConfigDict, count: int) -> np.ndarray | None:
    """Returns the masks of images, or None for an operator without."""
    options, shape, field = config.restore, build.image_shape(config), "config.restore.mask"
    if options.operator not in _MASKED:
        return None
    path, is_fourier = storage.path(options.mask), options.operator == "fourier"
    if options.mask == "random":
        return random_masks(shape[:2], count, config.seed, options.factor, fourier=is_fourier)
    if arrays.is_array(path):
        masks = read_masks(path, shape[:2], count, field)
    else:
        if options.mask not in ("left", "box") and not os.path.isfile(path):
            raise UserError(
                f"{field}={options.mask!r} must be 'random', 'left', 'box', FILE.npy or an image file"
            )
        background = config.data.background
        masks = make_masks(options.mask, shape, count, config.seed, background, field)[..., 0]
    if not masks.any(axis=(1, 2)).all():
        raise UserError(f"{field}={options.mask!r} must measure something of every image")
    return masks


def _kernel(config: ConfigDict) -> np.ndarray:
    """Returns the kernel of 'blur', float32 `[K, L]`."""
    field, text = "config.restore.kernel", config.restore.kernel
    sides = build.image_shape(config)[:2]
    if not arrays.is_array(path := storage.path(text)):
        std, profiles = _std(text), []
        for side in sides:
            radius = min(math.ceil(3 * std), side - 1)
            profile = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
            profiles.append(profile / profile.sum())
        return np.outer(*profiles).astype(np.float32)
    kernel, what = arrays.read(path, field), f"{field}={text!r}"
    if kernel.ndim != 2 or not all(side % 2 for side in kernel.shape):
        raise UserError(f"{what} has shape {kernel.shape}, but must be [K, L] with odd sides")
    largest = [2 * side - 1 for side in sides]
    if any(side > most for side, most in zip(kernel.shape, largest, strict=True)):
        raise UserError(
            f"{what} has shape {kernel.shape}, but must be at most {largest} for images of "
            f"{sides[0]} x {sides[1]}"
        )
    if kernel.dtype.kind not in "biuf" or not np.isfinite(kernel).all():
        raise UserError(f"{what} must hold finite numbers")
    return kernel.astype(np.float32)


def _std(text: str) -> float:
    try:
        std = float(text)
    except ValueError:
        std = math.nan
    if not 0.01 <= std <= 1000:
        raise UserError(
            f"config.restore.kernel={text!r} must be a number of pixels from 0.01 to 1000, or FILE.npy"
        )
    return std


def _one_by_one(function: Callable, *inputs: np.ndarray) -> np.ndarray:
    """Maps a function over examples, each on its own, so that none depends on how many there are."""
    function = jax.jit(function)
    return np.concatenate(
        [function(*(a[i : i + 1] for a in inputs)) for i in range(len(inputs[0]))]
    )
