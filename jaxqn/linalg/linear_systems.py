"""Linear systems whose solution has a derivative: direct or iterative, and honest when singular.

A solver here knows the matrix as it is now; :func:`jax.lax.custom_linear_solve` makes derivatives
of every order from the product alone.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.scipy.sparse.linalg

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import vectors
from jaxqn.linalg.numerics import dot, eps, power_of_two, safe_divide

__all__ = ["general_solve", "iterative_solve", "symmetric_solve"]

MOST_PRODUCTS = 10_000
"""Products that conjugate gradients may take."""

Product = Callable[[ArrayTree], ArrayTree]


def symmetric_solve(A: Array, b: Array) -> Array:
    """A⁺ b for a symmetric matrix: of all least-squares solutions the shortest.

    An eigenvalue of A over the roots of its diagonal counts as 0 where its magnitude is at most
    10 n eps times the largest; so scaled, variables in different units decide nothing.

    Args:
      A: shape ``(n, n)``.
      b: shape ``(n,)``.

    Returns:
      Shape ``(n,)``. Cost: O(n³).
    """
    pseudo_inverse = _pseudo_inverse(jax.lax.stop_gradient(A))
    return jax.lax.custom_linear_solve(
        lambda x: dot(A, x), b, lambda _, b: dot(pseudo_inverse, b), symmetric=True
    )


def _pseudo_inverse(A: Array) -> Array:
    D = power_of_two(jnp.sqrt(jnp.abs(jnp.diagonal(A))))
    values, V = jnp.linalg.eigh(A / jnp.outer(D, D))
    sizes = jnp.abs(values)
    counts = sizes > 10 * A.shape[0] * eps(A.dtype) * jnp.max(sizes)
    W = V / D[:, None]
    inverse = dot(safe_divide(W, values[None], counts[None]), W.T)

    def shortest() -> Array:
        null, _, _ = jnp.linalg.svd(jnp.where(counts[None], 0, W))
        among = jnp.arange(counts.size) < jnp.sum(~counts)
        null = jnp.where(among[None], null, 0)
        inside = dot(null, null.T)
        P = jnp.eye(counts.size, dtype=A.dtype) - inside
        return dot(dot(P, inverse), P)

    return jax.lax.cond(jnp.all(counts), lambda: inverse, shortest)


def general_solve(A: Array, b: Array) -> Array:
    """A⁺ b for any square matrix: of all least-squares solutions the shortest; O(n³)."""
    pseudo_inverse = jnp.linalg.pinv(jax.lax.stop_gradient(A))
    return jax.lax.custom_linear_solve(
        lambda x: dot(A, x),
        b,
        lambda _, b: dot(pseudo_inverse, b),
        lambda _, b: dot(pseudo_inverse.T, b),
    )


def iterative_solve(
    product: Product,
    b: ArrayTree,
    *,
    symmetric: bool = True,
    preconditioner: Product | None = None,
) -> ArrayTree:
    """A⁻¹ b from products with A: by conjugate gradients, or by GMRES where A is not symmetric.

    Where A is singular and b in its range, it is a least-squares solution. Where the iteration
    ends without a solution, the result is NaN.

    Args:
      product: ``v -> A v``, v being like ``b``.
      b: a pytree.
      symmetric: whether A is symmetric; it is then positive semidefinite.
      preconditioner: ``v -> `` about A⁻¹ v, symmetric positive definite where A is, or ``None``.

    Returns:
      Like ``b``.
    """
    tol = max(1e-10, 8 * eps(vectors.tree_dtype(b)))
    most = min(10 * vectors.size(b), MOST_PRODUCTS)
    method = jax.scipy.sparse.linalg.cg
    if not symmetric:
        method = functools.partial(jax.scipy.sparse.linalg.gmres, restart=50)
        most //= 50

    def solve(product: Product, b: ArrayTree, M: Product | None) -> ArrayTree:
        def attempt(M: Product | None) -> ArrayTree:
            return method(product, b, tol=tol, maxiter=most, M=M)[0]

        def solves(x: ArrayTree) -> Array:
            left = jax.tree.map(jnp.subtract, b, product(x))
            return vectors.vdot(left, left) <= (1e3 * tol) ** 2 * vectors.vdot(b, b)

        x = attempt(M)
        if M is not None:  # one that is not positive definite may lead nowhere
            x = jax.lax.cond(solves(x), lambda: x, lambda: attempt(None))
        solved = solves(x)
        return jax.tree.map(lambda leaf: jnp.where(solved, leaf, jnp.nan), x)

    return jax.lax.custom_linear_solve(
        product,
        b,
        lambda product, b: solve(product, b, preconditioner),
        lambda product, b: solve(product, b, preconditioner if symmetric else None),
        symmetric=symmetric,
    )
