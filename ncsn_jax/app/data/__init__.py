"""Datasets as arrays, and batches as a pure function of the step.

`load` turns the name of a dataset into uint8 images `[N, H, W, C]`, decoded once, in memory, and kept in
a cache file that later starts map into memory; `load_labels` returns their classes. `arrays.load` takes
people's own arrays, also of floating point.
`Batches` turns them into the batch of a given step: there is no iterator, hence nothing to save, and a
resumed run sees the same batches as one that was never stopped. Flips and dequantization happen on the
device (`ncsn_jax.images.prepare`). TensorFlow is never imported.
"""

from ncsn_jax.app.data.batches import Batches
from ncsn_jax.app.data.sources import load, load_labels

__all__ = ["Batches", "load", "load_labels"]
