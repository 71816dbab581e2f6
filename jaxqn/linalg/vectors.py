"""Vectors: pytrees like the parameters, with inner products, norms and diagonals.

No function here ravels or concatenates a large leaf, so that every leaf stays sharded as the
parameters are; inner products are sums over leaves, at full precision.
"""

import functools
import operator

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg.numerics import HIGHEST, inner, safe_divide, widest
from jaxqn.linalg.packing import is_packed, pooled

__all__ = [
    "branching_pays",
    "cast_like",
    "contract",
    "inf_norm",
    "inf_norms",
    "masked",
    "over_diagonal",
    "products",
    "size",
    "times_diagonal",
    "tree_dtype",
    "vdot",
]

LONG = 10_000
"""Entries of a vector above which skipping a pass over it repays compiling a branch."""

LONG_ON_ACCELERATOR = 4_000_000
"""The same on an accelerator, where a pass takes microseconds and a branch drains the queue of
kernels."""


def tree_dtype(tree: ArrayTree) -> jnp.dtype:
    """The dtype of inner products: the widest of the leaves, and at least float32."""
    return widest(*(jnp.result_type(leaf) for leaf in jax.tree.leaves(tree)))


def size(tree: ArrayTree) -> int:
    """How many numbers a vector has."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def branching_pays(tree: ArrayTree) -> bool:
    """Whether a branch that skips a pass over a vector repays itself."""
    on_cpu = jax.default_backend() == "cpu"
    return size(tree) > (LONG if on_cpu else LONG_ON_ACCELERATOR)


def inf_norm(tree: ArrayTree) -> Array:
    """Largest magnitude of any entry; NaN if any entry is NaN."""
    leaves = [jnp.max(jnp.abs(leaf)) for leaf in pooled(tree)]
    return leaves[0] if len(leaves) == 1 else jnp.max(jnp.stack(leaves))


def inf_norms(*vectors: ArrayTree) -> list[Array]:
    """The largest magnitude in each of some vectors; those of short flat ones share a kernel."""
    flat = _flat(*vectors)
    if flat:
        return list(jnp.max(jnp.abs(jnp.stack(flat)), axis=1))
    return [inf_norm(v) for v in vectors]


def vdot(a: ArrayTree, b: ArrayTree) -> Array:
    """Inner product of two vectors, shape ``()``."""
    return contract(a, b, 0, 0)


def contract(a: ArrayTree, b: ArrayTree, rows_of_a: int, rows_of_b: int) -> Array:
    """Inner products of vectors or stacks: a sum over all but the leading axes that count rows."""
    dtype = tree_dtype(a)

    def of_leaf(u: Array, v: Array) -> Array:
        wide = widest(u.dtype, v.dtype)
        axes = (tuple(range(rows_of_a, u.ndim)), tuple(range(rows_of_b, v.ndim)))
        product = jnp.tensordot(u.astype(wide), v.astype(wide), axes=axes, precision=HIGHEST)
        return product.astype(dtype)

    leaves = zip(pooled(a, rows_of_a), pooled(b, rows_of_b), strict=True)
    return functools.reduce(operator.add, [of_leaf(u, v) for u, v in leaves])


def products(*pairs: tuple[ArrayTree, ArrayTree]) -> list[Array]:
    """The inner product of every pair of vectors.

    Those of short flat vectors share a kernel or two. Others are read pair by pair, since stacking
    them would cost memory traffic.
    """
    flat = _flat(*(v for pair in pairs for v in pair))
    if flat:
        return list(inner(*zip(flat[::2], flat[1::2], strict=True)))
    return [vdot(a, b) for a, b in pairs]


def _flat(*vectors: ArrayTree) -> list[Array]:
    """The vectors as flat arrays, if all are flat, of one dtype and short; otherwise none."""
    arrays = [v.small if is_packed(v) and not v.large else v for v in vectors]
    flat = all(isinstance(v, jax.Array) and v.ndim == 1 and v.size <= LONG for v in arrays)
    return arrays if flat and len({v.dtype for v in arrays}) == 1 else []


def masked(mask: ArrayTree | None, v: ArrayTree) -> ArrayTree:
    """The vector, or rows of a stack, where a mask like the vector holds; 0 elsewhere.

    Without a mask, the vector itself.
    """
    if mask is None:
        return v
    return jax.tree.map(lambda mask, a: jnp.where(mask, a, 0), mask, v)


def times_diagonal(diagonal: ArrayTree | None, v: ArrayTree) -> ArrayTree:
    """diag(d) v; v itself without a diagonal."""
    if diagonal is None:
        return v
    return jax.tree.map(lambda d, a: d.astype(a.dtype) * a, diagonal, v)


def over_diagonal(diagonal: ArrayTree | None, v: ArrayTree) -> ArrayTree:
    """The quotients v/d, zero where d is not positive; v itself without a diagonal."""
    if diagonal is None:
        return v

    def of_leaf(d: Array, a: Array) -> Array:
        return safe_divide(a, d.astype(a.dtype), d > 0)

    return jax.tree.map(of_leaf, diagonal, v)


def cast_like(v: ArrayTree, like: ArrayTree) -> ArrayTree:
    """Every leaf in the dtype of the other tree's."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), v, like)
