"""Thick-restart Lanczos on stacks of vectors, with full reorthogonalisation.

A basis V of at most m orthonormal rows is kept beside its products AV, so that every residual is a
combination of products taken. Each round adds a few rows, solves the small problem T = V A Vᵀ and
replaces the basis by its best Ritz vectors, whose residuals are the next directions. Vectors keep
the structure, the shapes and the sharding of the parameters.
"""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import stacks, vectors
from jaxqn.linalg.conditional import where
from jaxqn.linalg.numerics import dot, safe_divide


class Plan(NamedTuple):
    """The static numbers of a run."""

    k: int  # pairs wanted
    which: str  # and which
    n: int  # entries of a vector
    m: int  # most rows of the basis
    kept: int  # most rows that survive a round
    step: int  # rows that a round adds
    given: int  # rows to start from
    budget: int  # most products
    eps: float  # of the coarsest leaf


class Basis(NamedTuple):
    """Orthonormal rows V, their products AV and T = V A Vᵀ; rows not in use are masked."""

    V: ArrayTree
    AV: ArrayTree
    T: Array
    rows: Array
    products: Array
    scale: Array


class Round(NamedTuple):
    """The state after a round: pairs ``wanted @ V``, and the rows whose residuals come next."""

    basis: Basis
    sources: Array
    width: Array
    wanted: Array
    values: Array
    residuals: Array
    done: Array


def lanczos(
    product: Any, like: ArrayTree, plan: Plan, tol: Array, start: Any, key: Array
) -> tuple[Array, ArrayTree, Array, Array, Array]:
    """Rounds of expansion and restart until the wanted pairs are good or the budget is spent."""
    first = plan.k if start is not None else min(plan.m, max(plan.k, plan.step))

    def advance(state: Round) -> Round:
        base = state.basis.rows
        stop = jnp.where(base == 0, first, jnp.minimum(base + plan.step, plan.m))

        def goes_on(basis: Basis) -> Array:
            return (basis.rows < stop) & (basis.products < plan.budget)

        def add(basis: Basis) -> Basis:
            return _expanded(plan, product, basis, _direction(plan, basis, state, base, key))

        return _assessed(plan, tol, jax.lax.while_loop(goes_on, add, state.basis))

    state = jax.lax.while_loop(lambda s: ~s.done, advance, _initial(plan, like, start))
    vectors = stacks.combine(state.wanted, state.basis.V)
    vectors = _scaled(1 / _norms(vectors), vectors)
    vectors = jax.tree.map(lambda v, leaf: v.astype(leaf.dtype), vectors, like)
    return state.values, vectors, state.residuals, state.basis.products, state.basis.scale


def _initial(plan: Plan, like: ArrayTree, start: ArrayTree | None) -> Round:
    """The state before the first product. A zero row of ``start`` stands for a random one."""
    dtype = vectors.tree_dtype(like)

    def empty(leaf: Array) -> Array:
        return jnp.zeros((plan.m, *leaf.shape), vectors.tree_dtype(leaf))

    empties = jax.tree.map(empty, like)
    basis = Basis(
        V=empties if start is None else _with_head(empties, _orthonormal(start, like)),
        AV=empties,
        T=jnp.zeros((plan.m, plan.m), dtype),
        rows=jnp.int32(0),
        products=jnp.int32(0),
        scale=jnp.zeros((), dtype),
    )
    nothing = jnp.zeros(plan.k, dtype)
    return Round(
        basis=basis,
        sources=jnp.arange(plan.given, dtype=jnp.int32),
        width=jnp.int32(plan.given),
        wanted=jnp.eye(plan.k, plan.m, dtype=dtype),
        values=nothing,
        residuals=nothing,
        done=jnp.bool_(False),
    )


def _direction(plan: Plan, basis: Basis, state: Round, base: Array, key: Array) -> ArrayTree:
    """The next row, a unit vector orthogonal to the others.

    First come the given rows. Then comes A v less its projection on the basis, for the rows v that
    the last round named and after them for the rows that these brought. A random vector replaces
    one of which the projection leaves nothing. Projection is done twice; the first one of A v is
    known from T.
    """
    V, i = basis.V, basis.rows
    used = jnp.arange(plan.m, dtype=jnp.int32) < i

    def less(v: ArrayTree, c: Array) -> ArrayTree:
        # One row of coefficients is a matrix product: m terms take longer to compile.
        mixed = stacks.combine(jnp.where(used, c, 0)[None], V)
        return jax.tree.map(lambda a, rows: a - rows[0], v, mixed)

    nth, given = i - base, basis.products < plan.given
    named = state.sources[jnp.minimum(nth, plan.given - 1)]
    j = jnp.where(nth < state.width, named, i - state.width)
    v = where(given, stacks.row(V, i), stacks.row(basis.AV, j))
    v = less(v, jnp.where(given, 0, basis.T[:, j]))
    lost = ~(_norm(v) > 10 * plan.eps * jnp.where(given, 1, basis.scale))
    # A cond, so that an unbatched run draws a random vector only where it needs one.
    v = jax.lax.cond(lost, lambda: _normal(jax.random.fold_in(key, basis.products), v), lambda: v)
    v = _unit(v)
    return _unit(less(v, stacks.dots(V, v)))


def _expanded(plan: Plan, product: Any, basis: Basis, v: ArrayTree) -> Basis:
    """One more row and its product: the only product of the program."""
    i, Av = basis.rows, product(v)
    h = jnp.where(jnp.arange(plan.m, dtype=jnp.int32) < i, stacks.dots(basis.V, Av), 0)
    h = h.at[i].set(vectors.vdot(v, Av))
    # The row depends on h, so that XLA reads V for h first and then writes in place, not to a copy.
    v = where(jnp.all(jnp.isfinite(h)), v, jax.tree.map(jnp.zeros_like, v))
    return Basis(
        V=stacks.put(basis.V, i, v),
        AV=stacks.put(basis.AV, i, Av),
        T=basis.T.at[i, :].set(h).at[:, i].set(h),
        rows=i + 1,
        products=basis.products + 1,
        scale=jnp.maximum(basis.scale, _norm(Av)),
    )


def _assessed(plan: Plan, tol: Array, basis: Basis) -> Round:
    """Solve the small problem, keep its best Ritz vectors, and compute the wanted residuals."""
    k, finite = plan.k, jnp.all(jnp.isfinite(basis.T))
    theta, Y = _ritz(plan, jnp.where(finite, basis.T, 0), basis.rows)
    spent = (basis.products >= plan.budget) | (basis.rows == plan.n)
    V = _with_head(basis.V, stacks.combine(Y, basis.V))
    # V is always finite. The test makes one rotation wait for the other and reuse its memory.
    Y = jnp.where(jnp.isfinite(_norm(stacks.row(V, 0))), Y, 0)
    basis = basis._replace(
        V=V,
        AV=_with_head(basis.AV, stacks.combine(Y, basis.AV)),
        T=jnp.zeros_like(basis.T).at[: plan.kept, : plan.kept].set(jnp.diag(theta)),
        rows=jnp.minimum(basis.rows, plan.kept),
        scale=jnp.maximum(basis.scale, jnp.max(jnp.abs(theta))),
    )
    V, AV = basis.V, basis.AV
    values, wanted = theta[:k], jnp.eye(k, plan.m, dtype=theta.dtype)
    residuals = _residuals(values, _head(V, k), _head(AV, k))
    sources = jnp.argsort(-residuals)[: plan.given].astype(jnp.int32)
    # While the basis first fills, a block of all pairs above the tolerance; then one chain at a
    # time, which reaches a higher power of A for as many products.
    width = jnp.sum(residuals > tol * basis.scale, dtype=jnp.int32)
    width = jnp.where(basis.products < 2 * plan.m, jnp.clip(width, 1, plan.given), 1)
    if plan.which == "smallest_magnitude":
        G = jnp.where(finite, stacks.gram(AV, AV)[: plan.kept, : plan.kept], 0)
        values, wanted = _shrunk_most(k, theta, G, basis.rows)
        wanted = jnp.pad(wanted, ((0, 0), (0, plan.m - plan.kept)))
        residuals = _residuals(values, stacks.combine(wanted, V), stacks.combine(wanted, AV))
    return Round(
        basis=basis,
        sources=sources,
        width=width.astype(jnp.int32),
        wanted=wanted,
        values=jnp.where(finite, values, jnp.nan),
        residuals=jnp.where(finite, residuals, jnp.nan),
        done=spent | ~jnp.any(residuals > tol * basis.scale),
    )


def _ritz(plan: Plan, T: Array, rows: Array) -> tuple[Array, Array]:
    """The best Ritz values and their coefficients, ``(kept,)`` and ``(kept, m)``, best first."""
    used = jnp.arange(plan.m, dtype=jnp.int32) < rows
    theta, Q = jnp.linalg.eigh(T + jnp.diag(jnp.where(used, 0, _outside(T))))
    inside = dot(used.astype(T.dtype), Q * Q) > 0.5
    rank = {
        "smallest_magnitude": jnp.abs(theta),
        "smallest": theta,
        "largest": -theta,
        "largest_magnitude": -jnp.abs(theta),
    }[plan.which]
    best = jnp.argsort(jnp.where(inside, rank, jnp.inf))[: plan.kept]
    inside = inside[best]
    Y = jnp.where(inside[:, None] & used[None, :], Q.T[best], 0)
    return jnp.where(inside, theta[best], 0), Y


def _shrunk_most(k: int, theta: Array, G: Array, rows: Array) -> tuple[Array, Array]:
    """Of the Ritz vectors' span, the k unit vectors with the least |A v|; G is AV (AV)ᵀ.

    The eigenvectors of G are those of A², which cannot tell lambda from −lambda: among equals, the
    ones that diagonalise A.
    """
    used = jnp.arange(theta.size, dtype=jnp.int32) < rows
    squares, Z = jnp.linalg.eigh(G + jnp.diag(jnp.where(used, 0, _outside(G))))
    squares = jnp.maximum(squares, 0)
    sizes = jnp.sqrt(squares)
    a, b = sizes[:, None], sizes[None, :]
    C = jnp.where(jnp.abs(a - b) <= 0.01 * (a + b), dot(Z.T * theta[None, :], Z), 0)
    Q = jnp.linalg.eigh(C)[1]
    chosen = jnp.argsort(dot(squares, Q * Q))[:k]
    wanted = dot(Q.T[chosen], Z.T)
    values = dot(wanted * wanted, theta)
    order = jnp.argsort(jnp.abs(values))
    return values[order], wanted[order]


def _outside(matrix: Array) -> Array:
    """A number larger than any eigenvalue, for the rows that are not in use."""
    largest = jnp.max(jnp.abs(matrix))
    return jnp.where(largest > 0, 2 * len(matrix) * largest, 1)


def _residuals(values: Array, vectors: ArrayTree, products: ArrayTree) -> Array:
    """|A v − lambda v| of each row."""
    return _norms(jax.tree.map(operator.sub, products, _scaled(values, vectors)))


def _orthonormal(start: ArrayTree, like: ArrayTree) -> ArrayTree:
    """Rows of the same span, orthonormal up to rounding; zeros for those that add nothing."""
    rows = jax.tree.map(
        lambda a, leaf: jnp.where(jnp.isfinite(a), a, 0).astype(vectors.tree_dtype(leaf)),
        start,
        like,
    )
    sizes = _norms(rows)
    rows = _scaled(safe_divide(jnp.ones_like(sizes), sizes, sizes > 0), rows)
    squares, Q = jnp.linalg.eigh(stacks.gram(rows, rows))
    independent = squares > 100 * len(squares) * jnp.finfo(squares.dtype).eps
    scale = jax.lax.rsqrt(jnp.where(independent, squares, 1)) * independent.astype(squares.dtype)
    return stacks.combine(Q.T * scale[:, None], rows)


def _norm(v: ArrayTree) -> Array:
    return jnp.sqrt(vectors.vdot(v, v))


def _norms(stack: ArrayTree) -> Array:
    return jax.vmap(_norm)(stack)


def _unit(v: ArrayTree) -> ArrayTree:
    size = 1 / _norm(v)
    return jax.tree.map(lambda leaf: leaf * size.astype(leaf.dtype), v)


def _scaled(c: Array, stack: ArrayTree) -> ArrayTree:
    """Every row times its number."""
    return jax.tree.map(
        lambda leaf: leaf * c.astype(leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1)), stack
    )


def _head(stack: ArrayTree, rows: int) -> ArrayTree:
    return jax.tree.map(lambda leaf: leaf[:rows], stack)


def _with_head(stack: ArrayTree, head: ArrayTree) -> ArrayTree:
    return jax.tree.map(lambda leaf, new: leaf.at[: len(new)].set(new), stack, head)


def _normal(key: Array, like: ArrayTree) -> ArrayTree:
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, v.shape, v.dtype) for k, v in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, drawn)
