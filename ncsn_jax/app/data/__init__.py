"""Datasets as images by their number, and batches as a pure function of the step.

`load` turns the name of a dataset into `Images`: decoded once and mapped into memory, or decoded when asked
for; `load_labels` returns their classes. `arrays.load` takes people's own arrays, also of floating point.
`Batches` turns images into the batch of a given step: there is no iterator, hence nothing to save, and a
resumed run sees the same batches as one that was never stopped. Flips and dequantization happen on the
device (`ncsn_jax.images.prepare`). TensorFlow is never imported.
"""

from ncsn_jax.app.data.batches import Batches
from ncsn_jax.app.data.images import Images
from ncsn_jax.app.data.sources import CACHE_BYTES, load, load_labels

__all__ = ["CACHE_BYTES", "Batches", "Images", "load", "load_labels"]
