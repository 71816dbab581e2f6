"""What each method does with a pair (s, y), in a handful of scalars.

Every rank-one or rank-two correction of an inverse Hessian H that maps y to s lies in the span of
s and w = H y. A *rule* states its three coefficients as the reference does,

    H₊ = scale · H + ss · s sᵀ + sw · (s wᵀ + w sᵀ) + ww · w wᵀ,

and :func:`corrected` completes the square, for two weighted outer products in place of four,

    H₊ = scale · H + alpha · p pᵀ + beta · q qᵀ,     p = s − mu w,   q = w − nu s.

A rule never sees H. The holder of H (a matrix, a matrix with a panel beside it) applies the
correction. The functions of :mod:`jaxqn.updates` document the formulas.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.formulas.curvature import has_curvature, in_range
from jaxqn.linalg import computed_once, dot, eps, safe_divide

__all__ = [
    "Correction",
    "Pair",
    "Rule",
    "bfgs_rule",
    "broyden_class",
    "broyden_rule",
    "corrected",
    "correction_vectors",
    "dfp_rule",
    "keeps_definite",
    "osbfgs_rule",
    "sr1_rule",
    "ssbfgs_rule",
    "ssbroyden_rule",
]


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
      sBs: sᵀB s, or NaN where it is not known (a step that is not along −H g); NaN makes the
        self-scaled rules fall back to BFGS.
    """

    s: Array
    y: Array
    w: Array
    ss: Array
    sy: Array
    yy: Array
    yw: Array
    sBs: Array


class Correction(NamedTuple):
    """H₊ = scale H + alpha p pᵀ + beta q qᵀ with p = s − mu w, q = w − nu s.

    Attributes:
      accepted: whether the pair is used; otherwise scale = 1 and the other coefficients are 0.
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


def corrected(
    usable: Array, *, ss: Array, sw: Array, ww: Array | float, scale: Array | float = 1.0
) -> Correction:
    """Complete the square of three coefficients: on s where sw ≤ 0, on w elsewhere.

        ss s sᵀ + sw (s wᵀ + w sᵀ) + ww w wᵀ = alpha p pᵀ + beta q qᵀ   with

        alpha = ss,           mu = −sw/ss,   beta = ww − sw²/ss,   nu = 0        or
        alpha = ss − sw²/ww,  mu = 0,        beta = ww,            nu = −sw/ww.

    The divisor vanishes for no rule below: in the Broyden class ss > 0 for phi ≥ 0, which is where
    sw ≤ 0, and ww < 0 for phi < 0; in SR1 ss = ww = −sw. The matrix stays unchanged where
    ``usable`` does not hold, and where a coefficient overflows: it would stay in the matrix for
    good.
    """
    on_s, one, zero = sw <= 0, jnp.ones_like(ss), jnp.zeros_like(ss)
    scale, ww = scale * one, ww * one
    pivot, other = jnp.where(on_s, ss, ww), jnp.where(on_s, ww, ss)
    rest = other - sw * (sw / pivot)
    by_s, by_w = [scale, pivot, -sw, rest, zero], [scale, rest, zero, pivot, -sw]
    # One division of vectors is one kernel, and XLA does not compute it again for every reader.
    above = jnp.where(on_s, jnp.stack(by_s), jnp.stack(by_w))
    quotients = above / jnp.stack([one, one, pivot, one, pivot])
    (accepted,) = computed_once(usable & jnp.all(jnp.isfinite(quotients)))
    none = jnp.array([1, 0, 0, 0, 0], quotients.dtype)
    return Correction(accepted, *jnp.where(accepted, quotients, none))


def keeps_definite(pair: Pair) -> Array:
    """Whether sᵀy > 0 and yᵀH y > 0, which every rule but SR1 asks for."""
    return has_curvature(pair.ss, pair.sy, pair.yy) & (pair.yw > 0) & jnp.isfinite(pair.yw)


def bfgs_rule(pair: Pair, scale: Array | float = 1.0) -> Correction:
    """BFGS, after a multiplication of H by ``scale`` in the self-scaled rules.

        H₊ = scale [H − rho (s wᵀ + w sᵀ) + rho² (yᵀw) s sᵀ] + rho s sᵀ,   rho = 1/(sᵀy)

    Nocedal & Wright, eq. 6.17, multiplied out; see ``bfgs_update``.
    """
    rho, h = 1 / pair.sy, pair.yw / pair.sy
    ss, sw, ww = (1 + scale * h) * rho, -scale * rho, 0.0
    return corrected(keeps_definite(pair), ss=ss, sw=sw, ww=ww, scale=scale)


def dfp_rule(pair: Pair) -> Correction:
    """DFP.

        H₊ = H − w wᵀ/(yᵀw) + s sᵀ/(sᵀy)

    Nocedal & Wright, eq. 6.15; see ``dfp_update``.
    """
    ss, sw, ww = 1 / pair.sy, jnp.zeros_like(pair.sy), -1 / pair.yw
    return corrected(keeps_definite(pair), ss=ss, sw=sw, ww=ww)


def sr1_rule(pair: Pair) -> Correction:
    """SR1.

        H₊ = H + c (s − w)(s − w)ᵀ,   c = 1/((s − w)ᵀy)

    Nocedal & Wright, eq. 6.25, with the safeguard of eq. 6.26; see ``sr1_update``.
    """
    v = pair.s - pair.w
    vy, vv = dot(v, pair.y), dot(v, v)
    floor = eps(vy.dtype) ** 0.5 * jnp.sqrt(vv) * jnp.sqrt(pair.yy)
    usable = (jnp.abs(vy) > floor) & in_range(pair.ss, pair.yy) & jnp.isfinite(vy)
    c = 1 / vy
    return corrected(usable, ss=c, sw=-c, ww=c)


def broyden_class(pair: Pair, phi: Array | float, scale: Array | float = 1.0) -> Correction:
    """The Broyden class, after a multiplication of H by ``scale``.

        H₊ = scale [H − w wᵀ/(yᵀw) + phi v vᵀ] + rho s sᵀ,
        v = √(yᵀw) (rho s − w/(yᵀw)),   rho = 1/(sᵀy)

    Nocedal & Wright, section 6.3, in inverse form; see ``broyden_update``.
    """
    rho, h = 1 / pair.sy, pair.yw / pair.sy
    ss, sw, ww = (1 + scale * phi * h) * rho, -scale * phi * rho, -scale * (1 - phi) / pair.yw
    return corrected(keeps_definite(pair), ss=ss, sw=sw, ww=ww, scale=scale)


@functools.cache
def broyden_rule(phi: float) -> Rule:
    """The Broyden class at a fixed phi. See ``broyden_update``."""
    return functools.partial(broyden_class, phi=phi)


def _known_b(pair: Pair) -> tuple[Array, Array]:
    """The ratio b = sᵀB s/(sᵀy), and whether it is known; 1, for no scaling, where it is not."""
    usable = pair.sy > 0
    known = (pair.sBs > 0) & jnp.isfinite(pair.sBs) & usable
    b = pair.sBs * safe_divide(jnp.ones_like(pair.sy), pair.sy, usable)
    return jnp.where(known, b, jnp.ones_like(b)), known


def ssbfgs_rule(pair: Pair) -> Correction:
    """Self-scaled BFGS: phi = 1, tau = min(1, 1/b). See ``ssbfgs_update``."""
    b, _ = _known_b(pair)
    return bfgs_rule(pair, jnp.maximum(1, b))


def osbfgs_rule(pair: Pair) -> Correction:
    """BFGS with Oren and Spedicato's test for self-scaling, h < b. See ``osbfgs_update``."""
    b, _ = _known_b(pair)
    too_small = pair.yw < b * pair.sy
    return bfgs_rule(pair, jnp.where(too_small, jnp.maximum(1, b), 1.0))


def ssbroyden_rule(pair: Pair) -> Correction:
    """Self-scaled Broyden with the parameters of Al-Baali and Khalfan. See ``ssbroyden_update``."""
    b, known = _known_b(pair)
    n = pair.s.shape[0]
    h = safe_divide(pair.yw, pair.sy, known)
    tiny = eps(b.dtype)
    a = jnp.maximum(h * b - 1, tiny)  # ≥ 0 by Cauchy-Schwarz; the floor keeps the limits a → 0
    c = jnp.sqrt(a / (a + 1))
    r = jnp.clip(h * (1 - c), tiny, 1)
    theta = jnp.clip((1 - b) / b, (r - 1) / a, 1 / r)
    sigma = jnp.maximum(1 + a * theta, tiny)
    # The scale is 1/tau.
    by_b, by_volume = jnp.maximum(1, b), sigma ** (1 / max(n - 1, 1))
    scale = jnp.where(
        theta > 0, by_b * jnp.maximum(by_volume, theta), jnp.maximum(by_b * by_volume, 1 / sigma)
    )
    one = jnp.ones_like(b)
    return broyden_class(
        pair, phi=jnp.where(known, (1 - theta) / sigma, one), scale=jnp.where(known, scale, one)
    )


def correction_vectors(s: Array, w: Array, c: Correction) -> tuple[Array, Array]:
    """The vectors p = s − mu w and q = w − nu s of a correction, zero when it was refused."""
    zero = jnp.zeros_like(s)
    return jnp.where(c.accepted, s - c.mu * w, zero), jnp.where(c.accepted, w - c.nu * s, zero)
