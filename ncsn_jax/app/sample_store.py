"""Keeps the samples of one checkpoint on disk, first in parts, so that none is made twice.

A directory holds `settings.json`, which says what determined the samples; `parts/` with samples not yet
joined; and finally `samples.npz` with the key `samples`, `[N, H, W, C]`, and `grid.png`. Sample i is a
function of the settings and i. So an interrupted run makes only the missing samples, and so does a later
run that asks for more.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator

import numpy as np

from ncsn_jax.app import pictures, storage
from ncsn_jax.errors import UserError, differences

# A grid has a column for each class, up to this many.
_MAX_COLUMNS = 20


class SampleStore:
    """The samples in one directory.

    Args:
      directory: its path, created if it does not exist.
      settings: JSON-serialisable values that determine every sample.
      shape: a sample's shape, such as (H, W, C).
      name: the name of the file and of its array.
      dtype: a sample's type.
      to_picture: turns images `[n, H, W, C]` of that type into uint8 ones. Samples with another number of
        axes are not images and get no `grid.png`.
      classes: the classes that samples have in turn. The file also has them, as `labels`, `int32[N]`, and the
        grid has a named column for each, if there are from two to 20.

    Raises:
      UserError: if the directory holds samples made with other settings.
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
        classes: np.ndarray | None = None,
    ):
        self._directory = directory
        self._parts = os.path.join(directory, "parts")
        self._path = os.path.join(directory, f"{name}.npz")
        self._shape, self._name, self._dtype = shape, name, np.dtype(dtype)
        self._to_picture, self._classes = to_picture, classes
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
                f"{directory} holds samples made with other settings: {differing}; "
                "repeat those settings to add samples, or name these with --config.sampling.name=NAME"
            )
        self._have = dict(self._read())

    def missing(self, count: int) -> list[int]:
        """Returns the indices below `count` that are still missing."""
        return [i for i in range(count) if i not in self._have]

    def add(self, indices: list[int], samples: np.ndarray) -> None:
        """Stores samples `[n, ...]` under their indices."""
        storage.make_directory(self._parts)
        path = os.path.join(self._parts, f"{indices[0]:08d}-{len(indices):08d}.npz")
        pictures.write_npz(path, indices=np.asarray(indices), samples=samples)
        self._have.update(zip(indices, samples, strict=True))

    def finish(self) -> np.ndarray:
        """Writes `samples.npz` and `grid.png` and returns their samples.

        These are all samples up to the first gap, even if fewer were asked for. Parts are removed unless
        some lie beyond a gap.
        """
        count = next(i for i in itertools.count() if i not in self._have)
        samples = np.stack([self._have[i] for i in range(count)])
        labels = {} if self._classes is None else {"labels": np.resize(self._classes, count)}
        pictures.write_npz(self._path, **{self._name: samples}, **labels)
        if len(self._shape) == 3:
            path = os.path.join(self._directory, "grid.png")
            storage.write(path, self._grid(samples))
        if count == len(self._have):
            storage.remove_directory(self._parts)
        return samples

    def _grid(self, samples: np.ndarray) -> bytes:
        """Returns a picture of the first samples."""
        names = [] if self._classes is None else [str(label) for label in self._classes]
        if not 1 < len(names) <= _MAX_COLUMNS:
            return pictures.encode_png(pictures.grid(self._to_picture(samples[:100])))
        shown = self._to_picture(samples[: 10 * len(names)])
        grid = pictures.grid(shown, len(names))
        return pictures.encode_png(grid, columns=names[: len(shown)])

    def _read(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (index, sample) of what earlier runs left. An unreadable part is made again."""
        if storage.exists(self._path):
            try:
                (samples,) = pictures.read_npz(self._path, self._name)
            # Damaged files can raise any exception.
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
                fits = indices.dtype.kind in "iu" and indices.shape == samples.shape[:1]
                fits &= samples.dtype == self._dtype and samples.shape[1:] == self._shape
            except Exception:
                continue
            if fits:  # the samples of a torn or foreign file count as missing
                yield from zip(indices.tolist(), samples, strict=True)
