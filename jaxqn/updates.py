"""Rank-one and rank-two corrections of the inverse Hessian: ``(H, s, y) -> H``.

Every update here maps y to s (the secant equation H₊ y = s), costs one product w = H y and one
pass over H, and leaves H exactly as it is when the pair is unusable (a zero pair, too little
curvature, a NaN). They all have one shape,

    H₊ = scale · H + alpha · p pᵀ + beta · q qᵀ,     p = s − mu w,   q = w − nu s,

so a method is a *rule*: a function from the scalars of a pair to ``(scale, alpha, mu, beta, nu)``.
The rules below are the textbook; :func:`correct` is the only place where H is touched.

Direct Hessians need no second family. With B = H⁻¹, swapping s and y gives the dual:
``dfp_update(B, y, s)`` is the BFGS update of B, ``bfgs_update(B, y, s)`` is DFP's, and SR1 is its
own dual (Nocedal & Wright, section 6.1).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxqn._numerics import dot, eps, safe_divide
from jaxqn._typing import Array
from jaxqn.curvature import has_curvature

__all__ = [
    "Correction",
    "Pair",
    "Rule",
    "bfgs_rule",
    "bfgs_update",
    "broyden_rule",
    "broyden_update",
    "dfp_rule",
    "dfp_update",
    "osbfgs_rule",
    "osbfgs_update",
    "rank_one",
    "rank_two",
    "sherman_morrison",
    "sr1_rule",
    "sr1_update",
    "ssbfgs_rule",
    "ssbfgs_update",
    "ssbroyden_rule",
    "ssbroyden_update",
]


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


def sherman_morrison(A_inv: Array, u: Array, v: Array, *, rtol: float | None = None) -> Array:
    """Inverse of A + u vᵀ from the inverse of A.

        (A + u vᵀ)⁻¹ = A⁻¹ − A⁻¹u vᵀA⁻¹ / (1 + vᵀA⁻¹u)

    Returns ``A_inv`` unchanged where the denominator vanishes, |1 + vᵀA⁻¹u| ≤ rtol (1 + |vᵀA⁻¹u|):
    there A + u vᵀ is singular and has no inverse.

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


class Pair(NamedTuple):
    """What a rule sees of a pair: two vectors, one product, and their inner products.

    Attributes:
      s: step, shape ``(n,)``.
      y: gradient change, shape ``(n,)``.
      w: H y, shape ``(n,)``.
      ss: sᵀs.
      sy: sᵀy.
      yy: yᵀy.
      yw: yᵀH y.
      sBs: sᵀB s, or NaN where it is not known (a step that is not along −H g); the self-scaled
        rules then fall back to their unscaled member.
      count: pairs absorbed before this one, int32.
    """

    s: Array
    y: Array
    w: Array
    ss: Array
    sy: Array
    yy: Array
    yw: Array
    sBs: Array
    count: Array


class Correction(NamedTuple):
    """H₊ = scale H + alpha p pᵀ + beta q qᵀ with p = s − mu w, q = w − nu s.

    Attributes:
      accepted: whether the pair is used; otherwise scale = 1 and alpha = beta = 0.
      scale: factor of the old matrix.
      alpha: weight of p pᵀ.
      mu: share of w taken out of s in p.
      beta: weight of q qᵀ.
      nu: share of s taken out of w in q.
    """

    accepted: Array
    scale: Array
    alpha: Array
    mu: Array
    beta: Array
    nu: Array


Rule = Callable[[Pair], Correction]


def _broyden_class(pair: Pair, phi: Array | float, scale: Array | float = 1.0) -> Correction:
    """The self-scaled Broyden class, every member of which this module builds on.

        H₊ = scale [H − w wᵀ/(yᵀw) + phi v vᵀ] + rho s sᵀ,
        v = √(yᵀw) (rho s − w/(yᵀw)),   rho = 1/(sᵀy),   h = yᵀw/(sᵀy),   scale = 1/tau.

    In the span of s and w that is a 2×2 quadratic form; the square is completed on its s entry
    when phi > 1/2 (BFGS: phi = 1) and on its w entry otherwise (DFP: phi = 0), so that neither
    pivot can vanish.
    """
    accepted = has_curvature(pair.ss, pair.sy, pair.yy) & (pair.yw > 0) & jnp.isfinite(pair.yw)
    one, zero = jnp.ones_like(pair.sy), jnp.zeros_like(pair.sy)
    rho = safe_divide(one, pair.sy, accepted)
    yw = jnp.where(accepted, pair.yw, one)
    h = yw * rho
    scale = jnp.where(accepted, scale, one)
    near_bfgs = jnp.asarray(phi > 0.5)
    gap = jnp.where(near_bfgs, one, 1 - phi)  # 1 − phi, where it is a divisor
    mu = jnp.where(near_bfgs, phi * scale / jnp.where(near_bfgs, 1 + phi * h * scale, one), zero)
    nu = jnp.where(near_bfgs, zero, -phi * h / gap)
    alpha = rho * (1 + phi * h * scale / gap)
    beta = -scale * ((1 - phi) / yw + jnp.where(near_bfgs, phi * mu * rho, zero))
    return Correction(accepted, scale, alpha, mu, jnp.where(accepted, beta, zero), nu)


def bfgs_rule(pair: Pair) -> Correction:
    """BFGS: phi = 1. See :func:`bfgs_update`."""
    return _broyden_class(pair, phi=1.0)


def dfp_rule(pair: Pair) -> Correction:
    """DFP: phi = 0. See :func:`dfp_update`."""
    return _broyden_class(pair, phi=0.0)


def broyden_rule(phi: Array | float) -> Rule:
    """The Broyden class at a given phi. See :func:`broyden_update`."""
    return functools.partial(_broyden_class, phi=phi)


def sr1_rule(pair: Pair) -> Correction:
    """SR1: H + v vᵀ/(vᵀy), v = s − w. See :func:`sr1_update`."""
    v = pair.s - pair.w
    vy, vv = dot(v, pair.y), dot(v, v)
    floor = eps(vy.dtype) ** 0.5 * jnp.sqrt(vv) * jnp.sqrt(pair.yy)
    accepted = (jnp.abs(vy) > floor) & jnp.isfinite(floor) & jnp.isfinite(vy)
    one, zero = jnp.ones_like(vy), jnp.zeros_like(vy)
    return Correction(accepted, one, safe_divide(one, vy, accepted), one, zero, zero)


def _known_b(pair: Pair) -> tuple[Array, Array]:
    """b = sᵀB s/(sᵀy), and whether it is known; 1 where it is not, which means "do not scale"."""
    usable = pair.sy > 0
    known = (pair.sBs > 0) & jnp.isfinite(pair.sBs) & usable
    b = pair.sBs * safe_divide(jnp.ones_like(pair.sy), pair.sy, usable)
    return jnp.where(known, b, jnp.ones_like(b)), known


def ssbfgs_rule(pair: Pair) -> Correction:
    """Self-scaled BFGS: phi = 1, tau = min(1, 1/b). See :func:`ssbfgs_update`."""
    b, _ = _known_b(pair)
    return _broyden_class(pair, phi=1.0, scale=jnp.maximum(1, b))


def osbfgs_rule(pair: Pair) -> Correction:
    """Self-scaled BFGS with a switch: tau = min(1, 1/b) where h < b. See :func:`osbfgs_update`."""
    b, _ = _known_b(pair)
    too_small = pair.yw < b * pair.sy
    return _broyden_class(pair, phi=1.0, scale=jnp.where(too_small, jnp.maximum(1, b), 1.0))


def ssbroyden_rule(pair: Pair) -> Correction:
    """Self-scaled Broyden with the parameters of Al-Baali & Khalfan. See :func:`ssbroyden_update`."""
    b, known = _known_b(pair)
    n = pair.s.shape[0]
    h = safe_divide(pair.yw, pair.sy, known)
    tiny = eps(b.dtype)
    a = jnp.maximum(h * b - 1, tiny)  # ≥ 0 by Cauchy-Schwarz; the floor keeps the limits a → 0
    c = jnp.sqrt(a / (a + 1))
    r = jnp.clip(h * (1 - c), tiny, 1)
    theta = jnp.clip((1 - b) / b, (r - 1) / a, 1 / r)
    sigma = jnp.maximum(1 + a * theta, tiny)
    # From here on the reciprocal of tau.
    by_b, by_volume = jnp.maximum(1, b), sigma ** (1 / max(n - 1, 1))
    scale = jnp.where(
        theta > 0, by_b * jnp.maximum(by_volume, theta), jnp.maximum(by_b * by_volume, 1 / sigma)
    )
    one = jnp.ones_like(b)
    return _broyden_class(
        pair, phi=jnp.where(known, (1 - theta) / sigma, one), scale=jnp.where(known, scale, one)
    )


def correct(H: Array, s: Array, w: Array, c: Correction) -> Array:
    """Apply a correction to a matrix: one pass over H, exact when the pair was refused."""
    p, q = corners(s, w, c)
    return c.scale * H + (jnp.outer(c.alpha * p, p) + jnp.outer(c.beta * q, q))


def corners(s: Array, w: Array, c: Correction) -> tuple[Array, Array]:
    """The vectors p = s − mu w and q = w − nu s of a correction, zero when it was refused."""
    zero = jnp.zeros_like(s)
    return jnp.where(c.accepted, s - c.mu * w, zero), jnp.where(c.accepted, w - c.nu * s, zero)


def _update(rule: Rule, H: Array, s: Array, y: Array, sBs: Array | None = None) -> Array:
    """Run a rule on a matrix and a pair."""
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
        count=jnp.zeros((), jnp.int32),
    )
    return correct(H, s, w, rule(pair))


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
      >>> bfgs_update(jnp.eye(2), s, y).tolist()
      [[0.5, 0.0], [0.0, 1.0]]

    References:
      Nocedal & Wright, 2006, eq. 6.17.
    """
    return _update(bfgs_rule, H, s, y)


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
    return _update(broyden_rule(phi), H, s, y)


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


def osbfgs_update(H: Array, s: Array, y: Array, *, sBs: Array | float | None = None) -> Array:
    """Self-scaled BFGS update that enlarges H only where H is too small on balance.

    As :func:`ssbfgs_update` where h < b, with b = sᵀB s/(sᵀy) and h = yᵀH y/(sᵀy), and as
    :func:`bfgs_update` elsewhere. √(h/b) is the scaling of H that minimises the condition number of
    the corrected matrix (Oren & Spedicato); where it exceeds 1, enlarging H along with one
    direction would spoil the others. Refuses the pairs that :func:`bfgs_update` refuses.

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
