"""What curvature at a solution says of errors: inverses with a rank, sandwiches, profiles.

A parameter is free, or held where it is; held ones have no part in any inverse.
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from jaxqn._typing import Array, compiled
from jaxqn.linalg import HIGHEST, dot, eps, safe_divide

__all__ = [
    "InverseCurvature",
    "gram_inverse",
    "hessian_inverse",
    "inverse_gram",
    "profiled_square",
    "sandwich",
]

ROUNDING = 10
"""Roundings per row within which an eigenvalue of a Hessian over the largest one counts as 0."""


class InverseCurvature(NamedTuple):
    """The inverse of a Hessian over the free parameters, as far as it has one.

    Attributes:
      root: W with A⁻¹ = WᵀW, shape ``(n, n)``; a direction to a row, 0 for those without a positive
        curvature and in the columns of held parameters.
      undetermined: D⁻¹ P D⁻¹ with the projector P onto the other directions, in which every
        parameter is measured over 1/D, shape ``(n, n)``; 0 where the rank is full.
      rank: directions of positive curvature among the free ones, int32.
      condition: largest over smallest curvature of the scaled matrix, of which 1 is the mean;
        infinite where the rank is not full.
      logdet: the logarithm of det A⁻¹ over the free parameters; NaN where the rank is not full.
      indefinite: whether some curvature is negative by more than rounding.
    """

    root: Array
    undetermined: Array
    rank: Array
    condition: Array
    logdet: Array
    indefinite: Array

    @property
    def matrix(self) -> Array:
        """A⁻¹, the pseudo-inverse in units of D; shape ``(n, n)``."""
        return jnp.matmul(self.root.T, self.root, precision=HIGHEST)


@compiled
def inverse_gram(J: Array) -> tuple[Array, Array]:
    """(JᵀJ)⁻¹ by the singular values of J over the lengths of its columns, and the rank of J.

    See :func:`gram_inverse`, which also says how well it is determined.

    Args:
      J: Jacobian of the residuals, shape ``(m, n)``.

    Returns:
      The matrix, shape ``(n, n)``, and the rank, int32. Cost: O(m n²).

    Example:
      >>> inverse, rank = inverse_gram(jnp.array([[2.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
      >>> [round(float(value), 4) for value in jnp.diag(inverse)], int(rank)
      ([0.25, 0.0625], 2)
    """
    chex.assert_rank(J, 2)
    found = gram_inverse(J, jnp.ones(J.shape[1], bool))
    return found.matrix, found.rank


@compiled
def gram_inverse(J: Array, free: Array) -> InverseCurvature:
    """The inverse of JᵀJ over the free parameters, by singular values.

        J = U diag(σ) Vᵀ D,    (JᵀJ)⁻¹ = D⁻¹ V diag(σ⁻²) Vᵀ D⁻¹

    D are the lengths of the columns. Scaled first, columns in different units cost no digits, and
    no square of J is formed. A σ of at most max(m, n) eps times the largest counts as 0.

    Args:
      J: Jacobian of the residuals, shape ``(m, n)``.
      free: the free parameters, boolean, shape ``(n,)``.

    Returns:
      An :class:`InverseCurvature`. Cost: O(m n²).

    Example:
      >>> J = jnp.array([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
      >>> found = gram_inverse(J, jnp.ones(3, bool))
      >>> int(found.rank), round(float(found.matrix[2, 2]), 3), (found.undetermined != 0).tolist()
      (2, 0.111, [[True, True, False], [True, True, False], [False, False, False]])

    References:
      Björck, Numerical Methods for Least Squares Problems, 1996, section 2.8.
    """
    chex.assert_rank([J, free], [2, 1])
    held = jnp.diag(jnp.where(free, 0, 1).astype(J.dtype))
    J = jnp.concatenate([jnp.where(free[None], J, 0), held])
    lengths = jnp.sqrt(jnp.sum(J**2, axis=0))
    D = jnp.where(lengths > 0, lengths, 1)
    _, sigma, Vt = jnp.linalg.svd(J / D[None], full_matrices=False)
    rows = J.shape[0] - J.shape[1]
    counts = sigma > max(rows, J.shape[1]) * eps(J.dtype) * sigma[0]
    return _inverse(sigma, Vt, counts, D, free)._replace(indefinite=jnp.zeros((), bool))


@compiled
def hessian_inverse(H: Array, free: Array) -> InverseCurvature:
    """The inverse of a symmetric matrix over the free parameters, by eigenvalues.

        H = D V diag(λ) Vᵀ D,    H⁻¹ = D⁻¹ V diag(λ⁻¹) Vᵀ D⁻¹,    D = √|diag H|

    over the directions with a λ of more than 10 n eps times the largest.

    Args:
      H: Hessian, shape ``(n, n)``, symmetric.
      free: the free parameters, boolean, shape ``(n,)``.

    Returns:
      An :class:`InverseCurvature`. Cost: O(n³).

    Example:
      >>> found = hessian_inverse(jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.ones(2, bool))
      >>> round(float(found.matrix[0, 0]), 3), round(float(found.condition), 3)
      (0.667, 3.0)
      >>> saddle = hessian_inverse(jnp.diag(jnp.array([1.0, -4.0])), jnp.ones(2, bool))
      >>> bool(saddle.indefinite), int(saddle.rank), saddle.undetermined.tolist()
      (True, 1, [[0.0, 0.0], [0.0, 0.25]])

    References:
      Golub & Van Loan, Matrix Computations, 4th ed., 2013, section 5.5.2, for the pseudo-inverse.
    """
    chex.assert_rank([H, free], [2, 1])
    size = jnp.sqrt(jnp.abs(jnp.diagonal(H)))
    D = jnp.where(free & (size > 0), size, 1)
    both = free[:, None] & free[None]
    scaled = jnp.where(both, H / D[:, None] / D[None], jnp.eye(free.size, dtype=H.dtype))
    scaled = jnp.where(both | ~(free[:, None] | free[None]), scaled, 0)
    values, V = jnp.linalg.eigh(0.5 * (scaled + scaled.T))
    tolerance = ROUNDING * free.size * eps(H.dtype) * jnp.max(jnp.abs(values))
    counts = values > tolerance
    roots = jnp.sqrt(jnp.where(counts, values, 0))
    found = _inverse(roots, V.T, counts, D, free)
    return found._replace(indefinite=values[0] < -tolerance)


def _inverse(sigma: Array, Vt: Array, counts: Array, D: Array, free: Array) -> InverseCurvature:
    """The inverse from singular values and directions of a root over D."""
    kept = free.astype(Vt.dtype)
    W = safe_divide(Vt, sigma[:, None], counts[:, None]) * (kept / D)[None]
    others = jnp.where(counts[:, None], 0, Vt) * kept[None]
    P = jnp.matmul(others.T, others, precision=HIGHEST)
    touched = jnp.diagonal(P) > eps(P.dtype)
    Q = jnp.where(touched[:, None] & touched[None], P / D[:, None] / D[None], 0)
    full = jnp.all(counts)
    inside = jnp.where(counts, sigma, 1)
    largest, least = jnp.max(sigma), jnp.min(inside)
    logdet = -2 * (jnp.sum(jnp.log(inside)) + jnp.sum(jnp.log(D) * kept))
    rank = jnp.sum(counts, dtype=jnp.int32) - jnp.sum(~free, dtype=jnp.int32)
    return InverseCurvature(
        root=W,
        undetermined=Q,
        rank=rank,
        condition=jnp.where(full, largest / least, jnp.inf) ** 2,
        logdet=jnp.where(full, logdet, jnp.nan),
        indefinite=jnp.zeros((), bool),
    )


@compiled
def sandwich(A_inv: Array, J: Array, psi: Array) -> Array:
    """A⁻¹ (Σ ψᵢ² JᵢᵀJᵢ) A⁻¹: the covariance of an estimate whose residuals differ in size.

    For squares ψ are the residuals and A = JᵀJ; for a robust loss they are its derivative, and
    A = Jᵀ diag(ψ') J.

    Args:
      A_inv: inverse of A, shape ``(n, n)``.
      J: Jacobian of the residuals, shape ``(m, n)``.
      psi: shape ``(m,)``.

    Returns:
      The matrix, shape ``(n, n)``. Cost: O(m n²).

    Example:
      >>> J, r = jnp.ones((4, 1)), jnp.array([1.0, -1.0, 2.0, -2.0])
      >>> sandwich(jnp.array([[0.25]]), J, r).tolist()
      [[0.625]]

    References:
      White, Econometrica 48 (1980), for squares; Huber, Robust Statistics, 1981, section 6.3.
    """
    chex.assert_rank([A_inv, J, psi], [2, 2, 1])
    rows = psi[:, None] * dot(J, A_inv)
    return dot(rows.T, rows)


@compiled
def profiled_square(J: Array, r: Array, i: Array, free: Array) -> Array:
    """‖(I − P) r‖², P the projector onto the columns of J of the free parameters but the i-th.

    That is the least sum of squares that the other parameters can reach, in the linearised model.

    Args:
      J: Jacobian of the residuals, shape ``(m, n)``.
      r: residuals, shape ``(m,)``.
      i: index of the parameter that is kept where it is, shape ``()``.
      free: the free parameters, boolean, shape ``(n,)``.

    Returns:
      Shape ``()``. Cost: O(m n²), one QR factorisation without its Q.

    Example:
      >>> J = jnp.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
      >>> round(float(profiled_square(J, jnp.array([3.0, 2.0, 1.0]), 1, jnp.ones(2, bool))), 3)
      5.0

    References:
      Bates & Watts, Nonlinear Regression Analysis, 1988, section 6.1, for the exact profile.
    """
    chex.assert_rank([J, r, free], [2, 1, 1])
    others = free & (jnp.arange(free.size) != i)
    columns = jnp.where(others[None], J, 0)[:, jnp.argsort(~others)]
    lengths = jnp.sqrt(jnp.sum(columns**2, axis=0))
    columns = columns / jnp.where(lengths > 0, lengths, 1)[None]
    R = jnp.linalg.qr(jnp.concatenate([columns, r[:, None]], axis=1), mode="r")
    rest = jnp.arange(R.shape[0]) >= jnp.sum(others)
    return jnp.sum(jnp.where(rest, R[:, -1] ** 2, 0))
