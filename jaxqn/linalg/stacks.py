"""Stacks of vectors: a pytree whose leaves have one more leading axis than the parameters.

The history of a limited memory and a basis of k directions are stacks, with leaves of shape
``(k, *leaf.shape)``. No function here ravels or concatenates a large leaf, so that every leaf stays
sharded as the parameters are. Rows may be held in a narrower dtype than the vectors they meet: XLA
widens each row as it reads it, never a whole stack, so that bfloat16 halves the memory.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg.numerics import HIGHEST
from jaxqn.linalg.packing import pooled
from jaxqn.linalg.vectors import branching_pays, contract, tree_dtype

__all__ = [
    "combine",
    "dots",
    "empty_stack",
    "gram",
    "is_exact",
    "put",
    "put_where",
    "rounded",
    "row",
    "zeros",
]

MATMUL_ENTRIES = 2**16
"""Entries of a leaf above which a matrix product always repays its compilation."""

MATMUL_LEAVES = 8
"""Leaves up to which a matrix product per leaf repays its compilation."""

MATMUL_ROWS = 32
"""Rows above which a combination of rows is a matrix product as well."""

ROWS_PER_PASS = 8
"""Narrow rows that one pass adds up; from 16 on, XLA for CPUs first widens the whole stack."""


def empty_stack(rows: int, like: ArrayTree, dtype: Any = None) -> ArrayTree:
    """A stack of zero vectors, each leaf sharded as that of ``like`` where that is known."""

    def of_leaf(leaf: Array) -> Array:
        sharding = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
        if isinstance(sharding, jax.sharding.NamedSharding):
            spec = jax.sharding.PartitionSpec(None, *sharding.spec)
            sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
        else:
            sharding = None
        return jnp.zeros((rows, *jnp.shape(leaf)), dtype or leaf.dtype, device=sharding)

    return jax.tree.map(of_leaf, like)


def dots(stack: ArrayTree, vector: ArrayTree, dtype: Any = None) -> Array:
    """Inner products of every row with a vector, shape ``(k,)``: one pass over the stack.

    The sum over leaves has ``dtype``, by default that of inner products of two rows.
    """
    dtype = tree_dtype(stack) if dtype is None else dtype
    stacks, vectors = pooled(stack, 1), pooled(vector)
    few = len(vectors) <= MATMUL_LEAVES

    def of_leaf(rows: Array, v: Array) -> Array:
        wide = tree_dtype((rows, v))
        if rows.dtype == wide and (few or v.size > MATMUL_ENTRIES):
            out = jnp.tensordot(rows, v.astype(wide), axes=v.ndim, precision=HIGHEST)
        else:
            # A sum compiles in a fraction of the time, and XLA widens row by row inside it; for a
            # tensordot it first widens the whole stack.
            out = jnp.sum(rows.astype(wide) * v.astype(wide)[None], axis=range(1, rows.ndim))
        return out.astype(dtype)

    return functools.reduce(operator.add, map(of_leaf, stacks, vectors))


def combine(coefficients: Array, stack: ArrayTree, like: ArrayTree | None = None) -> ArrayTree:
    """Linear combinations of the rows: coefficients ``(k,)`` give a vector, ``(j, k)`` a stack.

    The result is in float32 or wider, and as wide as the vector ``like`` where it is given.
    """
    c, into_vector = coefficients, coefficients.ndim == 1
    scalars = jnp.unstack(c) if into_vector else []

    def of_leaf(rows: Array, v: Array) -> Array:
        wide = tree_dtype((rows, v))
        narrow = rows.dtype != wide
        if not into_vector or (not narrow and c.size > MATMUL_ROWS):
            return jnp.tensordot(c.astype(wide), rows.astype(wide), axes=1, precision=HIGHEST)
        # Term by term, so that XLA makes one pass of the sum and of what follows it. The barrier
        # keeps XLA from widening all narrow rows at once for this sum and the inner products.
        step = ROWS_PER_PASS if narrow else c.size
        sums: list[Array] = []
        for start in range(0, c.size, step):
            if narrow:
                rows, sums = jax.lax.optimization_barrier((rows, sums))
            terms = [
                scalar.astype(wide) * jax.lax.index_in_dim(rows, i, keepdims=False).astype(wide)
                for i, scalar in enumerate(scalars[start : start + step], start)
            ]
            sums = [functools.reduce(operator.add, sums + terms)]
        return sums[0]

    return jax.tree.map(of_leaf, stack, stack if like is None else like)


@jax.custom_batching.custom_vmap
def put_where(condition: Array, stack: ArrayTree, slot: Array, vector: ArrayTree) -> ArrayTree:
    """The stack with one row replaced where ``condition`` holds; nothing else is read or written.

    Where vectors are short, and in a batch, it writes the old row back instead: in a batch a cond
    would be a select over the whole stack.
    """
    if not branching_pays(vector):
        return _put_this_or_old(condition, stack, slot, vector)
    return jax.lax.cond(condition, lambda: put(stack, slot, vector), lambda: stack)


def _put_this_or_old(
    condition: Array, stack: ArrayTree, slot: Array, vector: ArrayTree
) -> ArrayTree:
    def of_leaf(new: Array, old: Array) -> Array:
        return jnp.where(condition, new.astype(old.dtype), old)

    return put(stack, slot, jax.tree.map(of_leaf, vector, row(stack, slot)))


@put_where.def_vmap
def _put_where_batched(axis_size: int, batched: Any, *args: Any) -> tuple[ArrayTree, ArrayTree]:
    in_axes = tuple(jax.tree.map(lambda along: 0 if along else None, batched))
    out = jax.vmap(_put_this_or_old, in_axes=in_axes, axis_size=axis_size)(*args)
    return out, jax.tree.map(lambda _: True, out)


def rounded(v: ArrayTree, stack: ArrayTree) -> ArrayTree:
    """A vector rounded to the dtype of the stack's rows, in its own dtype."""

    def of_leaf(a: Array, rows: Array) -> Array:
        if not _is_narrow(rows, a):
            return a
        info = jnp.finfo(rows.dtype)
        return jax.lax.reduce_precision(a, info.nexp, info.nmant)

    return jax.tree.map(of_leaf, v, stack)


def is_exact(stack: ArrayTree, vector: ArrayTree) -> bool:
    """Whether rows are as accurate as inner products, leaf by leaf."""
    pairs = zip(jax.tree.leaves(stack), jax.tree.leaves(vector), strict=True)
    return all(not _is_narrow(rows, v) and v.dtype == tree_dtype(v) for rows, v in pairs)


def _is_narrow(rows: Array, v: Array) -> bool:
    held, given = jnp.finfo(rows.dtype), jnp.finfo(v.dtype)
    return bool(held.nmant < given.nmant or held.nexp < given.nexp)


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


def gram(a: ArrayTree, b: ArrayTree) -> Array:
    """Inner products of every row of ``a`` with every row of ``b``, shape ``(ka, kb)``."""
    return contract(a, b, 1, 1)
