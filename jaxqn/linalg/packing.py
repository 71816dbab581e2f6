"""Small leaves of a pytree in one vector.

A program with a kernel for every pass over every leaf takes long to compile. Where nothing can be
sharded, because there is one device, the driver therefore keeps the small leaves of a vector
joined. It leaves the large ones alone, since joining them would cost memory traffic.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg.numerics import widest

__all__ = ["Packed", "is_packed", "packing", "pooled", "repack", "unpacked"]

SMALL = 4096
"""Entries up to which a leaf is small."""


class Packed(NamedTuple):
    """A vector, or a stack of vectors, with its small leaves joined.

    Attributes:
      small: the small leaves, ravelled, shape ``(..., k)``.
      large: the others, in order, each ``(..., *leaf.shape)``.
    """

    small: Array
    large: list[Array]


def is_packed(tree: Any) -> bool:
    """Whether this is a :class:`Packed` vector or stack."""
    return isinstance(tree, Packed)


def packing(x: ArrayTree) -> Callable[[ArrayTree], ArrayTree]:
    """How to pack what is like ``x``, also stacks of it; the identity where nothing is gained."""
    leaves = jax.tree.leaves(x)
    if len({leaf.dtype for leaf in leaves}) > 1 or not _gains([leaf.shape for leaf in leaves]):
        return lambda tree: tree
    axes = [leaf.ndim for leaf in leaves]
    return lambda tree: _pack(jax.tree.leaves(tree), axes)


def pooled(tree: ArrayTree, rows: int = 0) -> list[Array]:
    """The leaves of a vector, or of a stack with ``rows`` axes in front, the small ones in one.

    For reductions, which compile in a tenth of the time over one concatenation.
    """
    leaves = jax.tree.leaves(tree)
    if not _gains([leaf.shape[rows:] for leaf in leaves]):
        return leaves
    dtypes = {leaf.dtype for leaf in leaves}
    dtype = dtypes.pop() if len(dtypes) == 1 else widest(*dtypes)
    packed = _pack([leaf.astype(dtype) for leaf in leaves], [leaf.ndim - rows for leaf in leaves])
    return [packed.small, *packed.large]


def _gains(shapes: list[tuple[int, ...]]) -> bool:
    """Whether there are small leaves to join, and one device, so that no leaf is sharded."""
    return sum(math.prod(shape) <= SMALL for shape in shapes) > 1 and jax.device_count() == 1


def _pack(leaves: list[Array], axes: list[int]) -> Packed:
    """Join the small leaves, each of so many axes behind those of the stack."""
    joined, large = [], []
    for leaf, own in zip(leaves, axes, strict=True):
        stack = leaf.shape[: leaf.ndim - own]
        size = math.prod(leaf.shape[leaf.ndim - own :])
        if size <= SMALL:
            joined.append(leaf.reshape(*stack, size))
        else:
            large.append(leaf)
    return Packed(jnp.concatenate(joined, axis=-1), large)


def unpacked(tree: ArrayTree, like: ArrayTree) -> ArrayTree:
    """A packed vector or stack in the structure of ``like``; anything else unchanged."""
    if not is_packed(tree):
        return tree
    models, large = jax.tree.leaves(like), iter(tree.large)
    sizes = [model.size for model in models if model.size <= SMALL]
    small = iter(jax.lax.split(tree.small, sizes, axis=tree.small.ndim - 1))
    leaves = []
    for model in models:
        if model.size > SMALL:
            leaves.append(next(large))
        else:
            part = next(small)
            leaves.append(part.reshape(*part.shape[:-1], *model.shape))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def repack(state: Any, x: ArrayTree) -> Any:
    """A state in which every vector like ``x``, and every stack, is packed as this process packs.

    A process with another number of devices packs otherwise, and a state may come from one.
    """
    structure: Any = jax.tree.structure(x)
    pack = packing(x)

    def is_vector(part: Any) -> bool:
        return is_packed(part) or structure == jax.tree.structure(part)

    def of_part(part: Any) -> Any:
        vector = unpacked(part, x)
        return pack(vector) if structure == jax.tree.structure(vector) else part

    return jax.tree.map(of_part, state, is_leaf=is_vector)
