"""Parameters as one vector of all small arrays, beside the large ones: how training steps on CPUs hold them.

A network of this kind has hundreds of small arrays. What is done to every one of them, by the optimizer, the
average over devices and the moving average, is thousands of operations, which take longer to compile than
the network and compute next to nothing. On a vector they are a dozen. Hidden here is which arrays are in it
and where. Checkpoints, samplers and networks have the parameters as they are. An optimizer has to treat all
elements alike, but for their global norm, as those of `training.make_optimizer` do.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Packed(NamedTuple):
    """A packed tree of arrays.

    Attributes:
      small: the elements of the small arrays, `[n]`; None if there are none.
      large: the other arrays.
    """

    small: Any
    large: tuple


class Packing:
    """How trees of one structure are packed.

    Args:
      like: such a tree, of arrays or of their shapes.
      largest: an array of so many elements or fewer is small, if its type is float32; 0 packs nothing.

    Attributes:
      offsets: int32 scalars, where in the vector the small arrays begin. A compiled function is given them as
        arguments, since an offset that XLA knows makes it compile the same copy anew for every array.
    """

    def __init__(self, like: Any, largest: int):
        leaves, self._structure = jax.tree.flatten(like)
        self._like = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        self._is_small = [a.dtype == np.float32 and a.size <= largest for a in self._like]
        self._sizes = [a.size for a in itertools.compress(self._like, self._is_small)]
        ends = np.cumsum(self._sizes, dtype=np.int32)
        self.offsets = tuple(
            end - np.int32(size) for end, size in zip(ends, self._sizes, strict=True)
        )

    def pack(self, tree: Any) -> Packed:
        """Returns a tree like `like`, packed, as numpy arrays.

        Raises:
          ValueError: if an array has another shape or type.
        """
        leaves = [np.asarray(leaf) for leaf in self._structure.flatten_up_to(tree)]
        for leaf, expected in zip(leaves, self._like, strict=True):
            if leaf.shape != expected.shape or leaf.dtype != expected.dtype:
                raise ValueError(
                    f"an array of shape {leaf.shape} and type {leaf.dtype} is to be packed as one of "
                    f"shape {expected.shape} and type {expected.dtype}"
                )
        small = [leaf.ravel() for leaf in itertools.compress(leaves, self._is_small)]
        large = itertools.compress(leaves, (not is_small for is_small in self._is_small))
        return Packed(np.concatenate(small) if small else None, tuple(large))

    def unpack(self, packed: Packed) -> Any:
        """Returns the tree that was packed, of numpy arrays; without small ones, of any arrays."""
        small = [] if packed.small is None else np.split(packed.small, self.offsets[1:])
        return self._join(small, packed.large)

    def view(self, packed: Packed, offsets: tuple) -> Any:
        """Returns, in a function that is traced, the tree that was packed; differentiable once, in reverse.

        Args:
          packed: the tree.
          offsets: `offsets`, as arguments of the function.
        """
        small = () if packed.small is None else self._slices(packed.small, offsets)
        return self._join(small, packed.large)

    def pack_in(self, tree: Any) -> Any:
        """Packs each part of a tree, as of a training state, that has the structure of `like`."""

        def is_part(part: Any) -> bool:
            return jax.tree.structure(part) == self._structure

        return jax.tree.map(lambda p: self.pack(p) if is_part(p) else p, tree, is_leaf=is_part)

    def unpack_in(self, tree: Any) -> Any:
        """Undoes `pack_in`."""

        def is_part(part: Any) -> bool:
            return isinstance(part, Packed)

        return jax.tree.map(lambda p: self.unpack(p) if is_part(p) else p, tree, is_leaf=is_part)

    def _join(self, small: Any, large: tuple) -> Any:
        small, large = iter(small), iter(large)
        return self._structure.unflatten(
            next(small).reshape(a.shape) if is_small else next(large)
            for is_small, a in zip(self._is_small, self._like, strict=True)
        )

    def _slices(self, vector: jax.Array, offsets: tuple) -> tuple:
        """Takes a vector apart; the gradient is put together again, where JAX would add up vectors."""
        sizes = self._sizes

        @jax.custom_vjp
        def slices(vector, offsets):
            pairs = zip(offsets, sizes, strict=True)
            return tuple(
                jax.lax.dynamic_slice(vector, (at,), (size,), allow_negative_indices=False)
                for at, size in pairs
            )

        slices.defvjp(
            lambda vector, offsets: (slices(vector, offsets), None),
            lambda _, parts: (jnp.concatenate(parts), None),
        )
        return slices(vector, offsets)
