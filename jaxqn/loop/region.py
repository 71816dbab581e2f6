"""A trust region as a globalization: steps to the minimum of a quadratic model, kept short.

Every trip tries one step. The ratio of the actual decrease of f to the promised one says whether
the step is taken, and how far the model is trusted from then on (Nocedal & Wright, algorithm 4.1).
Lengths are ‖p‖_D = √(Σ Dᵢ² pᵢ²), D being the largest roots of the model's diagonal so far.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import dot, eps, safe_divide, vectors
from jaxqn.linesearch import rounding_noise
from jaxqn.loop.path import Path
from jaxqn.loop.protocol import (
    Globalization,
    Judgement,
    Outcome,
    Prospects,
    Replanned,
    Run,
)
from jaxqn.loop.region_step import Proposal, propose
from jaxqn.loop.state import LoopState, Point
from jaxqn.loop.termination import (
    FLAT_LIMIT,
    at_offset,
    little_offset,
    lost_column,
    lost_columns,
    stands_still,
)
from jaxqn.quasi_newton import Trial

__all__ = ["RegionSearch", "region"]

ACCEPTED = 1e-4
"""The least part of the promised decrease that a step must keep."""

IDLE_LIMIT = 3
"""Trips in a row that rounding decides, after which a run ends."""

FIRST_RADIUS = 0.3
"""The first radius over ‖x‖_D. With 1, one of 300 fits of two peaks falls into another minimum; with
0.1, canyons far from the solution take several times the evaluations."""

FIRST_DAMPING = 0.1
"""The first damping, beside a diagonal of 1."""


class RegionSearch(NamedTuple):
    """How far the model is trusted, in one array; :class:`Trust` names its entries."""

    scalars: Array

    @property
    def alpha(self) -> Array:
        """The radius, shape ``()``."""
        return self.scalars[..., 0]


class Trust(NamedTuple):
    """Numbers of a trust region.

    Attributes:
      radius: the longest step, in the norm of D.
      mu: the multiplier, or the damping.
      growth: Nielsen's factor for the damping after a refused trial.
      length: the length of the step to try, before it was accelerated.
      fall: see :class:`jaxqn.formulas.TrustRegionStep`.
      promised: the decrease that the model promises of it.
      last: the length of the last step taken.
      offset: the relative offset at the point, ∞ where the model has not shown it.
      full: the length of the step to the minimum of the model, ∞ likewise.
      idle: trips in a row that rounding decided.
    """

    radius: Array
    mu: Array
    growth: Array
    length: Array
    fall: Array
    promised: Array
    last: Array
    offset: Array
    full: Array
    idle: Array


@functools.cache
def region(iterations: int) -> Globalization:
    """Steps within a trust region around the point.

    Args:
      iterations: factorisations that a step may take, see :func:`jaxqn.trust_region_step`.

    Returns:
      A :class:`Globalization`.

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, algorithm 4.1 and section 10.3;
      Moré, The Levenberg-Marquardt algorithm (1978), for D.
    """
    return Globalization(
        init=_init,
        at=_at,
        may_accept=_may_accept,
        measure=_measure,
        judge=_judge,
        replan=functools.partial(_replan, iterations),
    )


def _init(zeros: ArrayTree, zero: Array, one: Array, path: Path) -> tuple[ArrayTree, RegionSearch]:
    del path
    never = jnp.full_like(zero, jnp.inf)
    trust = Trust(one, zero, 2 * one, zero, zero, one, never, never, never, zero)
    return zeros, RegionSearch(jnp.stack(trust))


def _at(x: ArrayTree, alpha: Array, plan: ArrayTree, path: Path) -> ArrayTree:
    d = jax.tree.map(jnp.negative, plan)
    return path.at(x, jnp.ones_like(alpha), path.join(d, d))


def _rounding(point: Point) -> Array:
    """The rounding of f: of its own digits, and of what the residuals are differences of.

    They are differences of data and of a model of about the size √(Σ Hⱼⱼ xⱼ²).
    """
    model = jnp.sqrt(jnp.sum(jnp.diagonal(point.linear.H) * point.x**2))
    differences = eps(model.dtype) * jnp.sqrt(2 * jnp.abs(point.f)) * model
    return rounding_noise(point.f) + differences


def _hidden(state: LoopState, f: Array) -> Array:
    """Whether rounding of f hides the promised decrease."""
    rounding, promised = _rounding(state.point), Trust(*state.search.scalars).promised
    return (jnp.abs(state.point.f - f) <= rounding) & (promised <= 10 * rounding)


def _may_accept(state: LoopState, f: Array, run: Run) -> Array:
    kept = state.point.f - f > ACCEPTED * Trust(*state.search.scalars).promised
    return run.running & jnp.isfinite(f) & (run.first | kept | _hidden(state, f))


def _measure(state: LoopState, trial: Point, run: Run) -> tuple[Array, Array]:
    g = run.path.gradient(trial)
    by_x = run.path.stationarity(trial, state.x_scale, run.now.g_scale)
    g_size, jac_size = vectors.inf_norms(g, by_x)
    return g_size, jac_size


class Ratio(NamedTuple):
    """The actual decrease, by slopes where rounding hides it, and whether all is finite."""

    decrease: Array
    finite: Array


def _judge(state: LoopState, trial: Point, run: Run) -> tuple[RegionSearch, Ratio, Judgement]:
    point, trust = state.point, Trust(*state.search.scalars)
    s = trial.x - point.x
    before, after = vectors.products((point.g, s), (trial.g, s))
    diagonal = jnp.diagonal(trial.linear.H)
    finite = jnp.isfinite(trial.f) & jnp.isfinite(after) & jnp.all(jnp.isfinite(diagonal))
    finite &= ~_loses_a_column(state, trial, diagonal, run)
    fell = point.f - trial.f
    decrease = jnp.where(_hidden(state, trial.f), -0.5 * (before + after), fell)
    decrease = jnp.where(finite, decrease, -jnp.inf)
    positive = trust.promised > 0
    ratio = jnp.where(positive, decrease / jnp.where(positive, trust.promised, 1), -1)
    accepted = run.running & finite & (run.first | (ratio > ACCEPTED))
    idle = jnp.where(run.running & ~run.first, _idle(state, fell, finite, accepted), trust.idle)
    changed = _changed(trust, decrease, ratio, before, fell, finite, accepted, run)
    trust = changed._replace(idle=idle, last=jnp.where(accepted, trust.length, trust.last))
    no, gave_up = jnp.zeros_like(accepted), run.running & (idle >= IDLE_LIMIT)
    judged = Judgement(accepted, no, no, failed=gave_up, stalled=gave_up, moved=accepted)
    return RegionSearch(jnp.stack(trust)), Ratio(decrease, finite), judged


def _loses_a_column(state: LoopState, trial: Point, diagonal: Array, run: Run) -> Array:
    """Whether a trial that could be accepted went too far, onto a plateau of some parameter."""
    D, before = state.scales.curvature, jnp.diagonal(state.point.linear.H)
    loses = lost_columns(diagonal, D, run.path.free(trial)) & ~lost_columns(before, D, None)
    looked_into = _may_accept(state, trial.f, run) & ~run.first
    return jnp.any(loses) & looked_into & (trial.f > 0)


def _idle(state: LoopState, fell: Array, finite: Array, accepted: Array) -> Array:
    """Trips in a row that rounding decides: what they promise, or their steps, are below it."""
    point, trust = state.point, Trust(*state.search.scalars)
    digit = eps(point.f.dtype)
    x_size = jnp.sqrt(jnp.sum((_safe(state.scales.curvature) * point.x) ** 2))
    promises_nothing = trust.promised <= _rounding(point)
    held = (finite & promises_nothing) | (trust.length <= 4 * digit * x_size)
    taken = (fell <= digit * point.f) & promises_nothing
    return jnp.where(
        accepted,
        jnp.where(taken, trust.idle + 1, 0),
        jnp.where(held, trust.idle + 1, trust.idle),
    )


def _changed(
    trust: Trust,
    decrease: Array,
    ratio: Array,
    slope: Array,
    fell: Array,
    finite: Array,
    accepted: Array,
    run: Run,
) -> Trust:
    """The radius and the damping after a trial."""
    # Where f bends along the step: the minimum of the parabola through both ends.
    least = safe_divide(0.5 * slope, slope - fell, slope - fell != 0)
    cut = jnp.where(decrease >= 0, 0.5, jnp.where(jnp.isfinite(least), least, 0.1))
    cut = jnp.where(finite & (slope < 0), jnp.clip(cut, 0.1, 0.5), 0.1)
    shorter = cut * jnp.minimum(trust.radius, trust.length)
    longer = jnp.maximum(trust.radius, 2 * trust.length)
    grows = (ratio > 0.75) | (trust.mu == 0)
    radius = jnp.where(grows, longer, trust.radius)
    radius = jnp.where((ratio < 0.25) | ~accepted, shorter, radius)
    # Nielsen's rule.
    less = jnp.maximum(1 / 3, 1 - (2 * ratio - 1) ** 3)
    changes = run.running & ~run.first
    if run.method.qn.model.control == "radius":
        return trust._replace(radius=jnp.where(changes, radius, trust.radius))
    mu = trust.mu * jnp.where(accepted, less, trust.growth)
    growth = jnp.where(accepted, 2, 2 * trust.growth)
    return trust._replace(
        mu=jnp.where(changes, mu, trust.mu), growth=jnp.where(changes, growth, trust.growth)
    )


def _safe(D: Array) -> Array:
    """The scales of x, and 1 where f has never changed with it."""
    return jnp.where(D > 0, D, 1)


def _replan(
    iterations: int, state: LoopState, outcome: Outcome, run: Run, second: Any
) -> Replanned:
    """Correct the model by the trial, and find its minimum within the region."""
    del second
    new, trial, point, judged = outcome.point, outcome.trial, state.point, outcome.judged
    model = run.method.qn.model
    assert model is not None
    s = trial.x - point.x
    diagonal = jnp.diagonal(new.linear.H)
    D = jnp.maximum(state.scales.curvature, jnp.sqrt(diagonal))
    scales = _safe(D)
    decrease, finite = outcome.slopes
    lesson = Trial(
        s,
        point.g,
        trial.g,
        point.linear,
        trial.linear,
        decrease,
        finite & run.running & ~run.first,
        judged.moved & ~run.first,
        scales**2,
    )
    approx = model.learn(state.approx, lesson)
    trust = Trust(*outcome.search.scalars)
    x_size = jnp.sqrt(dot(scales * new.x, scales * new.x))
    begins = FIRST_RADIUS * jnp.where(x_size > 0, x_size, jnp.sqrt(2 * jnp.abs(new.f)))
    first_mu = 0.0 if model.control == "radius" else FIRST_DAMPING
    trust = trust._replace(
        radius=jnp.where(run.first, begins, trust.radius),
        mu=jnp.where(run.first, first_mu, trust.mu),
    )
    bend = None if model.bend is None else model.bend(approx)
    proposal = propose(
        model, model.matrix(approx, new.linear), new, scales, trust, bend, run.path, iterations
    )
    trust, prospects = _assess(state, outcome, proposal, D, diagonal, x_size, trust, run)
    g_size, jac_size = outcome.sizes
    now = run.now._replace(
        g_norm=jnp.where(judged.moved, g_size, run.now.g_norm),
        jac_norm=jnp.where(judged.moved, jac_size, run.now.jac_norm),
        gHg=2 * trust.promised,
        f_first=jnp.where(run.first, new.f, run.now.f_first),
    )
    prospects = prospects._replace(settled=prospects.settled | (now.jac_norm <= run.tol.gtol))
    no = jnp.zeros_like(judged.moved)
    step = jnp.where(judged.moved, s, 0)
    search = RegionSearch(jnp.stack(trust))
    return Replanned(new, step, approx, D, proposal.p, search, now, prospects, no, no)


def _assess(
    state: LoopState,
    outcome: Outcome,
    proposal: Proposal,
    D: Array,
    diagonal: Array,
    x_size: Array,
    trust: Trust,
    run: Run,
) -> tuple[Trust, Prospects]:
    """Whether the point is a minimum, by the angle of r to the tangent space or by the full step.

    Only the minimum of the model shows that; a point keeps what was found of it.
    """
    new, moved = outcome.point, outcome.judged.moved
    f = jnp.where(new.f > 0, new.f, 1)
    offset = jnp.where(proposal.is_full, jnp.sqrt(jnp.maximum(proposal.gBg, 0) / (2 * f)), jnp.inf)
    full = jnp.where(proposal.is_full, proposal.length, jnp.inf)
    kept = ~moved & ~proposal.is_full
    offset, full = jnp.where(kept, trust.offset, offset), jnp.where(kept, trust.full, full)
    stepped = run.tally.nit + moved > 1
    ends = at_offset(offset) | (stepped & stands_still(full, trust.last, x_size))
    ends |= (new.f == 0) | (proposal.slope == 0)
    gave_up = outcome.judged.failed | (run.tally.without_progress >= FLAT_LIMIT - 1)
    ends |= gave_up & little_offset(offset, full, x_size)
    lost = lost_column(diagonal, D, run.path.free(new), new.f, run.now.f_first)
    trust = trust._replace(
        mu=proposal.mu,
        length=proposal.length,
        fall=proposal.fall,
        promised=proposal.promised,
        offset=offset,
        full=full,
    )
    no = jnp.zeros_like(moved)
    ends &= run.running & jnp.isfinite(new.f)
    return trust, Prospects(
        decrease=state.point.f - new.f,
        negligible=no,
        settled=ends,
        at_minimum=ends & ~lost,
        doubts_values=no,
        unbounded=no,
        singular=lost,
    )
