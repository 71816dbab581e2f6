"""Corrections of a matrix, or of an inverse, by given vectors."""

import jax.numpy as jnp

from jaxqn._typing import Array, compiled
from jaxqn.linalg import dot, eps, safe_divide

__all__ = ["rank_one", "rank_two", "sherman_morrison"]


@compiled
def rank_one(H: Array, u: Array, c: Array | float = 1.0) -> Array:
    """H + c u uᵀ.

    Args:
      H: matrix, shape ``(n, n)``.
      u: vector, shape ``(n,)``.
      c: scalar.

    Returns:
      The corrected matrix, shape ``(n, n)``. Cost: one pass over H.

    Example:
      >>> rank_one(jnp.eye(2), jnp.array([1.0, 2.0])).tolist()
      [[2.0, 2.0], [2.0, 5.0]]
    """
    return H + jnp.outer(c * u, u)


@compiled
def rank_two(H: Array, u: Array, v: Array) -> Array:
    """H + u vᵀ + v uᵀ.

    Args:
      H: matrix, shape ``(n, n)``.
      u: vector, shape ``(n,)``.
      v: vector, shape ``(n,)``.

    Returns:
      The corrected matrix, shape ``(n, n)``. Cost: one pass over H.

    Example:
      >>> rank_two(jnp.zeros((2, 2)), jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])).tolist()
      [[0.0, 1.0], [1.0, 0.0]]
    """
    return H + (jnp.outer(u, v) + jnp.outer(v, u))


@compiled
def sherman_morrison(A_inv: Array, u: Array, v: Array, *, rtol: float | None = None) -> Array:
    """Inverse of A + u vᵀ from the inverse of A.

        (A + u vᵀ)⁻¹ = A⁻¹ − A⁻¹u vᵀA⁻¹ / (1 + vᵀA⁻¹u)

    Returns ``A_inv`` unchanged where the denominator vanishes, |1 + vᵀA⁻¹u| ≤ rtol (1 + |vᵀA⁻¹u|),
    since A + u vᵀ is then singular.

    Args:
      A_inv: inverse matrix, shape ``(n, n)``, symmetric or not.
      u: left vector of the perturbation, shape ``(n,)``.
      v: right vector of the perturbation, shape ``(n,)``.
      rtol: relative size below which the denominator counts as zero; default √eps.

    Returns:
      The inverse of the perturbed matrix, shape ``(n, n)``. Cost: two products and one pass, O(n²).

    Example:
      >>> sherman_morrison(jnp.eye(2), jnp.array([1.0, 0.0]), jnp.array([1.0, 0.0])).tolist()
      [[0.5, 0.0], [0.0, 1.0]]

    References:
      Nocedal & Wright, 2006, eq. A.27.
    """
    left, right = dot(A_inv, u), dot(v, A_inv)
    vAu = dot(v, left)
    rtol = eps(A_inv.dtype) ** 0.5 if rtol is None else rtol
    usable = jnp.abs(1 + vAu) > rtol * (1 + jnp.abs(vAu))
    c = safe_divide(jnp.ones_like(vAu), 1 + vAu, usable)
    return A_inv - jnp.outer(c * jnp.where(usable, left, 0), jnp.where(usable, right, 0))
