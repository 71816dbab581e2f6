"""A line search for equations that needs no derivative, as a globalization.

A step along −d, d = H F, is taken where

    ‖F(x − alpha d)‖ ≤ (1 + eta_k − sigma alpha²) ‖F(x)‖,    Σ eta_k < ∞,

so that some step always is: where H is far from the inverse Jacobian, ‖F‖ may rise a little. Li and
Fukushima's term is sigma ‖alpha d‖²; with ‖F‖ in its place the test is the same in all units of x
and F. After refused trials in a row, or without progress, the pairs are forgotten and products with
the Jacobian say how to go on: along F, or along JᵀF if the model of F promises more there.

References:
  Li & Fukushima, Optim. Methods Softw. 13 (2000), eq. 2.5; La Cruz, Martínez & Raydan, Math. Comp.
  75 (2006), for the step after a refused trial; Kelley, Iterative Methods for Linear and Nonlinear
  Equations, 1995, chapters 7 and 8.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import eps, safe_divide, update_if, vectors, where
from jaxqn.loop.jacobian_products import Aim, by_products, steeper
from jaxqn.loop.path import Path, along
from jaxqn.loop.protocol import Globalization, Judgement, Outcome, Prospects, Replanned, Run
from jaxqn.loop.state import LoopState, Point

__all__ = ["derivative_free"]

SIGMA = 1e-4
"""The part of ‖F‖ by which a full step must lower it."""

RISE = 0.1
"""The first eta_k; they fall like 1/k²."""

FAR = 100.0
"""The value over that at the point above which a refused trial teaches nothing of the point."""

FADE = 0.3
"""What is left after a step of how much F has been seen to vary."""

POOR = 0.1
"""The part of the promised decrease below which H has failed."""

FAILS = 2
"""Poor trials in a row, after which the pairs are forgotten."""

SLOW = 0.01
"""The part of ½‖F‖² by which some trips together must lower it."""

SLOW_LIMIT = 30
"""Trips in a row that may miss that."""

SHORT = 1e-3
"""The longest step over ‖x‖ after which pairs say how F varies there."""

MOST_INEXACT = 0.1
"""The largest relative residual of an inexact Newton step."""


class Line(NamedTuple):
    """Numbers of the search, which a state stores as one array.

    Attributes:
      alpha: the step length to try.
      fails: poor trials in a row.
      exact: 1 where products with the Jacobian at the current point were taken.
      slow: trips in a row without a decrease worth the name.
      f_slow: the value that these are compared with.
      x_size: the larger of ‖x‖ and ‖x₋‖.
      d_size: ‖d‖.
      reach: the longest step to try.
      cosine: ‖JᵀF‖ over ‖F‖ and the size of J, at the last products.
      promise: the part of ½‖F‖² that the model of F takes off by a full step.
    """

    alpha: Array
    fails: Array
    exact: Array
    slow: Array
    f_slow: Array
    x_size: Array
    d_size: Array
    reach: Array
    cosine: Array
    promise: Array


class LineSearch(NamedTuple):
    """The numbers of a :class:`Line` in one array."""

    scalars: Array

    @property
    def alpha(self) -> Array:
        """The step length, shape ``()``."""
        return self.scalars[..., 0]


@functools.cache
def derivative_free(*, evaluates_first: bool = True) -> Globalization:
    """The line search of Li and Fukushima; the method of the run is an ``InverseJacobian``.

    Args:
      evaluates_first: whether products with the Jacobian are taken at the first point; else H = I
        or what the caller gave is believed there.
    """
    return Globalization(
        init=_init,
        at=lambda x, alpha, plan, _path: along(x, alpha, plan),
        may_accept=lambda _state, f, run: run.running & jnp.isfinite(f),
        measure=_measure,
        judge=_judge,
        replan=functools.partial(_replan, evaluates_first),
    )


def _init(zeros: ArrayTree, zero: Array, one: Array, path: Path) -> tuple[ArrayTree, LineSearch]:
    del path
    inf = jnp.full_like(zero, jnp.inf)
    line = Line(one, zero, zero, zero, inf, zero, zero, inf, one, one)
    return zeros, LineSearch(jnp.stack(line))


def _measure(state: LoopState, trial: Point, run: Run) -> tuple[Array, Array]:
    del state, run
    size = vectors.inf_norm(trial.g)
    return size, size


def _judge(state: LoopState, trial: Point, run: Run) -> tuple[LineSearch, Any, Judgement]:
    point, line = state.point, Line(*state.search.scalars)
    finite = jnp.isfinite(trial.f)
    count = run.tally.nit.astype(line.alpha.dtype)
    bound = 1 + RISE / (1 + count) ** 2 - SIGMA * line.alpha**2
    accepted = finite & (jnp.sqrt(trial.f) <= bound * jnp.sqrt(point.f))
    accepted = run.running & (run.first | accepted)
    part = line.alpha * point.f
    bend = trial.f + (2 * line.alpha - 1) * point.f
    shorter = safe_divide(part, bend, jnp.isfinite(bend) & (bend > 0))
    shorter = jnp.where(finite, jnp.clip(shorter, 0.1, 0.5), 0.1) * line.alpha
    f = jnp.where(accepted, trial.f, point.f)
    fast = f <= (1 - SLOW) * line.f_slow
    length = line.alpha * line.d_size
    promised = line.promise * line.alpha * (2 - line.alpha) * point.f
    kept = point.f - trial.f
    poor, went_well = ~(finite & (kept >= POOR * promised)), kept >= 0.5 * promised
    longer = jnp.where(went_well, jnp.maximum(line.reach, 2 * length), line.reach)
    after = line._replace(
        reach=jnp.where(poor, shorter * line.d_size, longer),
        fails=jnp.where(poor, line.fails + finite.astype(f.dtype), 0),
        slow=jnp.where(fast, 0, line.slow + finite.astype(f.dtype)),
        f_slow=jnp.where(fast, f, line.f_slow),
        exact=jnp.where(accepted, 0, line.exact),
    )
    line = where(run.running & ~run.first, after, line)
    line = line._replace(f_slow=jnp.where(run.first, trial.f, line.f_slow))
    no = jnp.zeros_like(accepted)
    # Whether a run that is stuck ends, `_replan` says: `settled`, with products at the point.
    judged = Judgement(accepted, no, no, failed=run.running, stalled=no, moved=accepted)
    return LineSearch(jnp.stack(line)), None, judged


def _replan(
    evaluates_first: bool, state: LoopState, outcome: Outcome, run: Run, second: Any
) -> Replanned:
    """Learn the pair, take products with the Jacobian where that is due, and aim again."""
    new, point, moved = outcome.point, state.point, outcome.judged.moved
    qn: Any = run.method.qn
    line = Line(*outcome.search.scalars)
    trial, steps = outcome.trial, moved & ~run.first
    learns = run.running & ~run.first & (trial.f <= FAR * point.f)
    s = jax.tree.map(lambda a, b: jnp.where(learns, a - b, 0), trial.x, point.x)
    y = jax.tree.map(lambda a, b: jnp.where(learns, a - b, 0), trial.g, point.g)
    approx = qn.update(state.approx, s, y)
    ss, xx, last_xx = vectors.products((s, s), (new.x, new.x), (point.x, point.x))
    before = jnp.where(run.first, 0, last_xx)
    x_size = jnp.where(moved, jnp.sqrt(jnp.maximum(xx, before)), line.x_size)
    steep = steeper(state.scales.curvature, jnp.where(learns, FADE, 1), (y, jnp.sqrt(ss)))
    doubts = (line.fails >= FAILS) | (line.slow >= SLOW_LIMIT / 2)
    doubts |= line.alpha * line.d_size <= 4 * eps(xx.dtype) * x_size
    due = moved if qn.every_step else doubts & (line.exact == 0)
    due = run.running & jnp.where(run.first, evaluates_first, due)
    d, promise = state.plan, line.promise
    if not qn.every_step:  # a trial that taught nothing leaves the direction
        aims = learns | run.first
        d = where(aims, qn.apply(approx, new.g), state.plan)
        promise = jnp.where(aims, 1, promise)
    rtol = jnp.clip(0.9 * safe_divide(new.f, point.f, steps), 1e-6, MOST_INEXACT)

    def renew(aim: Aim) -> Aim:
        return by_products(qn, aim, new, jnp.where(steps, rtol, MOST_INEXACT), second)

    aim = update_if(due, Aim(approx, d, steep, line.cosine, promise), renew, branch=True)
    (dd,) = vectors.products((aim.d, aim.d))
    line = line._replace(
        alpha=jnp.minimum(1, line.reach / jnp.where(dd > 0, jnp.sqrt(dd), 1)),
        fails=jnp.where(due, 0, line.fails),
        exact=jnp.where(due, 1, line.exact),
        x_size=x_size,
        d_size=jnp.sqrt(dd),
        cosine=aim.cosine,
        promise=aim.promise,
    )
    prospects = _prospects(state, outcome, line, aim.steep, jnp.sqrt(ss), run)
    size = jnp.where(moved, outcome.sizes[0], run.now.g_norm)
    now = run.now._replace(
        g_norm=size,
        jac_norm=size,
        f_first=jnp.where(run.first, new.f, run.now.f_first),
        xx_first=jnp.where(run.first, vectors.vdot(new.x, new.x), run.now.xx_first),
    )
    no = jnp.zeros_like(moved)
    search = LineSearch(jnp.stack(line))
    step = jax.tree.map(lambda a: jnp.where(moved, a, 0), s)
    return Replanned(new, step, aim.approx, aim.steep, aim.d, search, now, prospects, no, no)


def _prospects(
    state: LoopState, outcome: Outcome, line: Line, steep: ArrayTree, last: Array, run: Run
) -> Prospects:
    """Whether the point is a root to rounding, or the run is stuck elsewhere."""
    new, moved = outcome.point, outcome.judged.moved
    digit = eps(new.f.dtype)
    known = (line.exact > 0) | (moved & ~run.first & (last <= SHORT * line.x_size))

    def within(rtol: float) -> Array:
        limit = rtol * line.x_size

        def excess(F: Array, steep: Array) -> Array:
            return jnp.abs(F) > limit.astype(F.dtype) * steep

        over = [jnp.any(a) for a in jax.tree.leaves(jax.tree.map(excess, new.g, steep))]
        return ~jnp.any(jnp.stack(over))

    root = known & within(max(1e-12, 8 * digit))
    vanished = vectors.vdot(new.x, new.x) <= 1e-16 * run.now.xx_first
    root |= (new.f == 0) | (~run.first & vanished & (new.f <= 1e-32 * run.now.f_first))
    nearly = within(digit**0.5) & (line.d_size <= digit**0.5 * line.x_size)
    short = line.alpha * line.d_size <= 4 * digit * line.x_size
    stationary = line.cosine <= digit**0.5
    stuck = (short | (line.slow >= SLOW_LIMIT) | stationary) & (line.exact > 0) & run.running
    ends = run.running & (root | (stuck & nearly & ~stationary))
    no = jnp.zeros_like(ends)
    return Prospects(
        decrease=state.point.f - new.f,
        negligible=no,
        settled=stuck | (outcome.sizes[0] <= run.tol.gtol),
        at_minimum=ends,
        doubts_values=no,
        unbounded=no,
        singular=stuck & ~ends & stationary & (run.tally.nit == 0),
    )
