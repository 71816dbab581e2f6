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
from jaxqn.linalg import dot, eps, vectors, where
from jaxqn.loop.path import Path
from jaxqn.loop.protocol import (
    Globalization,
    Judgement,
    Outcome,
    Prospects,
    Replanned,
    Run,
)
from jaxqn.loop.region_step import Proposal, propose, propose_in_residuals
from jaxqn.loop.state import LoopState, Point
from jaxqn.loop.termination import (
    FLAT_LIMIT,
    at_offset,
    little_offset,
    lost_column,
    lost_columns,
    stands_still,
    vanished,
)
from jaxqn.loop.trust import (
    ACCEPTED,
    Trust,
    hidden,
    idle_trips,
    may_accept,
    new_damping,
    new_radius,
    positive_scales,
)
from jaxqn.quasi_newton import Model, Trial

__all__ = ["RegionSearch", "region"]

IDLE_LIMIT = 3
"""Trips in a row that rounding decides, after which a run ends."""

FIRST_RADIUS = 0.3
"""The first radius over ‖x‖_D. With 1, one of 300 fits of two peaks falls into another minimum;
with 0.1, canyons far from the solution take several times the evaluations."""

LEAST_EFFECT = 1e-6
"""The least Dⱼ |xⱼ| at the start, over the largest."""

FIRST_DAMPING = 0.1
"""The first damping, beside a diagonal of 1."""

FIRST_DAMPING_OF_RESIDUALS = 1e-3
"""The first damping over the largest entry of the diagonal of JJᵀ."""


class RegionSearch(NamedTuple):
    """How far the model is trusted, in one array; :class:`Trust` names its entries."""

    scalars: Array

    @property
    def alpha(self) -> Array:
        """The radius, shape ``()``."""
        return self.scalars[..., 0]


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
        may_accept=may_accept,
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
    diagonal = trial.linear.diagonal
    finite = jnp.isfinite(trial.f) & jnp.isfinite(after) & jnp.all(jnp.isfinite(diagonal))
    if _model(run).matrix is not None:
        finite &= ~_loses_a_column(state, trial, diagonal, run)
    fell = point.f - trial.f
    decrease = jnp.where(hidden(state, trial.f), -0.5 * (before + after), fell)
    decrease = jnp.where(finite, decrease, -jnp.inf)
    positive = trust.promised > 0
    ratio = jnp.where(positive, decrease / jnp.where(positive, trust.promised, 1), -1)
    accepted = run.running & finite & (run.first | (ratio > ACCEPTED))
    if _model(run).control == "radius":
        next_trust = new_radius(trust, decrease, ratio, before, finite, accepted)
    else:
        next_trust = new_damping(trust, ratio, accepted)
    next_trust = next_trust._replace(idle=idle_trips(state, fell, finite, accepted))
    trust = where(run.running & ~run.first, next_trust, trust)
    trust = trust._replace(last=jnp.where(accepted, trust.length, trust.last))
    no, gave_up = jnp.zeros_like(accepted), run.running & (trust.idle >= IDLE_LIMIT)
    judged = Judgement(accepted, no, no, failed=gave_up, stalled=gave_up, moved=accepted)
    return RegionSearch(jnp.stack(trust)), Ratio(decrease, finite), judged


def _loses_a_column(state: LoopState, trial: Point, diagonal: Array, run: Run) -> Array:
    """Whether a trial that could be accepted went too far, onto a plateau of some parameter."""
    D, before = state.scales.curvature, state.point.linear.diagonal
    loses = lost_columns(diagonal, D, run.path.free(trial)) & ~lost_columns(before, D, None)
    looked_into = may_accept(state, trial.f, run) & ~run.first
    return jnp.any(loses) & looked_into & (trial.f > eps(trial.f.dtype) ** 2 * run.now.f_first)


def _model(run: Run) -> Model:
    """The model of the method, which every method of a trust region has."""
    model = run.method.qn.model
    assert isinstance(model, Model)
    return model


def _replan(
    iterations: int, state: LoopState, outcome: Outcome, run: Run, second: Any
) -> Replanned:
    """Correct the model by the trial, and find its minimum within the region."""
    new, trial, point, judged = outcome.point, outcome.trial, state.point, outcome.judged
    model = _model(run)
    s = trial.x - point.x
    diagonal = new.linear.diagonal
    D = jnp.ones_like(diagonal)  # in the space of residuals x keeps its units
    if model.matrix is not None:
        D = jnp.maximum(state.scales.curvature, jnp.sqrt(diagonal))
        D = jnp.where(run.first, _first_scales(D, new.x), D)
    scales = positive_scales(D)
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
    x_size = jnp.sqrt(dot(D * new.x, D * new.x))
    begins = FIRST_RADIUS * jnp.where(x_size > 0, x_size, jnp.sqrt(2 * jnp.abs(new.f)))
    trust = trust._replace(
        radius=jnp.where(run.first, begins, trust.radius),
        mu=jnp.where(run.first, _first_multiplier(model, new), trust.mu),
    )
    if model.matrix is None:
        proposal = propose_in_residuals(new, trust.mu, second)
    else:
        bend = None if model.bend is None else model.bend(approx)
        B = model.matrix(approx, new.linear)
        proposal = propose(model, B, new, scales, trust, bend, run.path, iterations)
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


def _first_scales(D: Array, x: Array) -> Array:
    """The scales at the start: all of xⱼ counts, at least by a millionth of what others do.

    A column next to 0, on a plateau of its parameter, would allow any step along it.
    """
    effect = D * jnp.abs(x)
    least = LEAST_EFFECT * jnp.max(effect) / jnp.where(x == 0, 1, jnp.abs(x))
    return jnp.where(x == 0, D, jnp.maximum(D, least))


def _first_multiplier(model: Model, first: Point) -> Array | float:
    """None with a radius; else a damping beside a diagonal of 1, or of JJᵀ."""
    if model.control == "radius":
        return 0.0
    if model.matrix is None:
        return FIRST_DAMPING_OF_RESIDUALS * jnp.max(jnp.diagonal(first.linear.K))
    return FIRST_DAMPING


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
    stepped = (run.tally.nit > 0) | (moved & ~run.first)
    ends = at_offset(offset) | (stepped & stands_still(full, trust.last, x_size))
    ends |= (new.f == 0) | (proposal.slope == 0)
    ends |= vanished(new.f, jnp.sqrt(jnp.sum((new.x * new.g) ** 2)), run.now.f_first)
    gave_up = outcome.judged.failed | (run.tally.without_progress >= FLAT_LIMIT - 1)
    ends |= gave_up & little_offset(offset, full, x_size)
    lost = no = jnp.zeros_like(moved)
    if _model(run).matrix is not None:
        lost = lost_column(diagonal, D, run.path.free(new), new.f, run.now.f_first)
    trust = trust._replace(
        mu=proposal.mu,
        length=proposal.length,
        fall=proposal.fall,
        promised=proposal.promised,
        offset=offset,
        full=full,
    )
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
