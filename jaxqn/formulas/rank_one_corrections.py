"""Rank-one corrections of a Hessian or of its inverse along a given direction."""

import jax
import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.formulas.arguments import floating, square_matrix
from jaxqn.formulas.updates import sr1_update
from jaxqn.linalg import dot, eps, magnitude, safe_divide

__all__ = ["rank_one_correction", "wedderburn"]


def rank_one_correction(H_inv: Array, e: Array, He: Array) -> Array:
    """Correct an inverse along a direction e, so that it maps H e to e exactly.

        H_inv + v vᵀ/(vᵀH e),   v = e − H_inv (H e),

    the only symmetric rank-one correction with that property: :func:`jaxqn.sr1_update` with s = e
    and y = H e, at its cost. One Hessian-vector product gives H e, by ``jax.jvp`` of the gradient
    or ``jaxqn.derivatives.hvp``; H is never formed. Along n independent directions, random ones or
    eigenvectors, none refused, H_inv becomes H⁻¹ (Nocedal & Wright, 2006, theorem 6.1).

    Leaves H_inv unchanged when |vᵀH e| ≤ √eps ‖v‖ ‖H e‖: where H_inv is exact along e already,
    where H e = 0, where an entry is not finite. The result may be indefinite, and has no bound.

    Example:
      >>> fun = lambda x: x[0] ** 2 + x[0] * x[1] + x[1] ** 2  # Hessian [[2, 1], [1, 2]]
      >>> x, e = jnp.zeros(2), jnp.array([1.0, 0.0])
      >>> _, He = jax.jvp(jax.grad(fun), (x,), (e,))
      >>> H_inv = rank_one_correction(jnp.eye(2), e, He)
      >>> bool(jnp.allclose(H_inv @ He, e, atol=1e-6))
      True
    """
    return sr1_update(H_inv, e, He)


def wedderburn(H: Array, e: Array) -> Array:
    """Take the direction e out of a symmetric matrix, lowering its rank by one.

        H − (H e)(H e)ᵀ/(eᵀH e)

    maps e to 0, and every vector that H maps to 0. Leaves H unchanged when |eᵀH e| ≤ √eps ‖e‖ ‖H e‖
    and where an entry of e or H e is not finite.

    Args:
      H: matrix, shape ``(n, n)``, symmetric.
      e: direction, shape ``(n,)``, of any length.

    Returns:
      The reduced matrix, shape ``(n, n)``. Cost: one product and one pass over H, O(n²).

    Example:
      >>> wedderburn(jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([1.0, 0.0])).tolist()
      [[0.0, 0.0], [0.0, 1.5]]

    References:
      Wedderburn, Lectures on Matrices, 1934; Chu, Funderlic & Golub, SIAM Rev. 37 (1995).
    """
    H, e = square_matrix("H", H), floating("e", e)
    if e.shape != H.shape[:1]:
        raise ValueError(f"e must have shape {H.shape[:1]} to go with H, but it has {e.shape}")
    return _wedderburn(H, e)


@jax.jit
def _wedderburn(H: Array, e: Array) -> Array:
    e = e / magnitude(e)
    He = dot(H, e)
    unit = magnitude(He)
    w = He / unit  # no square of an entry of H is formed
    ew = dot(e, w)
    usable = jnp.abs(ew) > eps(H.dtype) ** 0.5 * jnp.sqrt(dot(e, e) * dot(w, w))
    w = jnp.where(usable, w, 0)
    return H - jnp.outer(unit * safe_divide(w, ew, usable), w)
