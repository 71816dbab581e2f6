"""Symmetric rank one as a quadratic model for a trust region: the matrix B itself."""

import functools
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.checks import check_number
from jaxqn.formulas import Pair, correction_vectors, sr1_rule, trust_region_step
from jaxqn.linalg import dot, eps, inner, matvec, safe_divide
from jaxqn.quasi_newton.protocol import Descent, Quadratic, QuasiNewton

__all__ = ["RegionState", "first_curvature", "known_matrix", "refuse_line", "sr1_trust_region"]

ITERATIONS = 20
"""Factorisations that a step may take."""


class RegionState(NamedTuple):
    """A Hessian as far as pairs show it.

    Attributes:
      B: shape ``(n, n)``, symmetric; 0 before the first pair.
      counts: ``absorbed`` and ``refused`` pairs, int32, shape ``(2,)``.
    """

    B: Array
    counts: Array

    @property
    def absorbed(self) -> Array:
        """Pairs absorbed since the start or the last reset, int32, shape ``(...)``."""
        return self.counts[..., 0]

    @property
    def refused(self) -> Array:
        """Pairs refused since the start, int32, shape ``(...)``."""
        return self.counts[..., 1]


def sr1_trust_region(radius: float | None = None) -> QuasiNewton:
    """Symmetric rank one within a trust region.

        min gᵀp + ½ pᵀB p  over  ‖p‖ ≤ Δ,    B₊ = B + v vᵀ/(vᵀs),   v = y − B s.

    B learns the pair of every trial, taken or not, and may be indefinite: a step then goes along
    negative curvature as far as the radius. B begins as 2 yᵀy/sᵀy of the first pair. The line
    search form of the method is ``jaxqn.dense(jaxqn.rules.sr1_rule, scale_init=0.5)``, which takes
    bounds.

    Args:
      radius: the first radius, in the units of ``x_scale``; by default the length of a first trial
        along −g, min(1, 2 |f|/‖g‖).

    Returns:
      A :class:`jaxqn.QuasiNewton` over flat vectors, for :func:`jaxqn.minimize` and its kin; no
      other host has a trust region.

    Raises:
      TypeError, ValueError: ``radius`` is no positive number.

    Cost: per evaluation two products with B, one pass over it, and Cholesky factors of n³/3: one
    where the minimum of the model lies within the radius, else two to four as a rule, and 20 at
    most where B is newly indefinite. Memory: n².

    Example:
      >>> from jaxqn import minimize
      >>> well = lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2
      >>> result = minimize(well, jnp.array([0.1, 1.0]), method=sr1_trust_region())
      >>> [round(abs(float(value)), 3) for value in result.x]
      [1.0, 0.0]

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, algorithm 6.2; Byrd, Khalfan &
      Schnabel, SIAM J. Optim. 6 (1996).
    """
    return _verbs(None if radius is None else check_number("radius", radius, "positive"))


@functools.cache
def _verbs(radius: float | None) -> QuasiNewton:
    return QuasiNewton(
        init=_init,
        update=_learn,
        apply=_apply,
        advance=refuse_line,
        reset=_reset,
        model=Quadratic(_learn, _step, radius),
    )


def refuse_line(*_: Any) -> NoReturn:
    """Raise, for a host that makes steps from H g."""
    raise TypeError(
        "this method is made for a trust region, which jaxqn.minimize has: here take "
        "jaxqn.dense(jaxqn.rules.sr1_rule, scale_init=0.5) or jaxqn.lsr1_memory()"
    )


def _init(x: Array, H0: Array | None = None) -> RegionState:
    n = x.shape[0]
    B = jnp.zeros((n, n), x.dtype) if H0 is None else jnp.linalg.inv(jnp.array(H0, x.dtype))
    counts = jnp.array([0 if H0 is None else 1, 0], jnp.int32)
    return RegionState(0.5 * (B + B.T), counts)


def first_curvature(ss: Array, sy: Array, yy: Array) -> Array:
    """The curvature to begin with: 2 yᵀy/sᵀy, or ‖y‖/‖s‖ without a positive sᵀy.

    With 1 for 2, y − B s would be orthogonal to y.
    """
    positive = sy > 10 * eps(sy.dtype) * jnp.sqrt(ss) * jnp.sqrt(yy)
    mean = jnp.sqrt(safe_divide(yy, ss, ss > 0))
    gamma = jnp.where(positive, 2 * safe_divide(yy, sy, positive), mean)
    return jnp.where(jnp.isfinite(gamma), gamma, 0)


def _learn(state: RegionState, s: Array, y: Array) -> RegionState:
    ss, sy, yy = inner((s, s), (s, y), (y, y))
    first = (state.absorbed == 0) & (ss > 0)
    gamma = jnp.where(first, first_curvature(ss, sy, yy), 0)
    B = state.B + gamma * jnp.eye(len(s), dtype=s.dtype)
    w = matvec(B, s)
    # By duality: the update of H with s and y exchanged is that of B.
    dual = Pair(s=y, y=s, w=w, ss=yy, sy=sy, yy=ss, yw=dot(s, w), sBs=jnp.full_like(sy, jnp.nan))
    c = sr1_rule(dual)
    p, q = correction_vectors(y, w, c)
    used = first | c.accepted
    tally = jnp.stack([used, ~used & (ss > 0)]).astype(jnp.int32)
    correction = jnp.outer(c.alpha * p, p) + jnp.outer(c.beta * q, q)
    return RegionState(B + correction, state.counts + tally)


def _step(state: RegionState, g: Array, radius: Array, mu: Array) -> Descent:
    B, n, digit = state.B, len(g), eps(g.dtype)
    # What rounding leaves of the smallest eigenvalues counts as 0.
    size = jnp.max(jnp.abs(jnp.diagonal(B)))
    kept = B + n * digit * size * jnp.eye(n, dtype=B.dtype)
    mu = jnp.where(size > 0, mu, safe_divide(jnp.sqrt(inner((g, g))[0]), radius, radius > 0))
    step = trust_region_step(kept, g, radius, mu, hard=True, iterations=ITERATIONS)
    slope, pBp = inner((g, step.p), (step.p, matvec(B, step.p)))
    is_minimum = (step.least > 0) & (step.mu == 0)
    return Descent(step.p, step.mu, step.fall, -(slope + 0.5 * pBp), is_minimum)


def known_matrix(state: RegionState) -> Array:
    """The matrix B, the identity before the first pair; shape ``(..., n, n)``."""
    known = (state.absorbed > 0).astype(state.B.dtype)[..., None, None]
    return state.B + (1 - known) * jnp.eye(state.B.shape[-1], dtype=state.B.dtype)


def _apply(state: RegionState, g: Array) -> Array:
    return jnp.linalg.solve(known_matrix(state), g)


def _reset(state: RegionState, when: Array) -> RegionState:
    nothing = state.counts * jnp.array([0, 1], state.counts.dtype)
    return RegionState(
        jnp.where(when, 0, 1).astype(state.B.dtype) * state.B,
        jnp.where(when, nothing, state.counts),
    )
