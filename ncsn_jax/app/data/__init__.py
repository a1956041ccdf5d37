"""Gives the images of a dataset by index, and batches as a pure function of the step.

`load` turns the name of a dataset into `Images`: decoded once and mapped into memory, or decoded on demand;
`load_labels` returns their classes. `arrays.load` takes users' arrays, including floating-point ones.
`Batches` computes the batch of a given step. It has no iterator, so there is nothing to save, and a resumed
run sees the same batches as one that never stopped. Flips and dequantization happen on the device
(`ncsn_jax.images.prepare`). Nothing here imports TensorFlow.
"""

from ncsn_jax.app.data.batches import Batches
from ncsn_jax.app.data.images import Images
from ncsn_jax.app.data.sources import load, load_labels

__all__ = ["Batches", "Images", "load", "load_labels"]
