"""What each method does with a pair (s, y), in a handful of scalars.

Every rank-one or rank-two correction of an inverse Hessian H that maps y to s lives in the span of
s and w = H y, so one form covers them all:

    H₊ = scale · H + alpha · p pᵀ + beta · q qᵀ,     p = s − mu w,   q = w − nu s.

A *rule* turns a pair into ``(scale, alpha, mu, beta, nu)``. It never sees H: whoever holds H (a
matrix, a matrix with a panel beside it) applies the correction. The formulas are stated with the
functions of :mod:`jaxqn.updates`.
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
    "correction_vectors",
    "dfp_rule",
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
      sBs: sᵀB s, or NaN where it is not known (a step that is not along −H g); the self-scaled
        rules then fall back to their unscaled member.
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


def broyden_class(pair: Pair, phi: Array | float, scale: Array | float = 1.0) -> Correction:
    """The self-scaled Broyden class, every member of which this module builds on.

        H₊ = scale [H − w wᵀ/(yᵀw) + phi v vᵀ] + rho s sᵀ,
        v = √(yᵀw) (rho s − w/(yᵀw)),   rho = 1/(sᵀy),   h = yᵀw/(sᵀy),   scale = 1/tau.

    In the span of s and w that is a 2×2 quadratic form; the square is completed on its s entry
    when phi > 1/2 (BFGS: phi = 1) and on its w entry otherwise (DFP: phi = 0), so that neither
    pivot can vanish:

        m = phi h scale,       alpha = (1 + m)/(sᵀy),   mu = phi scale/(1 + m),   nu = 0,
                               beta = −scale (1 − phi + m)/((1 + m) yᵀw);
        m = phi h scale/gap,   alpha = (1 + m)/(sᵀy),   mu = 0,   nu = −phi h/gap,
                               beta = −scale gap/(yᵀw),   gap = 1 − phi.
    """
    usable = has_curvature(pair.ss, pair.sy, pair.yy) & (pair.yw > 0) & jnp.isfinite(pair.yw)
    one, zero = jnp.ones_like(pair.sy), jnp.zeros_like(pair.sy)
    sy, yw = jnp.where(usable, pair.sy, one), jnp.where(usable, pair.yw, one)
    scale = jnp.where(usable, scale, one)
    h = yw / sy
    near_bfgs = jnp.asarray(phi > 0.5)
    gap = jnp.where(near_bfgs, one, 1 - phi)
    m = phi * h * scale / gap
    mu, nu = jnp.where(near_bfgs, phi * scale, zero), jnp.where(near_bfgs, zero, -phi * h)
    beta = -scale * jnp.where(near_bfgs, (1 - phi + m) / (1 + m), gap)
    return _correction(usable, [scale, 1 + m, mu, beta, nu], [one, sy, 1 + m, yw, gap])


def _correction(usable: Array, above: list[Array], below: list[Array]) -> Correction:
    """The quotients as coefficients, unless one overflows: it would stay in the matrix for good.

    One division of vectors is one kernel, and XLA does not work it out again for every reader.
    """
    quotients = jnp.stack(above) / jnp.stack(below)
    (accepted,) = computed_once(usable & jnp.all(jnp.isfinite(quotients)))
    none = jnp.array([1, 0, 0, 0, 0], quotients.dtype)
    return Correction(accepted, *jnp.where(accepted, quotients, none))


def bfgs_rule(pair: Pair) -> Correction:
    """BFGS: phi = 1. See ``bfgs_update``."""
    return broyden_class(pair, phi=1.0)


def dfp_rule(pair: Pair) -> Correction:
    """DFP: phi = 0. See ``dfp_update``."""
    return broyden_class(pair, phi=0.0)


@functools.cache
def broyden_rule(phi: float) -> Rule:
    """The Broyden class at a fixed phi. See ``broyden_update``."""
    return functools.partial(broyden_class, phi=phi)


def sr1_rule(pair: Pair) -> Correction:
    """SR1: H + v vᵀ/(vᵀy), v = s − w. See ``sr1_update``."""
    v = pair.s - pair.w
    vy, vv = dot(v, pair.y), dot(v, v)
    floor = eps(vy.dtype) ** 0.5 * jnp.sqrt(vv) * jnp.sqrt(pair.yy)
    usable = (jnp.abs(vy) > floor) & in_range(pair.ss, pair.yy) & jnp.isfinite(vy)
    one, zero = jnp.ones_like(vy), jnp.zeros_like(vy)
    below = [one, jnp.where(usable, vy, one), one, one, one]
    return _correction(usable, [one, one, one, zero, zero], below)


def _known_b(pair: Pair) -> tuple[Array, Array]:
    """B = sᵀB s/(sᵀy), and whether it is known; 1 where it is not, which means "do not scale"."""
    usable = pair.sy > 0
    known = (pair.sBs > 0) & jnp.isfinite(pair.sBs) & usable
    b = pair.sBs * safe_divide(jnp.ones_like(pair.sy), pair.sy, usable)
    return jnp.where(known, b, jnp.ones_like(b)), known


def ssbfgs_rule(pair: Pair) -> Correction:
    """Self-scaled BFGS: phi = 1, tau = min(1, 1/b). See ``ssbfgs_update``."""
    b, _ = _known_b(pair)
    return broyden_class(pair, phi=1.0, scale=jnp.maximum(1, b))


def osbfgs_rule(pair: Pair) -> Correction:
    """Self-scaled BFGS where h < b, BFGS elsewhere. See ``osbfgs_update``."""
    b, _ = _known_b(pair)
    too_small = pair.yw < b * pair.sy
    return broyden_class(pair, phi=1.0, scale=jnp.where(too_small, jnp.maximum(1, b), 1.0))


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
    # From here on the reciprocal of tau.
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
