"""Holds parameters as one vector while training on a CPU.

A network of this kind has hundreds of small arrays. Averaging each over the devices, and updating each by
the optimizer and the EMA, are thousands of operations, which take longer to compile than the network does.
On one vector they are a dozen: a step of the digits takes a quarter less time, and compiles in half of it.
Networks, checkpoints and samplers have the parameters as a tree.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Packing:
    """Turns trees of one structure into vectors and back.

    The optimizer has to treat all elements alike, apart from their global norm, as those of
    `training.make_optimizer` do.

    Args:
      like: such a tree, of float32 arrays or of their shapes.

    Attributes:
      offsets: int32 scalars, where in the vector each array begins. A compiled function takes them as
        arguments: of offsets that XLA knows, it compiles a copy for each array.
    """

    def __init__(self, like: Any):
        leaves, self._structure = jax.tree.flatten(like)
        self._shapes = [leaf.shape for leaf in leaves]
        self._sizes = [leaf.size for leaf in leaves]
        self.offsets = tuple(np.cumsum([0, *self._sizes[:-1]], dtype=np.int32))

    def pack(self, tree: Any) -> Any:
        """Makes a vector `[n]` of each part of a training state that has the structure of `like`."""

        def is_part(part: Any) -> bool:
            return jax.tree.structure(part) == self._structure

        def pack_part(part: Any) -> Any:
            return _concatenate(jax.tree.leaves(part), np) if is_part(part) else part

        return jax.tree.map(pack_part, tree, is_leaf=is_part)

    def unpack(self, tree: Any) -> Any:
        """Undoes `pack`, of numpy arrays: every vector was a tree."""

        def unpack_part(array: np.ndarray) -> Any:
            return self._join(np.split(array, self.offsets[1:])) if array.ndim else array

        return jax.tree.map(unpack_part, tree)

    def view(self, vector: jax.Array, offsets: tuple) -> Any:
        """Returns, in a function that is traced, the tree of a vector; differentiable once, in reverse."""

        @jax.custom_vjp
        def split(vector, offsets):
            cut = functools.partial(jax.lax.dynamic_slice, allow_negative_indices=False)
            return [cut(vector, (at,), (n,)) for at, n in zip(offsets, self._sizes, strict=True)]

        # JAX's own derivative would add up as many vectors as there are arrays.
        split.defvjp(
            lambda vector, offsets: (split(vector, offsets), None),
            lambda _, parts: (_concatenate(parts, jnp), None),
        )
        return self._join(split(vector, offsets))

    def _join(self, parts: list) -> Any:
        arrays = [part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)]
        return self._structure.unflatten(arrays)


def _concatenate(arrays: list, numpy: Any) -> Any:
    return numpy.concatenate([numpy.ravel(array) for array in arrays])
