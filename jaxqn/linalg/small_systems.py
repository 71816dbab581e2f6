"""Symmetric positive definite systems: by Cholesky, and the smallest by row operations.

Under ``vmap`` a Cholesky factorisation is a call of LAPACK per lane. Row operations are arithmetic
that all lanes do together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.linalg.numerics import dot

__all__ = ["Factor", "factorised", "solved"]

SMALLEST = 12
"""Unknowns up to which row operations are cheaper."""


class Factor(NamedTuple):
    """A symmetric matrix, prepared for solving.

    Attributes:
      matrix: the inverse of the smallest matrices, the Cholesky factor of others; shape ``(n, n)``.
      positive: whether the matrix is positive definite, shape ``()``; if not, solutions mean
        nothing.
    """

    matrix: Array
    positive: Array

    @property
    def least(self) -> Array:
        """About the smallest eigenvalue: the harmonic sum of all, or the smallest pivot."""
        diagonal = jnp.diagonal(self.matrix)
        if len(diagonal) > SMALLEST:
            return jnp.min(diagonal) ** 2
        return 1 / jnp.sum(diagonal)


def factorised(A: Array) -> Factor:
    """Prepare a symmetric matrix of shape ``(n, n)``. Cost: n³ (row operations) or n³/3."""
    n = A.shape[0]
    if n > SMALLEST:
        L = jnp.linalg.cholesky(A, symmetrize_input=False)
        return Factor(L, jnp.all(jnp.isfinite(jnp.diagonal(L))))

    def sweep(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        """Gauss-Jordan's step: exchange the k-th unknown with the k-th right-hand side."""
        M, positive = carry
        row, column, here = M[k], M[:, k], jnp.arange(n) == k
        pivot = row[k]
        scaled = row / jnp.where(pivot == 0, 1, pivot)
        swept = M - column[:, None] * scaled[None]
        swept = jnp.where(here[:, None], scaled[None], swept)
        inverse = 1 / jnp.where(pivot == 0, 1, pivot)
        column = jnp.where(here, inverse, -column * inverse)
        return jnp.where(here[None], column[:, None], swept), positive & (pivot > 0)

    inverse, positive = jax.lax.fori_loop(0, n, sweep, (A, jnp.ones((), bool)))
    return Factor(inverse, positive)


def solved(factor: Factor, b: Array) -> Array:
    """The solution of A x = b for a vector, or for a matrix of columns."""
    if factor.matrix.shape[0] > SMALLEST:
        return jax.scipy.linalg.cho_solve((factor.matrix, True), b)
    return dot(factor.matrix, b)
