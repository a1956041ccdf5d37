"""Keeps the samples of one checkpoint on disk, in parts at first, so that none is made twice.

A directory holds `settings.json`, which says what determined the samples, `parts/` with what is not yet
put together, and at the end `samples.npz` with the key `samples`, `[N, H, W, C]`, and `grid.png`.
Sample i is a function of the settings and i. So an interrupted run goes on with those that are missing,
and who asks for more later gets the new ones made alone.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator

import numpy as np

from ncsn_jax.app import pictures, storage
from ncsn_jax.errors import UserError, differences


class SampleStore:
    """The samples in one directory.

    Args:
      directory: its path; it is made if need be.
      settings: JSON-serialisable values that determine every sample.
      shape: of a sample, such as (H, W, C).
      name: of the file, and of its array.
      dtype: of a sample.
      to_picture: turns images `[n, H, W, C]` of that type into uint8 ones. There is a `grid.png` of images
        only, not of what has another number of axes.

    Raises:
      UserError: if the directory holds samples that were made with other settings.
    """

    def __init__(
        self,
        directory: str,
        settings: dict,
        shape: tuple[int, ...],
        *,
        name: str = "samples",
        dtype: type = np.uint8,
        to_picture: Callable[[np.ndarray], np.ndarray] = lambda images: images,
    ):
        self._directory = directory
        self._parts = os.path.join(directory, "parts")
        self._path = os.path.join(directory, f"{name}.npz")
        self._shape, self._name, self._dtype = shape, name, np.dtype(dtype)
        self._to_picture = to_picture
        path = os.path.join(directory, "settings.json")
        try:
            storage.make_directory(directory)
            storage.remove_leftovers(directory)
            found = storage.read_json(path)
            if found is None:
                text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
                storage.write(path, text.encode())
                found = settings
        except (OSError, ValueError) as error:
            raise UserError(f"{directory} cannot be used for samples: {error}") from None
        there = {name: found[name] for name in settings if name in found}
        if differing := differences(there, settings):
            raise UserError(
                f"{directory} holds samples made otherwise: {differing}; "
                "repeat those settings to add to them, or name these with --config.sampling.name=NAME"
            )
        self._have = dict(self._read())

    def missing(self, count: int) -> list[int]:
        """Returns the indices below `count` that are not there yet."""
        return [i for i in range(count) if i not in self._have]

    def add(self, indices: list[int], samples: np.ndarray) -> None:
        """Keeps samples, `[n, ...]`, under their indices."""
        storage.make_directory(self._parts)
        path = os.path.join(self._parts, f"{indices[0]:08d}-{len(indices):08d}.npz")
        pictures.write_npz(path, indices=np.asarray(indices), samples=samples)
        self._have.update(zip(indices, samples, strict=True))

    def finish(self) -> np.ndarray:
        """Writes `samples.npz` and `grid.png` and returns their samples.

        These are all from the first on up to the first gap, also if fewer were asked for. Parts are removed
        unless some lie beyond a gap.
        """
        count = next(i for i in itertools.count() if i not in self._have)
        samples = np.stack([self._have[i] for i in range(count)])
        pictures.write_npz(self._path, **{self._name: samples})
        if len(self._shape) == 3:
            grid = pictures.grid(self._to_picture(samples[:100]))
            pictures.write_png(os.path.join(self._directory, "grid.png"), grid)
        if count == len(self._have):
            storage.remove_directory(self._parts)
        return samples

    def _read(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields what earlier runs left: (index, sample). A part that cannot be read is made again."""
        if storage.exists(self._path):
            try:
                (samples,) = pictures.read_npz(self._path, self._name)
            # Damaged files raise all kinds of exceptions.
            except Exception as error:
                reason = type(error).__name__
                raise UserError(f"{self._path} cannot be read ({reason}): move it away") from None
            if samples.dtype != self._dtype or samples.shape[1:] != self._shape:
                raise UserError(
                    f"{self._path} holds {samples.dtype} of shape {samples.shape}, expected {self._dtype} of "
                    f"shape (N, {', '.join(map(str, self._shape))}): move it away"
                )
            yield from enumerate(samples)
        for name in storage.list_names(self._parts):
            try:
                path = os.path.join(self._parts, name)
                indices, samples = pictures.read_npz(path, "indices", "samples")
                sound = indices.dtype.kind in "iu" and indices.shape == samples.shape[:1]
                sound &= samples.dtype == self._dtype and samples.shape[1:] == self._shape
            except Exception:
                continue
            if sound:  # Of a torn or foreign file the samples count as missing.
                yield from zip(indices.tolist(), samples, strict=True)
