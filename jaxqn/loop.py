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

from jaxqn import _stacks
from jaxqn._numerics import eps, inf_norm
from jaxqn._typing import Array, ArrayTree
from jaxqn.linesearch import LineSearch
from jaxqn.linesearch.conditions import rounding_noise
from jaxqn.quasi_newton import QuasiNewton
from jaxqn.termination import Status, Tolerances, assess

__all__ = ["LoopState", "Point", "lowest", "run", "start", "trip"]


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

    x: ArrayTree
    f: Array
    g: ArrayTree
    aux: Any


class LoopState(NamedTuple):
    """Everything the loop carries; enough to continue a run exactly.

    Attributes:
      point: the current point.
      best: the lowest trial of the current search; it counts only where it is lower than ``point``.
      Hg: H g at ``point``; the direction is −Hg.
      search: state of the line search.
      approx: state of the inverse-Hessian approximation.
      steepest: whether the direction is the negative gradient.
      norms: shape ``(4,)``: the unit in which the approximation measures gradients, and the largest
        entry of the gradient at the first point, at the current one, and where it was smallest.
        The unit is the first of these norms, or 1 where an H0 was given; it keeps the squares of
        gradients in range. H is held times the unit.
      counts: steps taken, evaluations, and steps in a row without progress; int32, shape ``(3,)``.
      status: :class:`jaxqn.Status`, int32.
    """

    point: Point
    best: Point
    Hg: ArrayTree
    search: Any
    approx: Any
    steepest: Array
    norms: Array
    counts: Array
    status: Array


def first_step(f: Array, g_length: Array) -> Array:
    """Length of the first step along −g: min(1, 2 |f|/‖g‖), whatever the scale of f.

    2 |f|/‖g‖ is where a parabola with this slope that bottoms out at 0 has its minimum.
    """
    distance = 2 * jnp.abs(f) / g_length
    return jnp.where(distance > 0, jnp.minimum(distance, 1), jnp.ones_like(distance))


def start(x: ArrayTree, aux: Any, qn: QuasiNewton, linesearch: LineSearch, H0: Any) -> LoopState:
    """The state before anything is evaluated: the first trip evaluates x itself."""
    dtype, zeros = _stacks.tree_dtype(x), jax.tree.map(jnp.zeros_like, x)
    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
    nowhere = Point(x, f=jnp.full((), jnp.inf, dtype), g=zeros, aux=aux)
    return LoopState(
        point=nowhere,
        best=nowhere,
        Hg=zeros,
        search=linesearch.init(zero, -one, one),
        approx=qn.init(x, H0),
        steepest=jnp.array(H0 is None and qn.renew is None),
        # A unit of 0 is yet to be taken from the first gradient.
        norms=jnp.array([0 if H0 is None else 1, jnp.inf, jnp.inf, jnp.inf], dtype),
        counts=jnp.zeros((3,), jnp.int32),
        status=jnp.int32(Status.RUNNING),
    )


def trip(
    state: LoopState,
    evaluate: Callable[[ArrayTree], Point],
    qn: QuasiNewton,
    linesearch: LineSearch,
    tol: Tolerances,
    hessian: Callable[[Array], Array],
) -> LoopState:
    """Propose, evaluate, commit or hold, correct, assess."""
    point = state.point
    nit, nfev, flat = state.counts
    first = nfev == 0

    # Propose and evaluate. This is the only place where the objective is called.
    alpha = state.search.alpha
    trial = evaluate(jax.tree.map(lambda x, d: x - alpha * d, point.x, state.Hg))

    # Judge. A failed search still has its lowest trial to offer.
    dphi0, dphi = _stacks.products((point.g, state.Hg), (trial.g, state.Hg))
    dphi0, dphi = -dphi0, -dphi
    search, done, given_up = linesearch.step(state.search, trial.f, dphi)
    lower = (trial.f < state.best.f) & jnp.isfinite(trial.f) & jnp.isfinite(dphi)
    best = select(lower, trial, state.best)
    choice = jnp.argmax(jnp.stack([first | done, given_up & (best.f < point.f), given_up, ~first]))
    accepted, rescued, failed = choice == 0, choice == 1, choice == 2
    moved = choice < 2

    # Commit, or hold: then s = y = 0, and correcting changes nothing.
    new = select(accepted, trial, select(rescued, best, point))
    g_norm = inf_norm(new.g)
    unit, g0_norm, _, g_best = state.norms
    unit = jnp.where(unit > 0, unit, jnp.where(g_norm > 0, g_norm, 1))
    s = jax.tree.map(jnp.subtract, new.x, point.x)
    y = jax.tree.map(lambda new, old: (new - old) / unit, new.g, point.g)
    g = jax.tree.map(lambda new: new / unit, new.g)
    if qn.renew is None:
        approx, Hg = qn.advance(state.approx, s, y, g, state.Hg, moved)
    else:
        # Unbatched, a refused trial costs no Hessian; under vmap every trial does.
        renewed = functools.partial(qn.renew, state.approx)
        approx = jax.lax.cond(moved, lambda: renewed(hessian(new.x) / unit), lambda: state.approx)
        Hg = qn.apply(approx, g)

    # A failed search, or no descent: forget the curvature once and try −g.
    gg, gHg, ss, xx = _stacks.products((g, g), (g, Hg), (s, s), (new.x, new.x))
    lost = failed | ~(gHg > 0)
    approx = qn.reset(approx, lost)
    Hg = select(lost, g, Hg)
    steepest = lost | (state.steepest & (first | ~moved))
    g_length = jnp.sqrt(jnp.where(gg > 0, gg, jnp.ones_like(gg)))
    alpha0 = jnp.where(steepest, first_step(new.f, unit * g_length) / g_length, 1)
    fresh_search = linesearch.init(new.f, -unit * jnp.where(lost, gg, gHg), alpha0)

    # Assess.
    decrease = point.f - new.f
    progress = first | (decrease > eps(new.f.dtype) * jnp.abs(new.f)) | (g_norm < 0.9 * g_best)
    step = moved & ~first
    flat = jnp.where(moved, jnp.where(progress, 0, flat + 1), flat)
    counts = jnp.stack([nit + step.astype(nit.dtype), nfev + 1, flat])
    g0_norm = jnp.where(first, g_norm, g0_norm)
    status = assess(
        tol,
        counts,
        finite=jnp.isfinite(new.f) & jnp.isfinite(g_norm),
        g_norm=g_norm,
        g0_norm=g0_norm,
        within_ftol=step & (decrease <= tol.ftol * jnp.abs(new.f)),
        within_xtol=step & (ss <= tol.xtol**2 * xx),
        failed=lost & state.steepest & ~moved,
        hidden=_agree(point.f, dphi0, trial.f, dphi, alpha),
    )
    return LoopState(
        point=new,
        best=best._replace(f=jnp.where(moved, new.f, best.f)),
        Hg=Hg,
        search=select(moved | lost, fresh_search, search),
        approx=approx,
        steepest=steepest,
        norms=jnp.stack([unit, g0_norm, g_norm, jnp.minimum(g_best, g_norm)]),
        counts=counts,
        status=status,
    )


def _agree(phi0: Array, dphi0: Array, phi: Array, dphi: Array, alpha: Array) -> Array:
    """Whether two values agree with their slopes, by the trapezoidal rule, up to rounding."""
    change = phi - phi0
    error = jnp.abs(change - 0.5 * alpha * (dphi0 + dphi))
    return error <= rounding_noise(phi0) + 0.5 * jnp.abs(change)


def lowest(state: LoopState) -> Point:
    """The lowest finite point seen."""
    return select(state.best.f < state.point.f, state.best, state.point)


def revive(state: LoopState, tol: Tolerances) -> LoopState:
    """The state with the status it has under these tolerances and budgets, nothing evaluated."""
    false = jnp.zeros((), bool)
    status = assess(
        tol,
        state.counts,
        finite=~false,
        g_norm=state.norms[2],
        g0_norm=state.norms[1],
        within_ftol=false,
        within_xtol=false,
        failed=false,
        hidden=false,
    )
    started = state.counts[1] > 0
    final = (state.status == Status.LINE_SEARCH_FAILED) | (state.status == Status.NON_FINITE)
    status = jnp.where(final, state.status, status)
    return state._replace(status=jnp.where(started, status, state.status))


def run(
    state: LoopState,
    evaluate: Callable[[ArrayTree], Point],
    qn: QuasiNewton,
    linesearch: LineSearch,
    tol: Tolerances,
    hessian: Callable[[Array], Array],
) -> LoopState:
    """Trips until there is a status."""
    return jax.lax.while_loop(
        lambda s: s.status == Status.RUNNING,
        lambda s: trip(s, evaluate, qn, linesearch, tol, hessian),
        revive(state, tol),
    )
