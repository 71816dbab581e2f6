"""Powell's hybrid method as a globalization: dogleg steps towards a root within a trust region.

The model of F at a point is F + J p. Its steepest descent of ½‖F + J p‖² leads from the point to
the Cauchy step, a line from there to −H F, where the model vanishes; the step is where that path
leaves the region ‖D p‖ ≤ radius. J is a quasi-Newton approximation, so that no derivative of F is
needed beside the Jacobian that it started from; every trial, taken or refused, teaches it a pair.
Where that does not help, the Jacobian is evaluated again.

References:
  Powell, A hybrid method for nonlinear equations (1970); Moré, Garbow & Hillstrom, MINPACK (1980),
  hybrd; Dennis & Schnabel, Numerical Methods, 1983, sections 6.4 and 6.5; Nocedal & Wright, 2006,
  section 11.2.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import dot, eps, safe_divide, update_if, where
from jaxqn.loop.path import Path
from jaxqn.loop.protocol import Globalization, Judgement, Outcome, Prospects, Replanned, Run
from jaxqn.loop.state import LoopState, Point

__all__ = ["hybrid"]

ACCEPTED = 1e-4
"""The least part of the promised decrease of ½‖F‖² that a step must keep."""

POOR = 0.1
"""The part below which the model has failed."""

FAILS = 2
"""Poor trials in a row, after which the Jacobian is evaluated again."""

FIRST_RADIUS = 100.0
"""The first radius over ‖D x‖."""

SLOW = 0.01
"""The part of ½‖F‖² by which some trips together must lower it."""

SLOW_LIMIT = 20
"""Trips in a row that may miss that."""


SHORT = 1e-3
"""The longest step over ‖D x‖ after which a J made of pairs says how F varies there."""


FAR = 100.0
"""The value over that at the point above which a refused trial teaches nothing of the point."""


class Region(NamedTuple):
    """Numbers of the region, which a state stores as one array.

    Attributes:
      radius: the longest step, in the norm of D.
      promised: by how much the model says that the step lowers ½‖F‖².
      length: ‖D p‖ of the step.
      fails: poor trials in a row.
      goods: others in a row.
      exact: 1 where the Jacobian was evaluated at the current point.
      slow: trips in a row without a decrease worth the name.
      f_slow: the value that these are compared with.
    """

    radius: Array
    promised: Array
    length: Array
    fails: Array
    goods: Array
    exact: Array
    slow: Array
    f_slow: Array


class HybridSearch(NamedTuple):
    """The numbers of a :class:`Region` in one array."""

    scalars: Array

    @property
    def alpha(self) -> Array:
        """The radius, shape ``()``."""
        return self.scalars[..., 0]


class HybridPlan(NamedTuple):
    """Where the next trial is, and how large x has been lately.

    Attributes:
      p: the step.
      extent: the larger of |x| and |x₋|, entry by entry.
    """

    p: Array
    extent: Array


@functools.cache
def hybrid(*, evaluates_first: bool = True) -> Globalization:
    """Powell's hybrid method; the method of the run is a dense ``InverseJacobian``.

    Args:
      evaluates_first: whether the Jacobian is evaluated at the first point; else the caller gave
        one.
    """
    return Globalization(
        init=_init,
        at=lambda x, _alpha, plan, _path: x + plan.p,
        may_accept=lambda _state, f, run: run.running & jnp.isfinite(f),
        measure=_measure,
        judge=_judge,
        replan=functools.partial(_replan, evaluates_first),
    )


def _init(zeros: ArrayTree, zero: Array, one: Array, path: Path) -> tuple[HybridPlan, HybridSearch]:
    del path
    region = Region(one, zero, zero, zero, zero, zero, zero, jnp.full_like(zero, jnp.inf))
    return HybridPlan(zeros, zeros), HybridSearch(jnp.stack(region))


def _measure(state: LoopState, trial: Point, run: Run) -> tuple[Array, Array]:
    del state, run
    size = jnp.max(jnp.abs(trial.g))
    return size, size


def _judge(state: LoopState, trial: Point, run: Run) -> tuple[HybridSearch, Any, Judgement]:
    point, region = state.point, Region(*state.search.scalars)
    finite = jnp.isfinite(trial.f)
    fell = jnp.where(finite, point.f - trial.f, -jnp.inf)
    positive = region.promised > 0
    ratio = jnp.where(positive, safe_divide(fell, region.promised, positive), -1.0)
    accepted = run.running & finite & (run.first | (ratio > ACCEPTED))
    after = _new_region(region, ratio, finite)
    f = jnp.where(accepted, trial.f, point.f)
    fast = f <= (1 - SLOW) * region.f_slow
    after = after._replace(
        slow=jnp.where(fast, 0, region.slow + finite.astype(f.dtype)),
        f_slow=jnp.where(fast, f, region.f_slow),
    )
    region = where(run.running & ~run.first, after, region)
    region = region._replace(
        f_slow=jnp.where(run.first, trial.f, region.f_slow),
        exact=jnp.where(accepted, 0, region.exact),
    )
    no = jnp.zeros_like(accepted)
    # Whether a run that is stuck ends, `_replan` says: `settled`, with a Jacobian at the point.
    judged = Judgement(accepted, no, no, failed=run.running, stalled=no, moved=accepted)
    return HybridSearch(jnp.stack(region)), finite, judged


def _new_region(region: Region, ratio: Array, finite: Array) -> Region:
    """The radius after a trial, as in MINPACK: twice a step that went well, half of another.

    Of the radius, not of the step, where the trial has changed J: the next step is another anyway.
    """
    poor = ~(ratio >= POOR)
    goods = jnp.where(poor, 0, region.goods + 1)
    longer = jnp.where((ratio >= 0.5) | (goods > 1), 2 * region.length, 0)
    radius = jnp.maximum(region.radius, longer)
    radius = jnp.where(jnp.abs(ratio - 1) <= 0.1, 2 * region.length, radius)
    shorter = jnp.minimum(region.radius, region.length)
    half = 0.5 * jnp.where(region.exact > 0, shorter, region.radius)
    shorter = jnp.where(finite, half, 0.1 * shorter)
    return region._replace(
        radius=jnp.where(poor, shorter, radius),
        fails=jnp.where(poor, region.fails + finite.astype(ratio.dtype), 0),
        goods=goods,
    )


def _replan(
    evaluates_first: bool, state: LoopState, outcome: Outcome, run: Run, second: Any
) -> Replanned:
    """Learn the pair, evaluate the Jacobian where that is due, and aim again."""
    new, trial, point, judged = outcome.point, outcome.trial, state.point, outcome.judged
    qn: Any = run.method.qn
    region = Region(*outcome.search.scalars)
    finite = outcome.slopes
    s, y = trial.x - point.x, trial.g - point.g
    learns = run.running & ~run.first & finite & (trial.f <= FAR * point.f)
    D, moved = state.scales.curvature, judged.moved
    approx = qn.update(state.approx, jnp.where(learns, s, 0), jnp.where(learns, y, 0), D)
    extent = jnp.maximum(jnp.abs(new.x), jnp.abs(point.x))
    extent = jnp.where(moved, jnp.where(run.first, jnp.abs(new.x), extent), state.plan.extent)
    x_size = _norm(D * extent)
    doubts = (region.fails >= FAILS) | (region.slow >= SLOW_LIMIT / 2)
    doubts |= region.radius <= 4 * eps(D.dtype) * x_size
    due = moved & qn.every_step if qn.every_step else doubts & (region.exact == 0)
    due = run.running & ((run.first & evaluates_first) | (due & ~run.first))
    approx = update_if(due, approx, lambda approx: qn.renew(approx, second(new.x)), branch=True)
    columns = jnp.sqrt(jnp.sum(approx.J**2, axis=0))
    D = jnp.where(run.first | due, jnp.maximum(D, columns), D)
    D = jnp.where(run.first & (D == 0), 1, D)
    x_size = _norm(D * extent)
    exact = due | (region.exact > 0)
    newton = -qn.apply(approx, new.g)
    full = _norm(D * newton)
    begins = FIRST_RADIUS * jnp.where(x_size > 0, x_size, jnp.where(full > 0, full, 1))
    region = region._replace(radius=jnp.where(run.first, begins, region.radius))
    g = dot(new.g, approx.J)
    p = _dogleg(approx.J, newton, g / D, D, region.radius)
    Jp = dot(approx.J, p)
    solved = _norm(new.g + dot(approx.J, newton)) <= 0.1 * _norm(new.g)
    full = jnp.where(solved, full, jnp.inf)
    region = region._replace(
        promised=-(dot(new.g, Jp) + 0.5 * dot(Jp, Jp)),
        length=_norm(D * p),
        fails=jnp.where(due, 0, region.fails),
        exact=exact.astype(D.dtype),
    )
    rows = dot(jnp.abs(approx.J), extent)
    prospects = _prospects(state, outcome, rows, columns, D, full, x_size, g, region, run)
    size = jnp.where(moved, outcome.sizes[0], run.now.g_norm)
    now = run.now._replace(
        g_norm=size,
        jac_norm=size,
        f_first=jnp.where(run.first, new.f, run.now.f_first),
        xx_first=jnp.where(run.first, dot(new.x, new.x), run.now.xx_first),
    )
    no = jnp.zeros_like(moved)
    step = jnp.where(moved, s, 0)
    search, plan = HybridSearch(jnp.stack(region)), HybridPlan(p, extent)
    return Replanned(new, step, approx, D, plan, search, now, prospects, no, no)


def _norm(v: Array) -> Array:
    return jnp.sqrt(dot(v, v))


def _dogleg(J: Array, newton: Array, g: Array, D: Array, radius: Array) -> Array:
    """The step on Powell's path within the region; ``g`` is D⁻¹JᵀF."""
    gg, steepest = dot(g, g), -g / D
    Jd = dot(J, steepest)
    curvature = dot(Jd, Jd)
    to_cauchy = safe_divide(gg, curvature, curvature > 0)
    cauchy = to_cauchy * steepest
    at_cauchy, full = _norm(D * cauchy), _norm(D * newton)
    g_size = jnp.sqrt(gg)
    short = safe_divide(radius, g_size, g_size > 0) * steepest
    line = D * (newton - cauchy)
    a, b, c = dot(line, line), dot(D * cauchy, line), radius**2 - at_cauchy**2
    root = b + jnp.sqrt(jnp.maximum(b**2 + a * c, 0))
    t = jnp.clip(safe_divide(c, root, root > 0), 0, 1)
    bent = jnp.where(at_cauchy >= radius, short, cauchy + t * (newton - cauchy))
    usable = jnp.isfinite(full)
    along = jnp.where(at_cauchy >= radius, short, cauchy)
    return jnp.where(usable & (full <= radius), newton, jnp.where(usable, bent, along))


def _prospects(
    state: LoopState,
    outcome: Outcome,
    rows: Array,
    columns: Array,
    D: Array,
    full: Array,
    x_size: Array,
    g: Array,
    region: Region,
    run: Run,
) -> Prospects:
    """Whether the point is a root to rounding, or the run is stuck elsewhere."""
    new, digit = outcome.point, eps(D.dtype)
    F = jnp.abs(new.g)
    within = max(1e-12, 8 * digit)
    # A J made of pairs may be far from the Jacobian at the point. After a short step the last pair
    # says how F varies there.
    last = Region(*state.search.scalars).length
    varies = _norm(outcome.trial.g - state.point.g) * x_size
    known = (last <= SHORT * x_size) & (_norm(new.g) * last <= 10 * within * varies)
    known = (region.exact > 0) | (outcome.judged.moved & known) | (new.f == 0)
    root = known & jnp.all(within * rows >= F)
    # At x = 0 no digit of x explains F. Where J is singular there, x comes to it slowly.
    vanished = dot(new.x, new.x) <= 1e-16 * run.now.xx_first
    root |= ~run.first & vanished & (new.f <= 1e-32 * run.now.f_first)
    nearly = jnp.all(digit**0.5 * rows >= F) & (full <= digit**0.5 * x_size)
    size = jnp.where(columns > 0, columns, 1) * jnp.sqrt(2 * new.f)
    stationary = jnp.all(jnp.abs(g) <= digit**0.5 * size)
    stuck = (region.radius <= 4 * digit * x_size) | (region.slow >= SLOW_LIMIT) | stationary
    stuck &= (region.exact > 0) & run.running
    ends = run.running & (root | (stuck & nearly))
    lost = jnp.any(columns <= digit**0.75 * D) | (stationary & (run.tally.nit == 0))
    no = jnp.zeros_like(ends)
    return Prospects(
        decrease=state.point.f - new.f,
        negligible=no,
        settled=stuck | (outcome.sizes[0] <= run.tol.gtol),
        at_minimum=ends,
        doubts_values=no,
        unbounded=no,
        singular=stuck & ~ends & lost,
    )
