"""The step of a trust region: the minimum of the model within the radius and within bounds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.formulas import hebden, trust_region_step
from jaxqn.linalg import dot, eps, inner, matvec, positive_solve, safe_divide
from jaxqn.loop.path import Path
from jaxqn.loop.state import Point
from jaxqn.quasi_newton import Model

__all__ = ["Proposal", "propose", "propose_in_residuals"]

GOES_ON = 0.8
"""The part of a step that must lie along the last one, for what was learned there to count."""

MOST_BENT = 0.75
"""The longest acceleration beside the step that it bends."""


class Proposal(NamedTuple):
    """A step to try.

    Attributes:
      p: the step, accelerated.
      mu: see :class:`jaxqn.formulas.TrustRegionStep`, also for ``fall``.
      fall: see there.
      length: of the step before it was accelerated, in the norm of D.
      promised: the decrease that the model promises of that.
      is_full: whether it is the minimum of the model over the variables that may move.
      gBg: gᵀB⁻¹g where it is.
      slope: gᵀp.
    """

    p: Array
    mu: Array
    fall: Array
    length: Array
    promised: Array
    is_full: Array
    gBg: Array
    slope: Array


def propose(
    model: Model,
    B: Array,
    point: Point,
    scales: Array,
    trust: Any,
    bend: tuple[Array, Array] | None,
    path: Path,
    iterations: int,
) -> Proposal:
    """The step of the model with matrix B from a point; lengths are measured over ``scales``."""
    n, free, room = len(point.x), path.free(point), path.room(point)
    B = B / (scales[:, None] * scales[None])
    gamma = point.g / scales
    kept, g = B, gamma
    if free is not None:
        kept, g = _over(free, B), jnp.where(free, gamma, 0)
    digit = eps(B.dtype)  # what rounding leaves of the smallest eigenvalues
    kept = kept + jnp.diag(n * digit * jnp.maximum(jnp.abs(jnp.diagonal(kept)), digit**2))
    h = None
    if bend is not None:
        s, h = scales * bend[0], bend[1] / scales
        h = h if free is None else jnp.where(free, h, 0)
    if model.control == "radius":
        warm = jnp.maximum(hebden(trust.mu, trust.length, trust.fall, trust.radius), 0)
        step = trust_region_step(kept, g, trust.radius, warm, h=h, iterations=iterations)
        is_full = (step.least > 0) & (step.mu == 0)
    else:
        anywhere = jnp.full_like(trust.mu, jnp.inf)
        step = trust_region_step(kept, g, anywhere, trust.mu, h=h, iterations=1)
        is_full = 2 * step.mu <= step.least
    q, clamped = step.p, jnp.zeros((), bool)
    if room is not None:
        q, clamped = _clamped(kept, gamma, step.mu, q, free, [scales * side for side in room])
    gBg, slope, qq, qBq = inner((-g, step.p), (gamma, q), (q, q), (q, matvec(B, q)))
    length, p = jnp.sqrt(qq), q
    promised = -(slope + 0.5 * qBq)
    if bend is not None:
        ss, qs, aa = inner((s, s), (q, s), (step.also, step.also))
        along = safe_divide(qs, ss, ss > 0)
        goes_on = (along * jnp.sqrt(ss) >= GOES_ON * length) & (step.least > 0) & ~clamped
        goes_on &= 2 * along**2 * jnp.sqrt(aa) <= MOST_BENT * length
        p = q - jnp.where(goes_on, 0.5 * along**2 * step.also, 0)
    return Proposal(
        p / scales, step.mu, step.fall, length, promised, is_full & ~clamped, gBg, slope
    )


def propose_in_residuals(point: Point, mu: Array, second: Any) -> Proposal:
    """Levenberg and Marquardt's step by a system of the size of the residuals, accelerated."""
    _, root, J, K, _ = point.linear
    r, m = root * point.linear.r, len(root)
    damping = mu + m * eps(K.dtype) * jnp.max(jnp.diagonal(K))
    L = jnp.linalg.cholesky(K + damping * jnp.eye(m, dtype=K.dtype), symmetrize_input=False)
    u = jax.scipy.linalg.cho_solve((L, True), r)
    Ku = dot(K, u)
    p, slope = -dot(u, J), -dot(r, Ku)
    length, positive = jnp.sqrt(dot(p, p)), jnp.isfinite(slope)
    a = -dot(jax.scipy.linalg.cho_solve((L, True), root * second(point.x, p)), J)
    bends = 2 * jnp.sqrt(dot(a, a)) <= MOST_BENT * length
    step = jnp.where(positive, p + jnp.where(bends, 0.5 * a, 0), 0)
    return Proposal(
        p=step,
        mu=mu,
        fall=jnp.zeros_like(mu),
        length=length,
        promised=-(slope + 0.5 * dot(Ku, Ku)),
        is_full=positive & (2 * mu <= jnp.min(jnp.diagonal(L)) ** 2),
        gBg=-slope,
        slope=slope,
    )


def _over(free: Array, B: Array) -> Array:
    """B over the variables that may move, and the identity over the others."""
    return jnp.where(free[:, None] & free[None], B, 0) + jnp.diag(jnp.where(free, 0.0, 1.0)).astype(
        B.dtype
    )


def _clamped(
    B: Array, gamma: Array, mu: Array, q: Array, free: Array, room: list[Array]
) -> tuple[Array, Array]:
    """The step within the room: what would leave it is clamped, and the rest solved for again."""
    low, up = room
    q = jnp.where(free, q, 0)

    def leaves(q: Array, free: Array) -> Array:
        return free & ((q < low) | (q > up))

    def again(carry: tuple) -> tuple:
        q, free, count = carry
        out = leaves(q, free)
        q, free = jnp.where(out, jnp.clip(q, low, up), q), free & ~out
        fixed = jnp.where(free, 0, q)
        A = _over(free, B + mu * jnp.eye(len(q), dtype=q.dtype))
        sides = jnp.where(free, -(gamma + matvec(B, fixed)), 0)
        rest = positive_solve(A, sides[:, None]).x[:, 0]
        return jnp.where(free, jnp.where(jnp.isfinite(rest), rest, 0), q), free, count + 1

    def going(carry: tuple) -> Array:
        q, free, count = carry
        return jnp.any(leaves(q, free)) & (count < len(q))

    clamped = jnp.any(leaves(q, free))
    q, _, _ = jax.lax.while_loop(going, again, (q, free, jnp.int32(0)))
    return jnp.where(clamped, jnp.clip(q, low, up), q), clamped
