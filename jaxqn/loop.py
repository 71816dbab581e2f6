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
from jaxqn._branches import only, rarely, select
from jaxqn._numerics import decided, eps, far_apart, last_digits, power_of_two
from jaxqn._scaling import in_units, out_of_units
from jaxqn._typing import Array, ArrayTree
from jaxqn.linesearch import LineSearch
from jaxqn.linesearch.conditions import agreement
from jaxqn.linesearch.initial import expected_decrease, parabola_step, stopped_short
from jaxqn.quasi_newton import QuasiNewton
from jaxqn.termination import (
    Status,
    Tolerances,
    assess,
    is_short,
    is_small,
    promises_little,
    within_gtol,
)

__all__ = ["LoopState", "Point", "lowest", "run", "start", "trip"]


def along(x: ArrayTree, alpha: Array, Hg: ArrayTree) -> ArrayTree:
    """The point x − alpha H g."""
    return jax.tree.map(lambda x, d: x - alpha * d, x, Hg)


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


class Trial(NamedTuple):
    """A point on the line x − alpha H g, which alpha gives back.

    Attributes:
      scalars: shape ``(4,)``: the step length alpha; the value f; the largest entry of g, and of
        the gradient outside the units of x.
      g: gradient, like the parameters.
      aux: auxiliary output of the objective, or ``None``.
    """

    scalars: Array
    g: ArrayTree
    aux: Any

    @property
    def alpha(self) -> Array:
        """Step length, shape ``()``."""
        return self.scalars[0]

    @property
    def f(self) -> Array:
        """Value, shape ``()``."""
        return self.scalars[1]


class LoopState(NamedTuple):
    """Everything the loop carries; enough to continue a run exactly.

    Points are held in the units ``x_scale``, and all else as follows from that. Gradients are held
    over a unit that keeps their squares in range, and H times it. The unit is the power of two next
    to the largest entry of the first gradient, so that it changes no digit, and is taken anew
    whenever the curvature is forgotten; it is 1 where an H0 was given.

    Attributes:
      point: the current point.
      best: the lowest trial of the current search; it counts only where it is lower than ``point``.
      Hg: H g at ``point``; the direction is −Hg.
      search: state of the line search.
      approx: state of the inverse-Hessian approximation.
      steepest: whether the direction is the negative gradient.
      free: whether the unit may be taken anew.
      scalars: shape ``(8,)``: the unit; the largest entry of the gradient at the first point, at
        the current one, there outside the units of x, and where it was smallest; gᵀH g, which the
        unit makes the slope along the direction; the lowest value of any point so far; xᵀx of the
        first point.
      counts: steps taken, evaluations, steps in a row without progress, and 1 if the gradient is
        as small as rounding may leave it and the model promises little; int32, shape ``(4,)``.
      status: :class:`jaxqn.Status`, int32.
      x_scale: powers of two like the parameters, or ``None`` for 1.
    """

    point: Point
    best: Trial
    Hg: ArrayTree
    search: Any
    approx: Any
    steepest: Array
    free: Array
    scalars: Array
    counts: Array
    status: Array
    x_scale: Any


def recover(x: ArrayTree, best: Trial, Hg: ArrayTree) -> Point:
    """The trial as a point."""
    return Point(along(x, best.alpha, Hg), best.f, best.g, best.aux)


def start(
    x: ArrayTree, aux: Any, qn: QuasiNewton, linesearch: LineSearch, H0: Any, x_scale: Any
) -> LoopState:
    """The state before anything is evaluated, all of it in units; the first trip evaluates x."""
    dtype, zeros = _stacks.tree_dtype(x), jax.tree.map(jnp.zeros_like, x)
    zero, one, inf = jnp.zeros((), dtype), jnp.ones((), dtype), jnp.full((), jnp.inf, dtype)
    return LoopState(
        point=Point(x, f=inf, g=zeros, aux=aux),
        best=Trial(jnp.stack([zero, inf, inf, inf]), g=zeros, aux=aux),
        Hg=zeros,
        search=linesearch.init(zero, -one, one),
        approx=qn.init(x, H0),
        steepest=jnp.array(H0 is None and qn.renew is None),
        free=jnp.array(H0 is None),
        scalars=jnp.stack([one, inf, inf, inf, inf, one, inf, zero]),
        counts=jnp.zeros((4,), jnp.int32),
        status=jnp.int32(Status.RUNNING),
        x_scale=x_scale,
    )


def trip(
    state: LoopState,
    evaluate: Callable[[ArrayTree, Array], Point],
    qn: QuasiNewton,
    linesearch: LineSearch,
    tol: Tolerances,
    hessian: Callable[[Array], Array],
) -> LoopState:
    """Propose, evaluate, commit or hold, correct, assess.

    A state that has ended is held: nothing but its scratch values changes.
    """
    point, best = state.point, state.best
    nit, nfev, flat, _ = state.counts
    known, g0_norm, g_norm, jac_norm, g_best, gHg, f_best, xx0 = state.scalars
    running = state.status == Status.RUNNING
    first = nfev == 0
    long = _stacks.is_long(point.x)
    maybe, where = functools.partial(rarely, long=long), functools.partial(only, long=long)

    # Propose and evaluate. This is the only place where the objective is called.
    alpha = state.search.alpha
    trial = evaluate(along(point.x, alpha, state.Hg), known)

    # What is asked of a vector at times only is a function, called wherever it is asked. Of short
    # vectors the compiler merges the calls; of long ones it drops from each what that does not use.
    def norms() -> list[Array]:
        digits = jax.tree.map(last_digits, state.Hg, point.x)
        if state.x_scale is None:
            largest, digits = _stacks.inf_norms(trial.g, digits)
            return [largest, largest, digits]
        return _stacks.inf_norms(trial.g, in_units(trial.g, state.x_scale), digits)

    largest, jac_largest = norms()[:2]
    unit = jnp.where(first & state.free, power_of_two(largest), known)

    # Judge. A failed search still has its lowest trial to offer.
    def products() -> list[Array]:
        s = jax.tree.map(jnp.subtract, trial.x, point.x)
        return _stacks.products((trial.g, state.Hg), (point.g, s), (trial.g, s))

    dphi0, dphi = -known * gHg, -known * products()[0]
    search, done, given_up = linesearch.step(state.search, trial.f, dphi)
    # A shorter trial is worth nothing once it leaves x as it is.
    shrinks = ~done & (search.alpha < alpha)
    given_up |= where(shrinks, lambda: search.alpha * norms()[2] <= 1, shrinks)
    # A direction that is no descent is given up at once: that of a converged run taken up again.
    descent = dphi0 < 0
    accepted = running & (first | (done & descent))
    given_up = running & ~accepted & (given_up | ~descent)
    lower = (trial.f < best.f) & jnp.isfinite(trial.f) & jnp.isfinite(dphi)
    keep = running & lower & ~accepted
    rescued = given_up & (jnp.where(lower, trial.f, best.f) < point.f)
    accepted, given_up, keep, rescued = decided(accepted, given_up, keep, rescued)
    moved, failed = accepted | rescued, given_up & ~rescued

    # Rounding hides what the search had to find. A quasi-Newton direction is believed where the
    # decrease that its model promises is less than the last digit of f.
    def agree() -> Array:
        before, after = products()[1:]
        return agreement(point.f, trial.f, 0.5 * known * (before + after))

    hidden = where(given_up, agree, given_up) & jnp.isfinite(trial.f) & jnp.isfinite(dphi0)
    unseen = 0.5 * jnp.abs(dphi0) <= eps(point.f.dtype) * jnp.abs(point.f)
    stalled = failed & hidden & (state.steepest | unseen)

    # Commit, or hold: then s = y = 0, and correcting changes nothing.
    def resolve(usual: tuple[Point, Trial]) -> tuple[Point, Trial]:
        this, best = usual
        tried = Trial(jnp.stack([alpha, this.f, largest, jac_largest]), this.g, this.aux)
        best = select(keep, tried, best)
        held = select(rescued, recover(point.x, best, state.Hg), point)
        g = jax.tree.map(lambda g: jnp.where(first, g / unit, g), this.g)
        return select(accepted, this._replace(g=g), held), best

    # Where vectors are long, a stalled step, which is never accepted, is named as well: this then
    # comes after every pass over the trial, and none of its vectors has to be copied.
    hold = first | ~accepted
    new, best = maybe(hold | stalled if long else hold, (trial, best), resolve)
    s = jax.tree.map(jnp.subtract, new.x, point.x)
    y = jax.tree.map(jnp.subtract, new.g, point.g)
    _, _, best_largest, best_jac = best.scalars
    g_norm = jnp.where(moved, known * jnp.where(accepted, largest, best_largest), g_norm)
    jac_norm = jnp.where(moved, known * jnp.where(accepted, jac_largest, best_jac), jac_norm)
    if qn.renew is None:
        approx, Hg = qn.advance(state.approx, s, y, new.g, state.Hg, moved)
    else:
        # Unbatched, a refused trial costs no Hessian; under vmap every trial does.
        renewed = functools.partial(qn.renew, state.approx)
        approx = jax.lax.cond(moved, lambda: renewed(hessian(new.x) / unit), lambda: state.approx)
        Hg = qn.apply(approx, new.g)

    def squares() -> list[Array]:
        return _stacks.products((Hg, new.g), (new.g, new.g), (Hg, Hg), (s, s), (new.x, new.x))

    # A gradient that is small beside the first is at a minimum where the model agrees.
    g0_norm = jnp.where(first, g_norm, g0_norm)
    near, small = within_gtol(tol, g_norm, g0_norm, jac_norm), is_small(tol, g_norm, g0_norm)
    gHg = where(moved, lambda: squares()[0], gHg)
    sizes = where(small | first, lambda: jnp.stack(squares()[2:]), jnp.zeros((3,), gHg.dtype))
    xx0 = jnp.where(first, sizes[2], xx0)
    decrease = point.f - new.f
    little = promises_little(new.f, decrease, 0.5 * unit * gHg, sizes, xx0)
    modest = moved & small & little

    # A failed search, no descent, or squares about to leave the range: forget the curvature, and
    # try −g. A run that has converged or stalled keeps the curvature that it found.
    descent = (gHg > 0) & jnp.isfinite(gHg)
    fresh = jnp.where(state.free, power_of_two(g_norm), unit)
    far = moved & far_apart(fresh, unit) & (jac_norm > tol.gtol) & ~(near & modest)
    (lost,) = decided(far | (~near & ((failed & ~stalled) | (running & ~descent))))
    approx = qn.reset(approx, lost)

    def forget(_: Any) -> tuple[ArrayTree, Array, ArrayTree]:
        factor = unit / fresh
        g = jax.tree.map(lambda g: factor.astype(g.dtype) * g, new.g)
        return g, factor**2 * squares()[1], g

    Hg, gHg, g = maybe(lost, (Hg, gHg, new.g), forget)
    new, unit = new._replace(g=g), jnp.where(lost, fresh, unit)
    steepest = lost | (state.steepest & (first | ~moved))

    # The first trial of the next search.
    slope, length = -unit * gHg, jnp.sqrt(jnp.where(gHg > 0, gHg, 1))
    expected = jnp.full_like(new.f, jnp.inf)
    if qn.renew is None:
        cautious = accepted & ~state.steepest & stopped_short(alpha, dphi0, dphi)
        expected = expected_decrease(new.f, decrease, cautious)
    expected = jnp.where(steepest, jnp.abs(new.f), expected)
    alpha0 = parabola_step(expected, jnp.where(steepest, unit * length, slope))
    fresh_search = linesearch.init(new.f, slope, alpha0 / jnp.where(steepest, length, 1))

    # Assess.
    short = where(tol.xtol > 0, lambda: is_short(s, new.x, tol.xtol), failed)
    fell = f_best - new.f > eps(new.f.dtype) * jnp.abs(new.f)
    progress = first | fell | (g_norm < 0.9 * g_best)
    stepped = moved & ~first
    flat = jnp.where(moved, jnp.where(progress, 0, flat + 1), flat)
    f_best, g_best = jnp.minimum(f_best, new.f), jnp.minimum(g_best, g_norm)
    tally = [nit + stepped.astype(nit.dtype), nfev + running.astype(nfev.dtype), flat]
    counts = jnp.stack([*tally, modest.astype(flat.dtype)])
    status = assess(
        tol,
        counts,
        finite=jnp.isfinite(new.f) & jnp.isfinite(g_norm),
        g_norm=g_norm,
        g0_norm=g0_norm,
        jac_norm=jac_norm,
        within_ftol=stepped & (decrease <= tol.ftol * jnp.abs(new.f)),
        within_xtol=stepped & short,
        failed=lost & state.steepest & ~moved,
        stalled=stalled | (near & failed),
    )
    none_lower = jnp.stack([jnp.zeros_like(new.f), new.f, g_norm, jac_norm])
    return LoopState(
        point=new,
        best=best._replace(scalars=jnp.where(moved, none_lower, best.scalars)),
        Hg=Hg,
        search=select(moved | lost, fresh_search, search),
        approx=approx,
        steepest=steepest,
        free=state.free,
        scalars=jnp.stack([unit, g0_norm, g_norm, jac_norm, g_best, gHg, f_best, xx0]),
        counts=counts,
        status=jnp.where(running, status, state.status),
        x_scale=state.x_scale,
    )


def lowest(state: LoopState, *, alone: bool = False) -> Point:
    """The lowest finite point seen, outside of all units.

    Of a run ``alone`` it is worked out in a loop of one trip, however short vectors are: what cuts
    leaves out of x and out of g is then the same to the compiler, and compiled once.
    """

    def chosen(point: Point) -> Point:
        best = select(state.best.f < point.f, recover(point.x, state.best, state.Hg), point)
        return best._replace(g=jax.tree.map(lambda g: state.scalars[0] * g, best.g))

    evaluated, long = state.counts[1] > 0, alone or _stacks.is_long(state.point.x)
    best = rarely(evaluated, state.point, chosen, long=long)
    return best._replace(x=out_of_units(best.x, state.x_scale), g=in_units(best.g, state.x_scale))


def revive(state: LoopState, tol: Tolerances) -> LoopState:
    """The state with the status it has under these tolerances and budgets, nothing evaluated."""
    _, g0_norm, g_norm, jac_norm, *_ = state.scalars
    status = assess(tol, state.counts, g_norm=g_norm, g0_norm=g0_norm, jac_norm=jac_norm)
    started = state.counts[1] > 0
    final = (state.status == Status.LINE_SEARCH_FAILED) | (state.status == Status.NON_FINITE)
    status = jnp.where(final, state.status, status)
    return state._replace(status=jnp.where(started, status, state.status))


def run(
    state: LoopState,
    evaluate: Callable[[ArrayTree, Array], Point],
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
