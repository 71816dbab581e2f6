"""The loop: one objective site, one evaluation a trip.

A trip proposes x + alpha d, evaluates value and gradient there, and lets the line search judge.
When the step is taken, the pair (s, y) corrects the inverse Hessian and gives the next direction;
when it is not, the pair is zero and nothing changes but alpha. Line-search trials and iterations
are therefore the same trips, and a batch under ``vmap`` waits only for its slowest member's sum.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._numerics import dot, inf_norm, norm
from jaxqn._typing import Array
from jaxqn.linesearch import LineSearch
from jaxqn.linesearch.conditions import rounding_noise
from jaxqn.quasi_newton import QuasiNewton
from jaxqn.termination import Progress, Status, Tolerances, assess

__all__ = ["Counts", "LoopState", "Point", "run", "start", "trip"]


def select(condition: Array, this: Any, that: Any) -> Any:
    """``this`` where ``condition`` holds, else ``that``, leaf by leaf."""
    return jax.tree.map(functools.partial(jnp.where, condition), this, that)


class Point(NamedTuple):
    """A point with everything evaluated there.

    Attributes:
      x: parameters.
      f: value, shape ``()``.
      g: gradient, like ``x``.
      aux: auxiliary output of the objective, or ``None``.
    """

    x: Array
    f: Array
    g: Array
    aux: Any


class Counts(NamedTuple):
    """Counters, all int32.

    Attributes:
      nit: steps taken.
      nfev: evaluations of value and gradient.
      flat: consecutive steps without visible progress.
    """

    nit: Array
    nfev: Array
    flat: Array


class LoopState(NamedTuple):
    """Everything the loop carries; enough to continue a run exactly.

    Attributes:
      point: the current point.
      best: the lowest point of the current search, ``point`` at first.
      Hg: H g at ``point``; the direction is −Hg.
      search: state of the line search.
      approx: state of the inverse-Hessian approximation.
      steepest: whether the direction is the negative gradient.
      g0_norm: largest entry of the first gradient.
      g_best: the smallest such norm so far.
      counts: counters.
      status: :class:`jaxqn.Status`, int32.
    """

    point: Point
    best: Point
    Hg: Array
    search: Any
    approx: Any
    steepest: Array
    g0_norm: Array
    g_best: Array
    counts: Counts
    status: Array


def first_step(point: Point) -> Array:
    """The first trial along −g: a step of unit length, whatever the scale of f."""
    g_norm = norm(point.g)
    return 1 / jnp.where(g_norm > 0, g_norm, jnp.ones_like(g_norm))


def start(x: Array, aux: Any, qn: QuasiNewton, linesearch: LineSearch, H0: Array | None) -> LoopState:
    """The state before anything is evaluated: the first trip evaluates x itself."""
    dtype = x.dtype
    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
    nowhere = Point(x, f=jnp.full((), jnp.nan, dtype), g=jnp.zeros_like(x), aux=aux)
    return LoopState(
        point=nowhere,
        best=nowhere,
        Hg=jnp.zeros_like(x),
        search=linesearch.init(zero, -one, one),
        approx=qn.init(x, H0),
        steepest=jnp.ones((), bool),
        g0_norm=zero,
        g_best=jnp.full((), jnp.inf, dtype),
        counts=Counts(*(jnp.zeros((), jnp.int32),) * 3),
        status=jnp.int32(Status.RUNNING),
    )


def trip(
    state: LoopState,
    evaluate: Callable[[Array], Point],
    qn: QuasiNewton,
    linesearch: LineSearch,
    tol: Tolerances,
) -> LoopState:
    """Propose, evaluate, commit or hold, correct, assess."""
    point, counts = state.point, state.counts
    first = counts.nfev == 0

    # Propose and evaluate. This is the only place where the objective is called.
    trial = evaluate(point.x - state.search.alpha * state.Hg)

    # Judge. A failed search still has its lowest trial to offer.
    search = linesearch.step(state.search, trial.f, -dot(trial.g, state.Hg))
    accepted = first | search.done
    best = select(search.improved, trial, state.best)
    rescued = search.failed & ~accepted & (best.f < point.f)
    moved = accepted | rescued
    failed = search.failed & ~moved

    # Commit, or hold: then s = y = 0, and correcting changes nothing.
    new = select(accepted, trial, select(rescued, best, point))
    s, y = new.x - point.x, new.g - point.g
    approx, Hg = qn.advance(state.approx, s, y, new.g, state.Hg)
    slope = -dot(new.g, Hg)

    # A failed search, or no descent: forget the curvature once and try −g.
    lost = failed | ~(slope < 0)
    approx = qn.reset(approx, lost)
    Hg = jnp.where(lost, new.g, Hg)
    slope = jnp.where(lost, -dot(new.g, new.g), slope)
    steepest = jnp.where(moved, first | lost, state.steepest | lost)
    alpha0 = jnp.where(steepest, first_step(new), jnp.ones_like(slope))

    # Assess.
    g_norm = inf_norm(new.g)
    decrease = point.f - new.f
    progress = first | (decrease > rounding_noise(new.f)) | (g_norm < 0.9 * state.g_best)
    counts = Counts(
        nit=counts.nit + (moved & ~first).astype(jnp.int32),
        nfev=counts.nfev + 1,
        flat=jnp.where(moved, jnp.where(progress, 0, counts.flat + 1), counts.flat),
    )
    g0_norm = jnp.where(first, g_norm, state.g0_norm)
    expected = state.search.alpha * dot(point.g, state.Hg)
    status = assess(
        Progress(
            started=jnp.ones((), bool),
            finite=jnp.isfinite(new.f) & jnp.isfinite(g_norm),
            g_norm=g_norm,
            g0_norm=g0_norm,
            moved=moved & ~first,
            decrease=decrease,
            f=new.f,
            step=norm(s) / norm(new.x),
            flat=counts.flat,
            failed=failed & state.steepest,
            hidden=expected <= rounding_noise(point.f),
            nit=counts.nit,
            nfev=counts.nfev,
        ),
        tol,
    )
    return LoopState(
        point=new,
        best=select(moved, new, best),
        Hg=Hg,
        search=select(moved | lost, linesearch.init(new.f, slope, alpha0), search),
        approx=approx,
        steepest=steepest,
        g0_norm=g0_norm,
        g_best=jnp.minimum(state.g_best, g_norm),
        counts=counts,
        status=status,
    )


STICKY = (Status.STALLED, Status.LINE_SEARCH_FAILED, Status.NON_FINITE)
"""Ends that a larger budget or a looser tolerance does not undo."""


def revive(state: LoopState, tol: Tolerances) -> LoopState:
    """The state with the status it has under these tolerances and budgets, nothing evaluated."""
    zero, false = jnp.zeros_like(state.g0_norm), jnp.zeros((), bool)
    status = assess(
        Progress(
            started=state.counts.nfev > 0,
            finite=~false,
            g_norm=inf_norm(state.point.g),
            g0_norm=state.g0_norm,
            moved=false,
            decrease=zero,
            f=state.point.f,
            step=zero,
            flat=state.counts.flat,
            failed=false,
            hidden=false,
            nit=state.counts.nit,
            nfev=state.counts.nfev,
        ),
        tol,
    )
    sticky = jnp.isin(state.status, jnp.array([int(s) for s in STICKY], state.status.dtype))
    return state._replace(status=jnp.where(sticky, state.status, status))


def run(
    state: LoopState,
    evaluate: Callable[[Array], Point],
    qn: QuasiNewton,
    linesearch: LineSearch,
    tol: Tolerances,
) -> LoopState:
    """Trips until there is a status."""
    return jax.lax.while_loop(
        lambda s: s.status == Status.RUNNING,
        lambda s: trip(s, evaluate, qn, linesearch, tol),
        revive(state, tol),
    )
