"""Extremal eigenpairs of a symmetric operator, or of a Hessian, from products with vectors."""

import functools
import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree, Objective
from jaxqn.derivatives import hvp
from jaxqn.linalg import vectors
from jaxqn.linalg.lanczos import Plan, lanczos
from jaxqn.linalg.numerics import eps

__all__ = ["Eigenpairs", "eigenpairs", "hessian_eigenpairs"]

Which = Literal["smallest_magnitude", "smallest", "largest", "largest_magnitude"]


class Eigenpairs(NamedTuple):
    """A few eigenpairs of a symmetric operator, and how far to trust them.

    Attributes:
      values: eigenvalues, shape ``(k,)``, best first: ascending for ``"smallest"``, descending for
        ``"largest"``, by magnitude for the other two.
      vectors: eigenvectors, a pytree like the parameters with a leading axis of length k; of unit
        length and mutually orthogonal.
      residuals: |A v − lambda v|, shape ``(k,)``. An eigenvalue of A lies within ``residuals[i]``
        of ``values[i]``, however the run ended.
      products: number of products taken, int32.
      scale: the largest |A v| seen: a lower bound of the largest |lambda|, and mostly a close one.
        Residuals and floors are relative to it.
    """

    values: Array
    vectors: ArrayTree
    residuals: Array
    products: Array
    scale: Array


def eigenpairs(
    product: Callable[[ArrayTree], ArrayTree],
    like: ArrayTree,
    *,
    k: int = 2,
    which: Which = "smallest_magnitude",
    tol: Array | float | None = None,
    basis: int | None = None,
    max_products: int | None = None,
    start: ArrayTree | None = None,
    key: Array | None = None,
) -> Eigenpairs:
    """Extremal eigenpairs of a symmetric operator that is known by its products only.

        A v = lambda v,   v ∈ span{x, A x, A² x, ...}.

    The run ends when |A v − lambda v| ≤ tol·scale for every pair, when the budget is spent, or
    where a product is not finite (values and residuals are then NaN). The residuals tell which.

    The ends of the spectrum come first, within tens of products where they stand apart.
    Eigenvalues of smallest magnitude lie inside the spectrum unless it ends at 0; without an
    inverse they come slowly, and where very many crowd around 0, as in a network's Hessian,
    hundreds of products give a residual of 1e-2 to 1e-3 of ``scale``. The vectors returned are
    those of the searched space that A shrinks most.

    The Krylov space of one vector holds one vector of each eigenspace: further copies of a multiple
    eigenvalue enter through rounding, or once the space is exhausted, and may be missed. k rows
    hold up to k copies. ``"smallest_magnitude"`` therefore starts from k random rows, so that a
    null space is found; the other ends, to save products, from one unless ``start`` has more.

    Args:
      product: ``v -> A v`` on pytrees like ``like``, linear and symmetric, which is not checked.
        The compiled program contains it once.
      like: a pytree of floating arrays, for the structure, the shapes and the dtypes of vectors;
        they are sharded as the products are.
      k: number of pairs, at most n, the total size of ``like``.
      which: ``"smallest_magnitude"``, ``"smallest"`` (the most negative), ``"largest"`` or
        ``"largest_magnitude"``.
      tol: residual to reach, relative to ``scale``; default √eps.
      basis: most rows of the basis, m, at least k + 2; default max(2k + 10, 20), and twice that
        for ``"smallest_magnitude"``; never more than n. A larger basis needs fewer products.
      max_products: budget, at least k; default 20 m.
      start: 1 to k rows to start from, as a stack like ``vectors``: the eigenvectors of an operator
        close to this one save products. They need not be orthonormal.
      key: random key, for the start and for leaving an exhausted space; default a fixed one.

    Returns:
      :class:`Eigenpairs`.

    Raises:
      ValueError: if ``k``, ``which``, ``basis``, ``max_products``, ``tol`` or ``start`` is out of
        range, or if the product is not like ``like``.
      TypeError: if a leaf of ``like`` is not real and floating.

    Cost: besides each product, four reads of the basis and, every m/4 products, a rotation of the
    basis and an m-by-m eigenproblem; memory for about 3 m vectors. Call it inside ``jax.jit``
    where it is called more than once.

    Example:
      >>> d = jnp.arange(1.0, 101.0)
      >>> pairs = eigenpairs(lambda v: d * v, d, which="largest")
      >>> pairs.values.round(2).tolist()
      [100.0, 99.0]

    References:
      Wu & Simon, SIAM J. Matrix Anal. Appl. 22 (2000), 602-616; Stewart, SIAM J. Matrix Anal. Appl.
      23 (2002), 601-614.
    """
    like = jax.tree.map(_floating, like)
    plan = _planned(like, k, which, basis, max_products, start)
    tol, key = _tolerance(tol, like, plan), jax.random.key(0) if key is None else key
    return Eigenpairs(*lanczos(_like(product, like), like, plan, tol, start, key))


def hessian_eigenpairs(
    fun: Objective,
    x: ArrayTree,
    args: tuple[Any, ...] = (),
    *,
    k: int = 2,
    which: Which = "smallest_magnitude",
    tol: Array | float | None = None,
    basis: int | None = None,
    max_products: int | None = None,
    start: ArrayTree | None = None,
    key: Array | None = None,
) -> Eigenpairs:
    """Extremal eigenpairs of the Hessian of a function of a pytree, which is never formed.

    :func:`eigenpairs` of v ↦ ∇²fun(x) v, compiled once per function, shapes and static options.

    Args:
      fun: ``fun(x, *args) -> scalar``, hashable.
      x: point, a pytree of floating arrays.
      args: further arguments of ``fun``, the data among them.
      k: number of pairs; see :func:`eigenpairs` for this and the other options.
      which: which of them.
      tol: residual to reach, relative to ``scale``.
      basis: most rows of the basis.
      max_products: budget of Hessian-vector products, of about two gradients each.
      start: rows to start from.
      key: random key.

    Returns:
      :class:`Eigenpairs`.

    Example:
      >>> pairs = hessian_eigenpairs(lambda x: x[0] ** 2 - 2 * x[1] ** 2, jnp.ones(2))
      >>> pairs.values.round(4).tolist()
      [2.0, -4.0]
    """
    if not callable(fun):
        raise TypeError(f"fun must be a function of x, but it is a {type(fun).__name__}")
    if not isinstance(args, tuple | list):
        raise TypeError(f"args must be a tuple, but it is a {type(args).__name__}: write (data,)")
    x = jax.tree.map(_floating, x)
    plan = _planned(x, k, which, basis, max_products, start)
    tol, key = _tolerance(tol, x, plan), jax.random.key(0) if key is None else key
    return _of_hessian(fun, x, tuple(args), plan, tol, start, key)


@functools.partial(jax.jit, static_argnames=("objective", "plan"))
def _of_hessian(objective, x, args, plan, tol, start, key):
    along = hvp(objective)
    return Eigenpairs(*lanczos(_like(lambda v: along(x, v, *args), x), x, plan, tol, start, key))


def _like(product: Callable[[ArrayTree], ArrayTree], like: ArrayTree) -> Any:
    """The product on rows of a basis, which may be wider than the leaves; its output checked."""

    def described(tree: ArrayTree) -> Any:
        return jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]

    def on_row(v: ArrayTree) -> ArrayTree:
        Av = product(jax.tree.map(lambda a, leaf: a.astype(leaf.dtype), v, like))
        if described(Av) != described(like):
            raise ValueError(
                f"the product of a vector must be like it, {described(like)}, but it is "
                f"{described(Av)}"
            )
        return jax.tree.map(lambda a, b: jnp.asarray(a).astype(b.dtype), Av, v)

    return on_row


def _floating(leaf: Any) -> Array:
    array = jnp.asarray(leaf)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(
            f"eigenvectors are real and floating, but a leaf is {array.dtype}: convert it, or "
            "close over it where it is no variable"
        )
    return array


def _planned(
    like: ArrayTree, k: int, which: str, basis: int | None, budget: int | None, start: Any
) -> Plan:
    """The static numbers of a run, checked."""
    leaves = jax.tree.leaves(like)
    n = vectors.size(like)
    if which not in get_args(Which):
        raise ValueError(f"which must be one of {get_args(Which)}, but it is {which!r}")
    if not 1 <= operator.index(k) <= n:
        raise ValueError(f"k must lie between 1 and the {n} entries of a vector, but it is {k}")
    if basis is None:
        basis = max(2 * k + 10, 20) * (2 if which == "smallest_magnitude" else 1)
    if operator.index(basis) < min(k + 2, n):
        raise ValueError(f"basis must be at least k + 2 = {k + 2}, but it is {basis}")
    m = min(basis, n)
    budget = 20 * m if budget is None else operator.index(budget)
    if budget < k:
        raise ValueError(f"max_products must be at least k = {k}, but it is {budget}")
    step = max(1, m // 4)
    kept = n if m == n else max(k + 1, m - step)
    # k vectors find the null space of a singular operator; one vector finds other ends.
    alone = k if which == "smallest_magnitude" else 1
    given = alone if start is None else _rows_of(start, like, k)
    coarsest = max(eps(leaf.dtype) for leaf in leaves)
    return Plan(k, which, n, m, kept, step, given, budget, coarsest)


def _tolerance(tol: Any, like: ArrayTree, plan: Plan) -> Array:
    """The relative tolerance as a scalar."""
    tol = jnp.asarray(plan.eps**0.5 if tol is None else tol)
    if tol.shape != () or not (isinstance(tol, jax.core.Tracer) or tol >= 0):
        raise ValueError(f"tol must be one number of at least 0, but it is {tol}")
    return tol.astype(vectors.tree_dtype(like))


def _rows_of(start: ArrayTree, like: ArrayTree, k: int) -> int:
    """How many rows a start has."""
    structures: list[Any] = [jax.tree.structure(start), jax.tree.structure(like)]
    found = [jnp.shape(leaf) for leaf in jax.tree.leaves(start)]
    rows = found[0][0] if found and found[0] else 0
    expected = [leaf.shape for leaf in jax.tree.leaves(like)]
    if (
        structures[0] != structures[1]
        or found != [(rows, *shape) for shape in expected]
        or not 1 <= rows <= k
    ):
        raise ValueError(
            f"start must be a stack of 1 to k = {k} vectors, one more leading axis on leaves of "
            f"shapes {expected}, but its leaves have shapes {found}"
        )
    return rows
