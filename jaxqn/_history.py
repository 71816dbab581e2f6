"""Stacks whose rows may be held in another dtype than the vectors they meet, and diagonals.

A narrow row is widened as it is read, never a whole stack, so that bfloat16 halves what is held
and adds nothing to it.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from jaxqn._numerics import HIGHEST, safe_divide
from jaxqn._packing import pooled
from jaxqn._stacks import is_long, put, row, tree_dtype
from jaxqn._typing import Array, ArrayTree

LARGE = 2**16
"""Entries of a leaf from which a product of matrices is worth its compilation in any case."""

FEW = 8
"""Leaves up to which it always is."""

MANY = 32
"""Rows from which a combination is a product of matrices, too."""

TOGETHER = 8
"""Narrow rows of one pass: were they 16, XLA for CPUs would first widen the whole stack."""


def empty_stack(rows: int, like: ArrayTree, dtype: Any = None) -> ArrayTree:
    """A stack of zero vectors, each leaf sharded as the one of ``like`` wherever that is known."""

    def of_leaf(leaf: Array) -> Array:
        sharding = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
        if isinstance(sharding, jax.sharding.NamedSharding):
            spec = jax.sharding.PartitionSpec(None, *sharding.spec)
            sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
        else:
            sharding = None
        return jnp.zeros((rows, *jnp.shape(leaf)), dtype or leaf.dtype, device=sharding)

    return jax.tree.map(of_leaf, like)


def dots(stack: ArrayTree, vector: ArrayTree, dtype: Any) -> Array:
    """Inner products of every row with a vector, shape ``(k,)``: one pass over the stack."""
    stacks, vectors = pooled(stack, 1), pooled(vector)
    few = len(vectors) <= FEW

    def of_leaf(rows: Array, v: Array) -> Array:
        wide = tree_dtype((rows, v))
        if rows.dtype == wide and (few or v.size > LARGE):
            out = jnp.tensordot(rows, v.astype(wide), axes=v.ndim, precision=HIGHEST)
        else:
            # Compiles in a fraction of the time; for a tensordot, XLA would widen all rows first.
            out = jnp.sum(rows.astype(wide) * v.astype(wide)[None], axis=range(1, rows.ndim))
        return out.astype(dtype)

    return functools.reduce(operator.add, map(of_leaf, stacks, vectors))


def combine(c: Array, stack: ArrayTree, like: ArrayTree) -> ArrayTree:
    """The combination of the rows with coefficients ``c``, in float32 or wider."""
    scalars = jnp.unstack(c)

    def of_leaf(rows: Array, v: Array) -> Array:
        wide = tree_dtype((rows, v))
        narrow = rows.dtype != wide
        if not narrow and c.size > MANY:
            return jnp.tensordot(c.astype(wide), rows, axes=1, precision=HIGHEST)
        # Term by term, so that the compiler makes one pass of this and all that is done with it;
        # narrow rows a few at a time, and not before the inner products that they share.
        step = TOGETHER if narrow else c.size
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

    return jax.tree.map(of_leaf, stack, like)


@jax.custom_batching.custom_vmap
def put_where(condition: Array, stack: ArrayTree, slot: Array, vector: ArrayTree) -> ArrayTree:
    """The stack with one row replaced where ``condition`` holds; nothing else is read or written.

    Where vectors are short the old row is written back instead, and in a batch, where a cond would
    be a select over the whole stack.
    """
    if not is_long(vector):
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


def scaled(diagonal: ArrayTree | None, v: ArrayTree) -> ArrayTree:
    """diag(d) v; v itself without a diagonal."""
    if diagonal is None:
        return v
    return jax.tree.map(lambda d, a: d.astype(a.dtype) * a, diagonal, v)


def unscaled(diagonal: ArrayTree | None, v: ArrayTree) -> ArrayTree:
    """The quotients v/d, zero where d is not positive; v itself without a diagonal."""
    if diagonal is None:
        return v

    def of_leaf(d: Array, a: Array) -> Array:
        return safe_divide(a, d.astype(a.dtype), d > 0)

    return jax.tree.map(of_leaf, diagonal, v)


def check_diagonal(H0: Any, x: ArrayTree) -> None:
    """An H0 must be like the parameters."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (H0, x)]
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (H0, x)]
    if structures[0] != structures[1] or shapes[0] != shapes[1]:
        raise ValueError(
            "the H0 of a limited-memory method is a diagonal like the parameters, with shapes "
            f"{shapes[1]}, but it has {shapes[0]}: for instance jax.tree.map(jnp.ones_like, x)"
        )


def cast_like(v: ArrayTree, like: ArrayTree) -> ArrayTree:
    """Every leaf in the dtype of the other tree's."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), v, like)


def rounded(v: ArrayTree, stack: ArrayTree) -> ArrayTree:
    """What a row of the stack can hold of a vector, in the vector's dtype."""

    def of_leaf(a: Array, rows: Array) -> Array:
        if not _is_narrow(rows, a):
            return a
        info = jnp.finfo(rows.dtype)
        return jax.lax.reduce_precision(a, info.nexp, info.nmant)

    return jax.tree.map(of_leaf, v, stack)


def is_exact(stack: ArrayTree, vector: ArrayTree) -> bool:
    """Whether rows are held as accurately as inner products are formed, leaf by leaf."""
    pairs = zip(jax.tree.leaves(stack), jax.tree.leaves(vector), strict=True)
    return all(not _is_narrow(rows, v) and v.dtype == tree_dtype(v) for rows, v in pairs)


def _is_narrow(rows: Array, v: Array) -> bool:
    held, given = jnp.finfo(rows.dtype), jnp.finfo(v.dtype)
    return bool(held.nmant < given.nmant or held.nexp < given.nexp)
