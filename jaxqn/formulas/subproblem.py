"""The trust-region subproblem: the minimum of a quadratic model within a radius."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.linalg import Solution, inner, positive_solve, safe_divide, where

__all__ = ["TrustRegionStep", "hebden", "trust_region_step"]

SLACK = 0.1
"""A step within this fraction of the radius is long enough."""

LONGEST = 1.5
"""Times the radius: a longer step, of an iteration that was not finished, is shortened."""

MISSING = 0.1
"""The part of the greatest decrease that a step along negative curvature may miss."""


class TrustRegionStep(NamedTuple):
    """A step of at most about the radius.

    Attributes:
      p: the step, shape ``(n,)``.
      mu: its multiplier: (B + mu I) p = −g, unless p was shortened.
      length: ‖p‖ before p was shortened.
      fall: −d log‖p‖/dmu, by which :func:`hebden` finds the multiplier of another radius.
      also: (B + mu I)⁻¹ h for the vector h that the caller gave; 0 without one, shape ``(n,)``.
      least: the smallest pivot of B + mu I; not positive where that is not positive definite.
    """

    p: Array
    mu: Array
    length: Array
    fall: Array
    also: Array
    least: Array


def hebden(mu: Array, length: Array, fall: Array, radius: Array) -> Array:
    """The multiplier that makes steps of the length ``radius``, if 1/‖p(mu)‖ is linear in mu.

        mu₊ = mu + (‖p‖ − Δ)/Δ · ‖p‖²/(pᵀ(B + mu I)⁻¹p)

    Negative for a step that is shorter than the radius with mu = 0.

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, eq. 4.44.
    """
    return mu + safe_divide(length / radius - 1, fall, fall > 0)


def trust_region_step(
    B: Array,
    g: Array,
    radius: Array,
    mu: Array | float = 0.0,
    *,
    h: Array | None = None,
    hard: bool = False,
    iterations: int = 20,
) -> TrustRegionStep:
    """The minimum of gᵀp + ½ pᵀB p over ‖p‖ ≤ Δ, to a tenth of Δ, by Hebden's iteration.

    It starts from ``mu``, which may be that of a neighbouring problem, and ends with mu = 0 and
    ‖p‖ ≤ 1.1 Δ, or with mu > 0, B + mu I positive definite and ‖p‖ within a tenth of Δ. With too
    few iterations a step longer than 1.5 Δ is shortened to Δ, and where no B + mu I was positive
    definite the step is −g Δ/‖g‖.

    Args:
      B: symmetric matrix, shape ``(n, n)``; it need not be definite.
      g: gradient, shape ``(n,)``.
      radius: Δ, positive, shape ``()``.
      mu: a first multiplier, not negative, shape ``()``.
      h: a vector to solve for as well, shape ``(n,)``.
      hard: whether to solve the hard case, too: where B is indefinite and g has next to nothing
        along its lowest eigenvector, every (B + mu I)⁻¹ g is short, and a multiple of that vector
        fills the radius. The vector comes from inverse iteration, a product more for each factor.
      iterations: factorisations allowed; with 1 the program has no loop.

    Returns:
      A :class:`TrustRegionStep`. Cost: a factorisation per iteration: 1 to 4 for a
      definite B, up to 14 for others.

    Example:
      >>> step = trust_region_step(jnp.eye(2), jnp.array([3.0, 4.0]), jnp.array(1.0))
      >>> round(float(step.mu), 2), [round(float(value), 2) for value in step.p]
      (4.0, [-0.6, -0.8])

    References:
      Moré & Sorensen, SIAM J. Sci. Stat. Comput. 4 (1983), section 3 for the hard case; Nocedal &
      Wright, Numerical Optimization, 2nd ed., 2006, algorithm 4.3.
    """
    chex.assert_rank(g, 1)
    chex.assert_shape(B, (g.shape[0], g.shape[0]))
    identity, dtype = jnp.eye(len(g), dtype=B.dtype), g.dtype
    g_norm = jnp.sqrt(inner((g, g))[0])
    steepest = safe_divide(g_norm, radius, radius > 0)
    zero, size = jnp.zeros((), dtype), jnp.max(jnp.sum(jnp.abs(B), axis=1))
    # Without a gradient mu is −lambda₁ and a little more, which may be all of the size of B.
    most = size + (jnp.maximum(steepest, 0.5 * MISSING * size) if hard else steepest)
    sides = [-g] if h is None else [-g, h]

    def at(mu: Array, z: Array) -> tuple[TrustRegionStep, Array, Array, Array]:
        """The step of a multiplier, whether it will do, and z nearer the lowest eigenvector.

        Also a bound on multipliers from below: mu − zᵀ(B + mu I)z ≤ −lambda₁.
        """
        found = positive_solve(B + mu * identity, jnp.stack([*sides, z] if hard else sides, 1))
        p, also = found.x[:, 0], found.x[:, 1] if h is not None else jnp.zeros_like(g)
        pp = inner((p, p))[0]
        length = jnp.where(found.positive, jnp.sqrt(pp), jnp.inf)
        fall = safe_divide(found.form, pp, found.positive & (pp > 0))
        fits = jnp.abs(length - radius) <= SLACK * radius
        fits |= (mu == 0) & (length <= radius)
        least = jnp.where(found.positive, found.least, 0)
        step = TrustRegionStep(p, mu, length, fall, also, least)
        if not hard:
            return step, found.positive & fits, z, zero
        longer, near, z, below = _filled(step, found, z, g, radius)
        step = where(near & ~fits, longer, step)
        return step, found.positive & (fits | near), z, below

    def body(carry: tuple) -> tuple:
        old, z, mu, lo, hi, _, count = carry
        step, done, z, below = at(mu, z)
        mu, lo, hi = _better(step, jnp.maximum(lo, below), hi, radius)
        # Of the multipliers tried, the last positive definite one counts.
        return where(step.least > 0, step, old), z, mu, lo, hi, done, count + 1

    def going(carry: tuple) -> Array:
        *_, done, count = carry
        return ~done & (count < iterations)

    start = jnp.asarray(mu, dtype)
    z = jnp.cos(jnp.arange(1, len(g) + 1, dtype=dtype)) if hard else jnp.zeros((0,), dtype)
    if iterations == 1:
        step = at(start, z)[0]
    else:
        start = jnp.clip(start, 0, most)
        far, nothing = jnp.full_like(g_norm, jnp.inf), jnp.zeros_like(g)
        nowhere = TrustRegionStep(nothing, start, far, zero, nothing, zero)
        carry = (nowhere, z, start, zero, most, jnp.zeros((), bool), jnp.int32(0))
        step = jax.lax.while_loop(going, body, carry)[0]
    usable = jnp.isfinite(step.length) & (inner((step.p, g))[0] < 0)
    if hard:
        usable |= (step.least > 0) & (step.mu > 0) & (step.length > 0)
    down = jnp.where(usable, step.p, -safe_divide(g, steepest, steepest > 0))
    size = jnp.where(usable, step.length, radius)
    short = jnp.where(size > LONGEST * radius, safe_divide(radius, size, size > 0), 1)
    return step._replace(p=short * down)


def _better(
    step: TrustRegionStep, lo: Array, hi: Array, radius: Array
) -> tuple[Array, Array, Array]:
    """The next multiplier, between the bounds that are known by now."""
    long = step.length > radius
    lo, hi = jnp.where(long, jnp.maximum(lo, step.mu), lo), jnp.where(long, hi, step.mu)
    new = jnp.maximum(hebden(step.mu, step.length, step.fall, radius), 0)
    inside = (step.least > 0) & (new >= lo) & (new < hi) & (new != step.mu)
    between = jnp.maximum(jnp.sqrt(lo * hi), lo + 1e-3 * (hi - lo))
    return jnp.where(inside, new, between), lo, hi


def _filled(
    step: TrustRegionStep, found: Solution, z: Array, g: Array, radius: Array
) -> tuple[TrustRegionStep, Array, Array, Array]:
    """A step made as long as the radius by a multiple of z, and whether that is near the minimum.

    Near it is where tau² zᵀA z ≤ sigma (pᵀA p + mu Δ²) for A = B + mu I (Moré & Sorensen, lemma
    3.4).
    """
    new, p, mu = found.x[:, -1], step.p, step.mu
    zz, zAz, pz, slope = inner((new, new), (new, z), (p, new), (p, g))  # A new = z
    usable = found.positive & (zz > 0) & jnp.isfinite(zz)
    size = jnp.sqrt(jnp.where(usable, zz, 1))
    direction, pz = new / size, pz / size
    zAz = safe_divide(zAz, zz, usable)
    room = jnp.maximum(radius**2 - step.length**2, 0)
    root = jnp.sqrt(pz**2 + room)
    beside = jnp.abs(pz) + root
    tau = jnp.where(pz < 0, -1, 1) * safe_divide(room, beside, beside > 0)
    near = usable & (mu > 0) & (step.length < radius)
    near &= tau**2 * zAz <= MISSING * (mu * radius**2 - slope)
    longer = step._replace(p=p + tau * direction, length=radius)
    z = jnp.where(usable, direction, z)
    return longer, near, z, jnp.where(usable, mu - zAz, -jnp.inf)
