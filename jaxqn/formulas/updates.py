"""Quasi-Newton updates of the inverse Hessian: ``(H, s, y) -> H``.

Notation: s = x₊ − x (step), y = g₊ − g (gradient change), H ≈ (∇²f)⁻¹, B = H⁻¹, w = H y. Every
quasi-Newton update maps y to s (the secant equation H₊ y = s), costs one product w and one pass
over H, and leaves H unchanged, bit for bit, when the pair is unusable: a zero pair, too little
curvature, a NaN, or coefficients out of range. Every update is compiled once per shape and dtype.

The same functions update a Hessian B. Swapping s and y gives the dual: ``dfp_update(B, y, s)`` is
the BFGS update of B, ``bfgs_update(B, y, s)`` is DFP's, and SR1 is its own dual (Nocedal & Wright,
section 6.1).
"""

import functools

import chex
import jax.numpy as jnp

from jaxqn._typing import Array, compiled
from jaxqn.formulas.low_rank import rank_one, rank_two, sherman_morrison
from jaxqn.formulas.rules import (
    Pair,
    Rule,
    bfgs_rule,
    broyden_class,
    correction_vectors,
    dfp_rule,
    osbfgs_rule,
    sr1_rule,
    ssbfgs_rule,
    ssbroyden_rule,
)
from jaxqn.linalg import dot

__all__ = [
    "bfgs_update",
    "broyden_update",
    "dfp_update",
    "osbfgs_update",
    "rank_one",
    "rank_two",
    "sherman_morrison",
    "sr1_update",
    "ssbfgs_update",
    "ssbroyden_update",
]


def _update(rule: Rule, H: Array, s: Array, y: Array, sBs: Array | float | None = None) -> Array:
    """The correction of a matrix that a rule makes of a pair: one product, one pass over H."""
    chex.assert_rank(s, 1)
    chex.assert_equal_shape([s, y])
    chex.assert_shape(H, (s.shape[0], s.shape[0]))
    w = dot(H, y)
    unknown = jnp.full((), jnp.nan, H.dtype)
    pair = Pair(
        s=s,
        y=y,
        w=w,
        ss=dot(s, s),
        sy=dot(s, y),
        yy=dot(y, y),
        yw=dot(y, w),
        sBs=unknown if sBs is None else jnp.asarray(sBs, H.dtype),
    )
    c = rule(pair)
    p, q = correction_vectors(s, w, c)
    return c.scale * H + (jnp.outer(c.alpha * p, p) + jnp.outer(c.beta * q, q))


@compiled
def bfgs_update(H: Array, s: Array, y: Array) -> Array:
    """BFGS update of an inverse Hessian.

        H₊ = (I − rho s yᵀ) H (I − rho y sᵀ) + rho s sᵀ,   rho = 1/(sᵀy),

    expanded so that it costs one product and one pass. Leaves H unchanged unless
    sᵀy > 10 eps ‖s‖ ‖y‖; keeps a positive definite H positive definite.

    Args:
      H: inverse Hessian approximation, shape ``(n, n)``, symmetric.
      s: step, new point minus old, shape ``(n,)``.
      y: gradient change, new minus old, shape ``(n,)``.

    Returns:
      The updated inverse Hessian, shape ``(n, n)``. Cost: O(n²).

    Example:
      >>> s, y = jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])
      >>> bfgs_update(jnp.eye(2), s, y).round(6).tolist()
      [[0.5, 0.0], [0.0, 1.0]]

    References:
      Nocedal & Wright, 2006, eq. 6.17.
    """
    return _update(bfgs_rule, H, s, y)


@compiled
def dfp_update(H: Array, s: Array, y: Array) -> Array:
    """DFP update of an inverse Hessian.

        H₊ = H − (H y)(H y)ᵀ/(yᵀH y) + s sᵀ/(sᵀy).

    Refuses the pairs that :func:`bfgs_update` refuses.

    Args:
      H: inverse Hessian approximation, shape ``(n, n)``, symmetric.
      s: step, new point minus old, shape ``(n,)``.
      y: gradient change, new minus old, shape ``(n,)``.

    Returns:
      The updated inverse Hessian, shape ``(n, n)``. Cost: O(n²).

    Example:
      >>> s, y = jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])
      >>> dfp_update(jnp.eye(2), s, y).tolist()
      [[0.5, 0.0], [0.0, 1.0]]

    References:
      Nocedal & Wright, 2006, eq. 6.15.
    """
    return _update(dfp_rule, H, s, y)


@compiled
def sr1_update(H: Array, s: Array, y: Array) -> Array:
    """Symmetric rank-one update of an inverse Hessian.

        H₊ = H + v vᵀ/(vᵀy),   v = s − H y,

    the only symmetric rank-one correction that maps y to s. Leaves H unchanged when
    |vᵀy| ≤ √eps ‖v‖ ‖y‖. The result may be indefinite. On a quadratic, n independent steps
    recover the inverse Hessian exactly.

    Args:
      H: inverse Hessian approximation, shape ``(n, n)``, symmetric.
      s: step, new point minus old, shape ``(n,)``.
      y: gradient change, new minus old, shape ``(n,)``.

    Returns:
      The updated inverse Hessian, shape ``(n, n)``. Cost: O(n²).

    Example:
      >>> s, y = jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])
      >>> sr1_update(jnp.eye(2), s, y).tolist()
      [[0.5, 0.0], [0.0, 1.0]]

    References:
      Nocedal & Wright, 2006, eq. 6.25; its safeguard is eq. 6.26.
    """
    return _update(sr1_rule, H, s, y)


@compiled
def broyden_update(H: Array, s: Array, y: Array, *, phi: Array | float) -> Array:
    """Update from the Broyden class of inverse Hessians.

        H₊ = H − w wᵀ/(yᵀw) + rho s sᵀ + phi v vᵀ,
        w = H y,   rho = 1/(sᵀy),   v = √(yᵀw) (rho s − w/(yᵀw)).

    phi = 1 is BFGS and phi = 0 is DFP. Positive definiteness is kept for phi in [0, 1] and for any
    phi above a negative bound that depends on the pair. Refuses the pairs that
    :func:`bfgs_update` refuses.

    Args:
      H: inverse Hessian approximation, shape ``(n, n)``, symmetric.
      s: step, new point minus old, shape ``(n,)``.
      y: gradient change, new minus old, shape ``(n,)``.
      phi: member of the class, scalar.

    Returns:
      The updated inverse Hessian, shape ``(n, n)``. Cost: O(n²).

    Example:
      >>> s, y = jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])
      >>> broyden_update(jnp.eye(2), s, y, phi=0.5).tolist()
      [[0.5, 0.0], [0.0, 1.0]]

    References:
      Nocedal & Wright, 2006, section 6.3, eq. 6.32, in inverse form by duality.
    """
    return _update(functools.partial(broyden_class, phi=phi), H, s, y)


@compiled
def ssbfgs_update(H: Array, s: Array, y: Array, *, sBs: Array | float | None = None) -> Array:
    """Self-scaled BFGS update of an inverse Hessian.

        H₊ = (1/tau) [H − rho (s wᵀ + w sᵀ) + rho² (yᵀw) s sᵀ] + rho s sᵀ,
        tau = min(1, 1/b),   b = sᵀB s/(sᵀy),   w = H y,   rho = 1/(sᵀy):

    BFGS with the old matrix enlarged first where it underestimates the inverse along s. Refuses
    the pairs that :func:`bfgs_update` refuses.

    Args:
      H: inverse Hessian approximation, shape ``(n, n)``, symmetric positive definite.
      s: step, new point minus old, shape ``(n,)``.
      y: gradient change, new minus old, shape ``(n,)``.
      sBs: sᵀB s with B = H⁻¹. After a quasi-Newton step s = −alpha H g it equals −alpha sᵀg, which
        costs nothing. When omitted, a linear system in H is solved for it.

    Returns:
      The updated inverse Hessian, shape ``(n, n)``. Cost: O(n²), or O(n³) when ``sBs`` is omitted.

    Example:
      >>> s, y = jnp.array([1.0, 0.0]), jnp.array([0.5, 0.0])
      >>> ssbfgs_update(jnp.eye(2), s, y).tolist()  # b = 2, so H is doubled across s
      [[2.0, 0.0], [0.0, 2.0]]

    References:
      Oren & Luenberger, Management Science 20 (1974); Al-Baali, Comput. Optim. Appl. 9 (1998);
      as used by Urbán, Stefanou & Pons, J. Comput. Phys. 523 (2025).
    """
    return _update(ssbfgs_rule, H, s, y, _sBs(H, s) if sBs is None else sBs)


@compiled
def osbfgs_update(H: Array, s: Array, y: Array, *, sBs: Array | float | None = None) -> Array:
    """BFGS update of an inverse Hessian with Oren and Spedicato's test for self-scaling.

    The update is :func:`ssbfgs_update` where h < b, with b = sᵀB s/(sᵀy) and h = yᵀH y/(sᵀy), where
    H is too small on balance, and :func:`bfgs_update` elsewhere. √(h/b) is the scaling of H that
    minimises the condition number of the corrected matrix (Oren & Spedicato). Where it exceeds 1,
    enlarging H along with one direction would spoil the others. Refuses the pairs that
    :func:`bfgs_update` refuses.

    Args:
      H: inverse Hessian approximation, shape ``(n, n)``, symmetric positive definite.
      s: step, new point minus old, shape ``(n,)``.
      y: gradient change, new minus old, shape ``(n,)``.
      sBs: sᵀB s with B = H⁻¹; see :func:`ssbfgs_update`.

    Returns:
      The updated inverse Hessian, shape ``(n, n)``. Cost: O(n²), or O(n³) when ``sBs`` is omitted.

    Example:
      >>> s, y = jnp.array([1.0, 0.0]), jnp.array([0.5, 0.0])
      >>> osbfgs_update(jnp.eye(2), s, y).tolist()  # h = 0.5 < b = 2
      [[2.0, 0.0], [0.0, 2.0]]

    References:
      Oren & Spedicato, Math. Program. 10 (1976), for the factor; Al-Baali, Comput. Optim. Appl. 9
      (1998), for scaling in some iterations only.
    """
    return _update(osbfgs_rule, H, s, y, _sBs(H, s) if sBs is None else sBs)


@compiled
def ssbroyden_update(H: Array, s: Array, y: Array, *, sBs: Array | float | None = None) -> Array:
    """Self-scaled Broyden update of an inverse Hessian, with computed scaling and parameter.

        H₊ = (1/tau) [H − w wᵀ/(yᵀw) + phi v vᵀ] + rho s sᵀ,

    w, rho and v as in :func:`broyden_update`. With b = sᵀB s/(sᵀy), h = yᵀw/(sᵀy), a = h b − 1:
    theta = max(theta₋, min(theta₊, (1 − b)/b)), where theta₋ = (r − 1)/a, theta₊ = 1/r and
    r = min(1, h (1 − √(a/(a + 1)))); phi = (1 − theta)/sigma with sigma = 1 + a theta; tau is
    min(1, 1/b) times min(sigma^(−1/(n−1)), 1/theta) for theta > 0, and otherwise
    min(min(1, 1/b) sigma^(−1/(n−1)), sigma). Refuses the pairs that :func:`bfgs_update` refuses.

    Args:
      H: inverse Hessian approximation, shape ``(n, n)``, symmetric positive definite.
      s: step, new point minus old, shape ``(n,)``.
      y: gradient change, new minus old, shape ``(n,)``.
      sBs: sᵀB s with B = H⁻¹; see :func:`ssbfgs_update`.

    Returns:
      The updated inverse Hessian, shape ``(n, n)``. Cost: O(n²), or O(n³) when ``sBs`` is omitted.

    Example:
      >>> s, y = jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])
      >>> H = ssbroyden_update(jnp.eye(2), s, y)
      >>> bool(jnp.allclose(H @ y, s))
      True

    References:
      Al-Baali & Khalfan, Optim. Methods Softw. 20 (2005); Urbán, Stefanou & Pons, J. Comput.
      Phys. 523 (2025), arXiv:2405.04230.
    """
    return _update(ssbroyden_rule, H, s, y, _sBs(H, s) if sBs is None else sBs)


def _sBs(H: Array, s: Array) -> Array:
    """sᵀH⁻¹s by a linear solve, for callers who do not know it."""
    return dot(s, jnp.linalg.solve(H, s))
