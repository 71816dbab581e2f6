"""The loop: one objective site, one evaluation a trip.

A trip proposes a point, evaluates value and gradient there, and judges it. A refused trial and an
accepted step are the same trip, so that line-search trials and iterations share one loop: a batch
under ``vmap`` waits for the largest *sum* of evaluations, not for the slowest search of every
iteration. ("Trip" is the compiler's word for one pass through the body of a loop.)

What a method is, the loop does not know. Three values say it (:mod:`jaxqn.loop.protocol`):

- an inverse-Hessian approximation H (:mod:`jaxqn.quasi_newton`), which learns the pair
  s = x₊ − x, y = g₊ − g of every step;
- a globalization, which makes a point from a step size, judges what was found there, and says where
  to go next. ``line(linesearch)`` is the one of Nocedal & Wright, chapter 3;
- within it a line search (:mod:`jaxqn.linesearch`), which sees phi(alpha) and phi'(alpha) only.

Two examples, trip by trip:

    BFGS, N&W algorithm 6.1                      here
    p = −H g                                     plan = H g            (the trip before)
    alpha by Wolfe's conditions, 3.6             at, judge             (a trip per trial)
    x₊ = x + alpha p                             commit
    s = x₊ − x, y = g₊ − g, H₊ by 6.17           replan: correct
    ‖g‖ small?                                   conclude

    Newton's method, N&W section 3.3             here
    B = ∇²f(x) made positive definite            replan: correct, which calls ``second``
    p = −B⁻¹ g, alpha by Wolfe's conditions      plan, at, judge, commit as above

A trial that is held leaves s = y = 0, and no update of H changes anything for the zero pair. A run
that has ended is held as well, so that the lanes of a batch may end one by one.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import eps, power_of_two, update_if, vectors, where
from jaxqn.loop.path import Path, straight
from jaxqn.loop.protocol import Judgement, Method, Outcome, Replanned, Run
from jaxqn.loop.state import Flags, LineTrial, LoopState, Measures, Point, Scales, Tally
from jaxqn.loop.status import Status
from jaxqn.loop.termination import Tolerances, assess, is_short
from jaxqn.loop.units import (
    from_scaled,
    gradient_from_scaled,
    gradient_to_scaled,
    to_scaled,
    units_of_zeros,
)

__all__ = ["lowest_point", "run", "run_watched", "start", "trip"]

Evaluate = Callable[[ArrayTree, Point, Array, Callable[[Array], Array]], Point]
"""``(z, point, g_scale, may_accept) -> Point``, its gradient divided by ``g_scale``: the objective.

``point`` is where the step to z began, and ``may_accept`` says of a value whether more of the trial
is needed.
"""

Second = Callable[..., Array]
"""Second derivatives, for a method that needs them: ``z -> `` the Hessian, or ``(z, v) -> `` those
of the residuals along v."""

OnVectors = Callable[[Any], tuple[Evaluate, Second, Path]]
"""``x_scale -> `` the problem over z in these units: its objective, and the path of its steps."""


def start(
    first: Point, method: Method, H0: Any, x_scale: Any, path: Path, *, given: bool
) -> LoopState:
    """The state before the first trip, which evaluates ``first.x``.

    The other leaves of ``first`` are shapes. The run is in units of ``x_scale``, if ``given``.
    """
    x, aux = first.x, first.aux
    dtype, zeros = vectors.tree_dtype(x), jax.tree.map(jnp.zeros_like, x)
    zero, one, inf = jnp.zeros((), dtype), jnp.ones((), dtype), jnp.full((), jnp.inf, dtype)
    lowest = LineTrial(jnp.stack([zero, inf, inf, inf]), g=zeros, aux=aux)
    plan, search = method.globalization.init(zeros, zero, one, path)
    measures = Measures(
        g_scale=one,
        g_norm=inf,
        jac_norm=inf,
        least_g_norm=inf,
        gHg=one,
        least_f=inf,
        f_first=zero,
        xx_first=zero,
        extent=zero,
        noise=zero,
    )
    needs_nothing = method.qn.needs == "nothing"
    return LoopState(
        point=first._replace(f=inf, g=zeros),
        lowest=lowest,
        plan=plan,
        search=search,
        approx=method.qn.init(x, H0),
        flags=Flags(
            steepest=jnp.array(H0 is None and needs_nothing),
            may_rescale=jnp.array(H0 is None and method.qn.needs != "jacobian"),
            may_choose_units=jnp.array(H0 is None and not given),
        ),
        scalars=jnp.stack(measures),
        counts=jnp.zeros((4,), jnp.int32),
        status=jnp.int32(Status.RUNNING),
        scales=Scales(x_scale, curvature=zeros),
    )


def run(state: LoopState, on_vectors: OnVectors, method: Method, tol: Tolerances) -> LoopState:
    """Trips until there is a status."""
    return run_watched(state, on_vectors, method, tol, (), lambda seen, _before, _after: seen)[0]


def run_watched(
    state: LoopState,
    on_vectors: OnVectors,
    method: Method,
    tol: Tolerances,
    seen: Any,
    watch: Callable[[Any, LoopState, LoopState], Any],
) -> tuple[LoopState, Any]:
    """The same, with ``watch(seen, before, after) -> seen`` after every trip."""

    def once(carry: tuple[LoopState, Any]) -> tuple[LoopState, Any]:
        before, seen = carry
        after = trip(before, on_vectors, method, tol)
        return after, watch(seen, before, after)

    return jax.lax.while_loop(
        lambda carry: carry[0].status == Status.RUNNING, once, (_revive(state, tol), seen)
    )


def trip(state: LoopState, on_vectors: OnVectors, method: Method, tol: Tolerances) -> LoopState:
    """Propose, evaluate, measure, judge, commit or hold, correct and aim again, conclude."""
    evaluate, second, path = on_vectors(state.x_scale)
    globalization, this = method.globalization, _begin(state, method, path, tol)
    x = globalization.at(state.point.x, state.search.alpha, state.plan, path)
    may_accept = functools.partial(globalization.may_accept, state, run=this)
    # The only place where the objective is called:
    trial = evaluate(x, state.point, this.now.g_scale, may_accept)
    if method.qn.needs == "nothing" and state.x_scale is not None:
        state, trial = _choose_units(state, trial, this)
        if path is not straight:
            this = this._replace(path=on_vectors(state.x_scale)[2])
    sizes, g_scale = _measure(state, trial, this)
    search, slopes, judged = globalization.judge(state, trial, this)
    point, lowest = _commit(state, trial, sizes, g_scale, judged, this)
    outcome = Outcome(trial, sizes, g_scale, slopes, judged, search, point, lowest)
    then = globalization.replan(state, outcome, this, second)
    now, tally, status = _conclude(state, then, judged, this)
    none_lower = jnp.stack([jnp.zeros_like(point.f), point.f, now.g_norm, now.jac_norm])
    return LoopState(
        point=then.point,
        lowest=lowest._replace(scalars=jnp.where(judged.moved, none_lower, lowest.scalars)),
        plan=then.plan,
        search=then.search,
        approx=then.approx,
        flags=state.flags._replace(steepest=then.steepest),
        scalars=jnp.stack(now),
        counts=tally,
        status=jnp.where(this.running, status, state.status),
        scales=state.scales._replace(curvature=then.curvature),
    )


def _begin(state: LoopState, method: Method, path: Path, tol: Tolerances) -> Run:
    """Names for what this trip starts from."""
    tally, now = Tally(*state.counts), Measures(*state.scalars)
    running = state.status == Status.RUNNING
    first = tally.nfev == 0
    branch = vectors.branching_pays((state.point.x, state.point.linear))
    return Run(method, path, tol, now, tally, running, first, branch)


def _choose_units(state: LoopState, trial: Point, this: Run) -> tuple[LoopState, Point]:
    """At the first point, units for parameters whose value there says nothing of their size."""
    chooses = this.first & state.flags.may_choose_units
    units = jax.tree.map(
        lambda u: jnp.where(chooses, u, 1), units_of_zeros(trial.x, trial.f, trial.g)
    )
    x, g = to_scaled(trial.x, units), gradient_to_scaled(trial.g, units)
    scales = state.scales._replace(x_scale=from_scaled(state.x_scale, units))
    return state._replace(scales=scales), trial._replace(x=x, g=g)


def _measure(state: LoopState, trial: Point, this: Run) -> tuple[tuple[Array, Array], Array]:
    """The size of the trial's gradient, and what gradients are divided by from now on."""
    sizes = this.method.globalization.measure(state, trial, this)
    g_scale = jnp.where(
        this.first & state.flags.may_rescale, power_of_two(sizes[0]), this.now.g_scale
    )
    return sizes, g_scale


def _commit(
    state: LoopState,
    trial: Point,
    sizes: tuple[Array, Array],
    g_scale: Array,
    judged: Judgement,
    this: Run,
) -> tuple[Point, LineTrial]:
    """The next point and the lowest trial of the search. A held run keeps its point: s = y = 0."""
    alpha, point = state.search.alpha, state.point
    recovered = functools.partial(_recovered, this.method, this.path, state.plan)

    def resolve(given: tuple[Point, LineTrial]) -> tuple[Point, LineTrial]:
        trial, lowest = given
        tried = LineTrial(jnp.stack([alpha, trial.f, *sizes]), trial.g, trial.aux)
        lowest = where(judged.is_lowest, tried, lowest)
        held = where(judged.took_lowest, recovered(point, lowest), point)
        g = jax.tree.map(lambda g: jnp.where(this.first, g / g_scale, g), trial.g)
        return where(judged.accepted, trial._replace(g=g), held), lowest

    # `stalled` implies `~accepted`. Named as well, it orders a branch after every pass over the
    # trial, so that XLA copies none of its vectors.
    hold = this.first | ~judged.accepted
    hold = hold | judged.stalled if this.branch else hold
    return this.update_if(hold, (trial, state.lowest), resolve)


def _recovered(method: Method, path: Path, plan: Any, point: Point, lowest: LineTrial) -> Point:
    """The lowest trial from ``point`` as a point: its x is made again from its alpha."""
    x = method.globalization.at(point.x, lowest.alpha, plan, path)
    return Point(x, lowest.f, lowest.g, lowest.aux, point.linear)


def _conclude(
    state: LoopState, then: Replanned, judged: Judgement, this: Run
) -> tuple[Measures, Array, Array]:
    """Progress, budgets and status: the measures, counts and status of the next state."""
    tol, moved, new, now, prospects = this.tol, judged.moved, then.point, then.now, then.prospects
    short = this.compute_if(
        tol.xtol > 0, lambda: is_short(then.step, new.x, tol.xtol), judged.failed
    )
    fell = now.least_f - new.f > eps(new.f.dtype) * jnp.abs(new.f)
    fell &= ~prospects.negligible
    progress = this.first | fell | (now.g_norm < 0.9 * now.least_g_norm)
    stepped = moved & ~this.first
    nit, nfev, flat, _ = this.tally
    flat = jnp.where(moved, jnp.where(progress, 0, flat + 1), flat)
    least_f = jnp.minimum(now.least_f, new.f)
    least_g_norm = jnp.minimum(now.least_g_norm, now.g_norm)
    tally = Tally(
        nit=nit + stepped.astype(nit.dtype),
        nfev=nfev + this.running.astype(nfev.dtype),
        without_progress=flat,
        at_minimum=prospects.at_minimum.astype(flat.dtype),
    )
    counts = jnp.stack(tally)
    status = assess(
        tol,
        counts,
        finite=jnp.isfinite(new.f) & jnp.isfinite(now.g_norm),
        jac_norm=now.jac_norm,
        within_ftol=stepped & (prospects.decrease <= tol.ftol * jnp.abs(new.f)),
        within_xtol=stepped & short,
        failed=then.restarts & state.flags.steepest & ~moved,
        stalled=(judged.stalled & ~then.restarts & ~prospects.doubts_values)
        | (prospects.settled & judged.failed),
        unbounded=prospects.unbounded,
        singular=prospects.singular,
    )
    return now._replace(least_f=least_f, least_g_norm=least_g_norm), counts, status


def lowest_point(state: LoopState, method: Method, path: Path, *, alone: bool = False) -> Point:
    """The lowest finite point seen: x and the gradient by x, whatever the units of the run.

    With ``alone``, for a run that is not a lane of a batch, this is a loop of one trip even where
    vectors are short: XLA then compiles what cuts leaves out of x and out of g only once.
    """

    def chosen(point: Point) -> Point:
        lower = state.lowest.f < point.f
        best = where(lower, _recovered(method, path, state.plan, point, state.lowest), point)
        return best._replace(g=jax.tree.map(lambda g: state.g_scale * g, best.g))

    branch = alone or vectors.branching_pays(state.point.x)
    best = update_if(state.nfev > 0, state.point, chosen, branch=branch)
    x, g = from_scaled(best.x, state.x_scale), gradient_from_scaled(best.g, state.x_scale)
    return best._replace(x=x, g=g)


def _revive(state: LoopState, tol: Tolerances) -> LoopState:
    """The state with the status that it has under these tolerances and budgets."""
    now = Measures(*state.scalars)
    status = assess(tol, state.counts, jac_norm=now.jac_norm)
    started = state.nfev > 0
    ends = (Status.LINE_SEARCH_FAILED, Status.NON_FINITE, Status.UNBOUNDED, Status.SINGULAR)
    final = jnp.any(state.status == jnp.array(ends, state.status.dtype))
    status = jnp.where(final, state.status, status)
    return state._replace(status=jnp.where(started, status, state.status))
