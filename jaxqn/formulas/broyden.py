"""Broyden's updates of an inverse Jacobian: ``(H, s, y) -> H``, by Sherman and Morrison.

Notation: F(x) = 0 is to be solved, J ≈ F'(x), H = J⁻¹; s = x₊ − x (step), y = F₊ − F (change of
F). H is not symmetric. Both updates meet the secant equation H₊ y = s and correct by rank one:

    good   J₊ is the nearest to J with J₊ s = y,   J₊ = J + (y − J s) sᵀ/(sᵀs)
    bad    H₊ is the nearest to H with H₊ y = s,   H₊ = H + (s − H y) yᵀ/(yᵀy)

in the norm of Frobenius. The names are Broyden's; which is better depends on the problem.
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from jaxqn._typing import Array, compiled
from jaxqn.formulas.curvature import in_range
from jaxqn.linalg import dot, eps, inner, safe_divide

__all__ = [
    "JacobianCorrection",
    "broyden_bad_update",
    "broyden_good_update",
    "jacobian_correction",
]


class JacobianCorrection(NamedTuple):
    """H₊ = H + u vᵀ with J₊ = J + p qᵀ, its inverse; zero vectors where the pair is refused.

    Attributes:
      accepted: whether the pair is used.
      u: shape ``(n,)``, also for the others.
      v: likewise.
      p: likewise.
      q: likewise.
    """

    accepted: Array
    u: Array
    v: Array
    p: Array
    q: Array


def jacobian_correction(
    s: Array, y: Array, Hy: Array, Hs: Array, Js: Array, Jy: Array, *, bad: bool
) -> JacobianCorrection:
    """Broyden's corrections of a Jacobian and of its inverse, each by rank one.

        good   H₊ = H + (s − H y)(Hᵀs)ᵀ/(sᵀH y),   J₊ = J + (y − J s) sᵀ/(sᵀs)
        bad    H₊ = H + (s − H y) yᵀ/(yᵀy),        J₊ = J + (y − J s)(Jᵀy)ᵀ/(yᵀJ s)

    Args:
      s: step, shape ``(n,)``.
      y: change of F, shape ``(n,)``.
      Hy: H y.
      Hs: Hᵀs; read by the good update only.
      Js: J s.
      Jy: Jᵀy; read by the bad update only.
      bad: which update.

    Returns:
      A :class:`JacobianCorrection`. A pair is refused where an entry is not finite, where squares
      leave the range of the dtype, and where the corrected matrix would be singular to rounding,
      |sᵀH y| ≤ 10 eps ‖s‖ ‖H y‖ for the good update and |yᵀJ s| ≤ 10 eps ‖y‖ ‖J s‖ for the bad one.
    """
    image, turned = (Js, Jy) if bad else (Hy, Hs)
    pivot = y if bad else s
    ss, yy, cross, images = inner((s, s), (y, y), (pivot, image), (image, image))
    least = 10 * eps(cross.dtype) * jnp.sqrt(jnp.where(bad, yy, ss)) * jnp.sqrt(images)
    usable = in_range(ss, yy) & jnp.isfinite(images) & (jnp.abs(cross) > least)
    u, p = s - Hy, y - Js
    own = safe_divide(pivot, jnp.where(bad, yy, ss), usable)
    other = safe_divide(turned, cross, usable)
    v, q = (own, other) if bad else (other, own)
    finite = [jnp.all(jnp.isfinite(vector)) for vector in (u, v, p, q)]
    usable &= jnp.all(jnp.stack(finite))
    return JacobianCorrection(usable, *(jnp.where(usable, vector, 0) for vector in (u, v, p, q)))


@compiled
def broyden_good_update(H: Array, s: Array, y: Array) -> Array:
    """Broyden's good update of an inverse Jacobian.

        H₊ = H + (s − H y) sᵀH/(sᵀH y),

    which is Sherman and Morrison's formula on J₊ = J + (y − J s) sᵀ/(sᵀs), the least change of
    J = H⁻¹ in the norm of Frobenius with J₊ s = y. Leaves H unchanged, bit for bit, for a zero pair
    or one that is not finite, and where J₊ would be singular,
    |sᵀH y| ≤ 10 eps ‖s‖ ‖H y‖.

    Args:
      H: inverse Jacobian, shape ``(n, n)``, not symmetric.
      s: step, new point minus old, shape ``(n,)``.
      y: change of F, new minus old, shape ``(n,)``.

    Returns:
      The updated inverse Jacobian, shape ``(n, n)``. Cost: two products and one pass, O(n²).

    Example:
      >>> s, y = jnp.array([1.0, 0.0]), jnp.array([2.0, 2.0])
      >>> broyden_good_update(jnp.eye(2), s, y).tolist()
      [[0.5, 0.0], [-1.0, 1.0]]

    References:
      Broyden, Math. Comp. 19 (1965), method 1; Dennis & Schnabel, 1983, eq. 8.3.1; Nocedal &
      Wright, 2006, section 11.1.
    """
    _check(H, s, y)
    Hy, Hs = dot(H, y), dot(s, H)
    ss, yy, sHy, HyHy = inner((s, s), (y, y), (s, Hy), (Hy, Hy))
    least = 10 * eps(sHy.dtype) * jnp.sqrt(ss) * jnp.sqrt(HyHy)
    usable = in_range(ss, yy) & jnp.isfinite(HyHy) & (jnp.abs(sHy) > least)
    return _corrected(H, s - Hy, safe_divide(Hs, sHy, usable), usable)


@compiled
def broyden_bad_update(H: Array, s: Array, y: Array) -> Array:
    """Broyden's bad update of an inverse Jacobian.

        H₊ = H + (s − H y) yᵀ/(yᵀy),

    the least change of H in the norm of Frobenius with H₊ y = s. Leaves H unchanged, bit for bit,
    for a zero pair or one that is not finite.

    Args:
      H: inverse Jacobian, shape ``(n, n)``, not symmetric.
      s: step, new point minus old, shape ``(n,)``.
      y: change of F, new minus old, shape ``(n,)``.

    Returns:
      The updated inverse Jacobian, shape ``(n, n)``. Cost: one product and one pass, O(n²).

    Example:
      >>> s, y = jnp.array([1.0, 0.0]), jnp.array([2.0, 2.0])
      >>> broyden_bad_update(jnp.eye(2), s, y).tolist()
      [[0.75, -0.25], [-0.5, 0.5]]

    References:
      Broyden, Math. Comp. 19 (1965), method 2; Dennis & Schnabel, 1983, eq. 8.4.2.
    """
    _check(H, s, y)
    Hy = dot(H, y)
    ss, yy = inner((s, s), (y, y))
    usable = in_range(ss, yy)
    return _corrected(H, s - Hy, safe_divide(y, yy, usable), usable)


def _check(H: Array, s: Array, y: Array) -> None:
    chex.assert_rank(s, 1)
    chex.assert_equal_shape([s, y])
    chex.assert_shape(H, (s.shape[0], s.shape[0]))


def _corrected(H: Array, u: Array, v: Array, usable: Array) -> Array:
    """H + u vᵀ where the pair is usable and the vectors are finite, else H."""
    usable &= jnp.all(jnp.isfinite(u)) & jnp.all(jnp.isfinite(v))
    return jnp.where(usable, H + jnp.outer(u, v), H)
