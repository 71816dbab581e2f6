"""A trust region for any function: steps to the minimum of a model of pairs or of Hessians.

    Nocedal & Wright, algorithm 6.2                      here
    s = argmin gᵀs + ½ sᵀB s over ‖s‖ ≤ Δ                plan = −s          (the trip before)
    ared/pred                                            judge
    x₊ = x + s where ared > 1e-4 pred                    commit
    Δ₊ by ared/pred                                      judge
    B₊ by SR1, of s and y = ∇f(x + s) − ∇f(x)            replan: learn, also from refused trials

A step that is refused has cost an evaluation with its gradient, and teaches the model as much as
any other. A method that needs the Hessian has it made at every new point instead (algorithm 4.1).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import last_digits, safe_divide, vectors, where
from jaxqn.linesearch import agreement, noise_shown, rounding_noise, trial_along_gradient
from jaxqn.loop.correction import bends_down, taught
from jaxqn.loop.evidence import assess_model, learn_curvature, trial_products
from jaxqn.loop.path import Path
from jaxqn.loop.protocol import Globalization, Judgement, Outcome, Replanned, Run
from jaxqn.loop.region import IDLE_LIMIT, region
from jaxqn.loop.state import LoopState, Measures, Point
from jaxqn.loop.trust import ACCEPTED, Trust, new_radius
from jaxqn.quasi_newton import Descent, Model, Quadratic

__all__ = ["trust_region", "within"]


GROWS = 0.5
"""The part of the promised decrease above which the region becomes twice the step."""

FORETOLD = 0.1
"""How close to 1 the decrease over its promise must be for the region to grow fast."""

FASTEST = 4.0
"""The next radius over a step whose decrease the model foretold."""

TEACHES = 3.0
"""How many times its promise a refused trial may increase f for its pair to say something of the
curvature near the point. Beyond, f has left the range of any quadratic model."""


CONTRADICTION = 1e3
"""A promise below so many roundings of f comes from a step so short that values and slopes agree,
unless one of them is wrong."""


class PairsSearch(NamedTuple):
    """How far the model is trusted, and what a refused trial contradicted.

    Attributes:
      scalars: a :class:`jaxqn.loop.trust.Trust` in one array.
      contradiction: by how much the values of the last trial contradicted its slopes, if it was
        refused; else ∞. A trial after it is about half as far from the point, or less.
    """

    scalars: Array
    contradiction: Array

    @property
    def alpha(self) -> Array:
        """The radius, shape ``()``."""
        return self.scalars[..., 0]


class Ratio(NamedTuple):
    """What a trial showed; the first five as in :class:`jaxqn.loop.protocol.Slopes`.

    Attributes:
      start: slope of f along the step, at its start.
      trial: the same at the trial.
      noise: of f, by which values contradict slopes near the point; 0 where none showed.
      endless: ``None``: no bounds.
      learned: curvature and extent.
      teaches: whether the pair of the trial says something of the curvature near the point.
    """

    start: Array
    trial: Array
    noise: Array
    endless: None
    learned: tuple[ArrayTree, Array]
    teaches: Array


ITERATIONS = 3
"""Factorisations that a step of a model of residuals may take."""


def within(model: Model | Quadratic) -> Globalization:
    """The trust region of a model."""
    return trust_region(model.radius) if isinstance(model, Quadratic) else region(ITERATIONS)


@functools.cache
def trust_region(radius: float | None) -> Globalization:
    """Steps within a trust region, by the model of pairs of the method.

    Args:
      radius: the first radius, or ``None`` for the length of a first trial along −g.

    Returns:
      A :class:`Globalization`.

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, algorithms 4.1 and 6.2.
    """
    return Globalization(
        init=_init,
        at=_at,
        may_accept=lambda _state, f, run: run.running & jnp.isfinite(f),
        measure=_measure,
        judge=_judge,
        replan=functools.partial(_replan, radius),
    )


def _init(zeros: ArrayTree, zero: Array, one: Array, path: Path) -> tuple[Any, PairsSearch]:
    never = jnp.full_like(zero, jnp.inf)
    trust = Trust(one, zero, 2 * one, zero, zero, one, never, never, never, zero)
    return path.join(zeros, zeros), PairsSearch(jnp.stack(trust), never)


def _at(x: ArrayTree, alpha: Array, plan: Any, path: Path) -> ArrayTree:
    return path.at(x, jnp.ones_like(alpha), plan)


def _measure(state: LoopState, trial: Point, run: Run) -> tuple[Array, Array]:
    g = run.path.gradient(trial)
    by_x = run.path.stationarity(trial, state.x_scale, run.now.g_scale)
    if by_x is g:
        size = vectors.inf_norm(g)
        return size, size
    g_size, jac_size = vectors.inf_norms(g, by_x)
    return g_size, jac_size


def _quadratic(run: Run) -> Quadratic:
    """The model of the method, which every method of such a region has."""
    quadratic = run.method.qn.model
    assert isinstance(quadratic, Quadratic)
    return quadratic


def _judge(state: LoopState, trial: Point, run: Run) -> tuple[PairsSearch, Ratio, Judgement]:
    """Compare the decrease with the promise; where rounding or noise hides it, slopes say it."""
    point, trust, scale = state.point, Trust(*state.search.scalars), run.now.g_scale
    _, before, after = trial_products(state, trial, run)
    before, after = scale * before, scale * after
    finite = jnp.isfinite(trial.f) & jnp.isfinite(after)
    fell = point.f - trial.f
    contradiction = jnp.abs(fell + 0.5 * (before + after))
    slopes = jnp.abs(before) + jnp.abs(after)
    shows = noise_shown(point.f, contradiction, state.search.contradiction, slopes)
    noise = jnp.maximum(run.now.noise, jnp.where(shows & finite, contradiction, 0))
    rounding = jnp.maximum(rounding_noise(point.f), noise)
    decrease = jnp.where(jnp.abs(fell) <= rounding, -0.5 * (before + after), fell)
    decrease = jnp.where(finite, decrease, -jnp.inf)
    positive = trust.promised > 0
    ratio = jnp.where(positive, safe_divide(decrease, trust.promised, positive), -1)
    accepted = run.running & finite & (run.first | (ratio > ACCEPTED))
    next_trust = new_radius(trust, decrease, ratio, before, finite, accepted)
    growth = jnp.where(jnp.abs(ratio - 1) <= FORETOLD, FASTEST, 2)
    longer = jnp.maximum(next_trust.radius, growth * trust.length)
    grows = accepted & (ratio > GROWS)
    next_trust = next_trust._replace(radius=jnp.where(grows, longer, next_trust.radius))
    step = jax.tree.map(jnp.subtract, trial.x, point.x)
    digits = vectors.inf_norm(jax.tree.map(last_digits, step, point.x))
    agree = agreement(point.f, trial.f, 0.5 * (before + after), noise) & finite
    # Noise exceeds what was seen of it, and what both slopes could explain.
    agree |= finite & (contradiction > slopes) & (contradiction <= 10 * noise)
    contradicts = ~agree & (trust.promised <= CONTRADICTION * rounding_noise(point.f))
    decided = (trust.promised <= rounding) | (digits <= 4) | ~positive | contradicts
    idle = jnp.where(accepted, 0, jnp.where(decided & finite, trust.idle + 1, trust.idle))
    idle = jnp.where(digits <= 1, IDLE_LIMIT, idle)
    next_trust = next_trust._replace(
        idle=jnp.where(accepted, 0, idle), last=jnp.where(accepted, trust.length, trust.last)
    )
    trust = where(run.running & ~run.first, next_trust, trust)
    failed = run.running & ~accepted & (trust.idle >= IDLE_LIMIT)
    no = jnp.zeros_like(accepted)
    stalled = failed & agree
    judged = Judgement(accepted, no, no, failed, stalled, moved=accepted)
    teaches = finite & run.running & ~run.first & (ratio >= -TEACHES)
    contradiction = jnp.where(finite & ~accepted, contradiction, jnp.inf)
    contradiction = jnp.where(run.running, contradiction, state.search.contradiction)
    search = PairsSearch(jnp.stack(trust), contradiction)
    learned = learn_curvature(state, trial, accepted, run)
    return search, Ratio(before, after, noise, None, learned, teaches), judged


def _replan(
    radius: float | None, state: LoopState, outcome: Outcome, run: Run, second: Any
) -> Replanned:
    """Teach the model the trial, and find its minimum within the region."""
    new, trial, point, judged = outcome.point, outcome.trial, state.point, outcome.judged

    def change(new: Array, old: Array) -> Array:
        return jnp.where(outcome.slopes.teaches, new - old, 0)

    s, y = jax.tree.map(change, trial.x, point.x), jax.tree.map(change, trial.g, point.g)
    approx, roots = taught(state, outcome, s, y, run, second)
    trust, now = Trust(*outcome.search.scalars), _measured(outcome, run)
    fresh, gradient = _fresh(radius, new, now)
    trust = where(run.first, fresh, trust)
    descent = _quadratic(run).step(approx, new.g, trust.radius, trust.mu)
    # What the new model promises of the point, whether or not the trial has moved there.
    now = now._replace(gHg=2 * descent.promised)
    run = run._replace(now=run.now._replace(gHg=now.gHg))
    if roots is not None:
        leaves = bends_down(new, descent, now, judged.moved, run)
        now = now._replace(jac_norm=jnp.where(leaves, jnp.inf, now.jac_norm))

    def squares() -> list[Array]:
        p = descent.p
        gg, pp, ss, xx = vectors.products((new.g, new.g), (p, p), (s, s), (new.x, new.x))
        return [now.gHg, gg, pp, ss, xx]

    curvature, now, prospects = assess_model(state, outcome, squares, roots, now, run)
    known = descent.is_minimum | judged.failed
    prospects = prospects._replace(
        settled=(prospects.settled & known) | (now.jac_norm <= run.tol.gtol),
        at_minimum=prospects.at_minimum & known,
    )
    believed = judged.stalled & (state.flags.steepest | (run.tol.noise_rtol == 0))
    descends = (descent.promised > 0) & jnp.isfinite(descent.promised)
    restarts = run.running & ~prospects.settled & ((judged.failed & ~believed) | ~descends)
    approx = run.method.qn.reset(approx, restarts)
    p = jax.tree.map(lambda p, q: jnp.where(restarts, q, p), descent.p, gradient)
    planned = _planned(trust, descent, now)
    trust = where(restarts, fresh, planned)
    steepest = restarts | (state.flags.steepest & (run.first | ~judged.moved))
    plan = jax.tree.map(jnp.negative, p)
    step = jax.tree.map(lambda s: jnp.where(judged.moved, s, 0), s)
    return Replanned(
        new,
        step,
        approx,
        curvature,
        run.path.join(plan, plan),
        PairsSearch(jnp.stack(trust), jnp.where(restarts, jnp.inf, outcome.search.contradiction)),
        now._replace(gHg=2 * trust.promised / now.g_scale),
        prospects,
        restarts,
        steepest,
    )


def _measured(outcome: Outcome, run: Run) -> Measures:
    """The measures of the next point so far."""
    (g_size, jac_size), moved, scale = outcome.sizes, outcome.judged.moved, run.now.g_scale
    return run.now._replace(
        g_scale=outcome.g_scale,
        g_norm=jnp.where(moved, scale * g_size, run.now.g_norm),
        jac_norm=jnp.where(moved, scale * jac_size, run.now.jac_norm),
    )


def _fresh(radius: float | None, new: Point, now: Measures) -> tuple[Trust, ArrayTree]:
    """The region where no curvature is known, and the step along −g to its border."""
    length = jnp.sqrt(vectors.vdot(new.g, new.g))
    if radius is None:
        reach = length * trial_along_gradient(jnp.abs(new.f) / now.g_scale, length, length)
    else:
        reach = jnp.full_like(length, radius)
    reach = jnp.where(length > 0, reach, 1)
    t = safe_divide(reach, length, length > 0)
    p = jax.tree.map(lambda g: -t.astype(g.dtype) * g, new.g)
    zero, never = jnp.zeros_like(length), jnp.full_like(length, jnp.inf)
    trust = Trust(
        radius=reach,
        mu=safe_divide(length, reach, reach > 0),
        growth=zero,
        length=reach,
        fall=zero,
        promised=now.g_scale * reach * length,
        last=never,
        offset=never,
        full=never,
        idle=zero,
    )
    return trust, p


def _planned(trust: Trust, descent: Descent, now: Measures) -> Trust:
    """The region with what is known of the step to try."""
    return trust._replace(
        mu=descent.mu,
        length=jnp.sqrt(vectors.vdot(descent.p, descent.p)),
        fall=descent.fall,
        promised=now.g_scale * descent.promised,
    )
