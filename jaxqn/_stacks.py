"""Stacks of vectors: a pytree whose leaves have one more leading axis than the parameters.

A basis of k directions and the history of a limited-memory method are stacks of shape
``(k, *leaf.shape)``, leaf by leaf. Nothing is ravelled or concatenated, so that every leaf stays
sharded as the parameters are; inner products are sums over leaves, at full precision.
"""

import functools
import operator

import jax
import jax.numpy as jnp

from jaxqn._numerics import HIGHEST, inner, widest
from jaxqn._packing import is_packed, pooled
from jaxqn._typing import Array, ArrayTree

LONG = 10_000
"""Entries of a vector beyond which a pass over it costs more than compiling around it."""

LONG_ON_ACCELERATOR = 4_000_000
"""The same where a pass takes microseconds, and a branch stops what runs ahead of it."""


def tree_dtype(tree: ArrayTree) -> jnp.dtype:
    """The dtype of inner products: the widest of the leaves, and at least float32."""
    return widest(*(jnp.result_type(leaf) for leaf in jax.tree.leaves(tree)))


def size(tree: ArrayTree) -> int:
    """How many numbers a vector has."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def is_long(tree: ArrayTree) -> bool:
    """Whether a pass over a vector costs more than to branch around it."""
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


def zeros(rows: int, like: ArrayTree) -> ArrayTree:
    """A stack of ``rows`` zero vectors."""

    def of_leaf(leaf: Array) -> Array:
        return jnp.zeros((rows, *jnp.shape(leaf)), jnp.result_type(leaf))

    return jax.tree.map(of_leaf, like)


def row(stack: ArrayTree, i: Array | int) -> ArrayTree:
    """The vector at position ``i``."""
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, axis=0, keepdims=False), stack
    )


def put(stack: ArrayTree, i: Array | int, vector: ArrayTree) -> ArrayTree:
    """The stack with the vector at position ``i`` replaced."""
    return jax.tree.map(
        lambda leaf, v: jax.lax.dynamic_update_index_in_dim(leaf, v.astype(leaf.dtype), i, axis=0),
        stack,
        vector,
    )


def vdot(a: ArrayTree, b: ArrayTree) -> Array:
    """Inner product of two vectors, shape ``()``."""
    return _contract(a, b, 0, 0)


def products(*pairs: tuple[ArrayTree, ArrayTree]) -> list[Array]:
    """The inner product of every pair of vectors.

    Those of short flat vectors share a kernel or two; others are read pair by pair, since to stack
    them would cost memory traffic.
    """
    flat = _flat(*(v for pair in pairs for v in pair))
    if flat:
        return list(inner(*zip(flat[::2], flat[1::2], strict=True)))
    return [vdot(a, b) for a, b in pairs]


def _flat(*vectors: ArrayTree) -> list[Array]:
    """The vectors as flat arrays, if that is what they are, and short enough to be stacked."""
    arrays = [v.small if is_packed(v) and not v.large else v for v in vectors]
    flat = all(isinstance(v, jax.Array) and v.ndim == 1 and v.size <= LONG for v in arrays)
    return arrays if flat and len({v.dtype for v in arrays}) == 1 else []


def dots(stack: ArrayTree, vector: ArrayTree) -> Array:
    """Inner products of every row with a vector, shape ``(k,)``: one pass over the stack."""
    return _contract(stack, vector, 1, 0)


def gram(a: ArrayTree, b: ArrayTree) -> Array:
    """Inner products of every row of ``a`` with every row of ``b``, shape ``(ka, kb)``."""
    return _contract(a, b, 1, 1)


def combine(coefficients: Array, stack: ArrayTree) -> ArrayTree:
    """Linear combinations of the rows: coefficients ``(k,)`` give a vector, ``(j, k)`` a stack."""

    def of_leaf(leaf: Array) -> Array:
        wide = widest(leaf.dtype)
        mixed = jnp.tensordot(
            coefficients.astype(wide), leaf.astype(wide), axes=1, precision=HIGHEST
        )
        return mixed.astype(leaf.dtype)

    return jax.tree.map(of_leaf, stack)


def _contract(a: ArrayTree, b: ArrayTree, rows_of_a: int, rows_of_b: int) -> Array:
    """Sum over everything but the leading axes that count rows."""
    dtype = tree_dtype(a)

    def of_leaf(u: Array, v: Array) -> Array:
        wide = widest(u.dtype, v.dtype)
        axes = (tuple(range(rows_of_a, u.ndim)), tuple(range(rows_of_b, v.ndim)))
        product = jnp.tensordot(u.astype(wide), v.astype(wide), axes=axes, precision=HIGHEST)
        return product.astype(dtype)

    leaves = zip(pooled(a, rows_of_a), pooled(b, rows_of_b), strict=True)
    return functools.reduce(operator.add, [of_leaf(u, v) for u, v in leaves])
