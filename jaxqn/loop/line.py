"""Line searches as globalizations: steps along a path, by Wolfe's conditions or others.

One search takes several trips. A trip whose step is accepted corrects H by the pair (s, y) and
starts the next search; a trip whose step is refused has s = y = 0, which changes nothing but the
state of the search.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import computed_once, eps, far_apart, last_digits, power_of_two, vectors, where
from jaxqn.linesearch import (
    LineSearch,
    agreement,
    expected_decrease,
    stopped_short,
    trial_along_gradient,
)
from jaxqn.loop.correction import correct, leave_saddle
from jaxqn.loop.evidence import assess_model, learn_curvature, trial_products
from jaxqn.loop.path import Path
from jaxqn.loop.protocol import (
    Globalization,
    Judgement,
    Outcome,
    Prospects,
    Replanned,
    Run,
    Slopes,
)
from jaxqn.loop.state import LoopState, Measures, Point

__all__ = ["line"]


@functools.cache
def line(linesearch: LineSearch) -> Globalization:
    """Steps x(alpha) along the path of the run, with alpha from a line search.

    Args:
      linesearch: sees phi(alpha) = f(x(alpha)) and its slope.

    Returns:
      A :class:`Globalization`.

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, chapter 3 and algorithm 6.1.
    """

    def init(zeros: ArrayTree, zero: Array, one: Array, path: Path) -> tuple[Any, Any]:
        return path.join(zeros, zeros), linesearch.init(zero, -one, one)

    def at(x: ArrayTree, alpha: Array, plan: Any, path: Path) -> ArrayTree:
        return path.at(x, alpha, plan)

    def measure(state: LoopState, trial: Point, run: Run) -> tuple[Array, Array]:
        g_size, jac_size, _ = _sizes(state, trial, run)
        return g_size, jac_size

    return Globalization(
        init,
        at,
        may_accept=lambda _state, f, run: run.running & jnp.isfinite(f),
        measure=measure,
        judge=functools.partial(_judge, linesearch),
        replan=functools.partial(_replan, linesearch),
    )


# Passes over vectors are functions, called wherever their results are used. Of short vectors XLA
# merges equal calls; of long ones it drops from each call what its caller does not use.


def _sizes(state: LoopState, trial: Point, run: Run) -> list[Array]:
    """The largest entries of the gradient by z and by x, and of a unit step in last digits of x."""
    g, step = run.path.gradient(trial), run.path.tangent(state.point, state.plan)
    digits = jax.tree.map(last_digits, step, state.point.x)
    by_x = run.path.stationarity(trial, state.x_scale, run.now.g_scale)
    if by_x is g:
        largest, digits = vectors.inf_norms(g, digits)
        return [largest, largest, digits]
    return vectors.inf_norms(g, by_x, digits)


def _judge(
    linesearch: LineSearch, state: LoopState, trial: Point, run: Run
) -> tuple[Any, Slopes, Judgement]:
    """Let the search judge the trial. A search that gives up still offers its lowest trial."""
    alpha, now, point, lowest = state.search.alpha, run.now, state.point, state.lowest
    dphi0, dphi = -now.g_scale * now.gHg, -now.g_scale * trial_products(state, trial, run)[0]
    bend = run.path.bend(
        point.x, trial, state.plan, lambda: now.g_scale * trial_products(state, trial, run)[1]
    )
    search, done, gave_up = linesearch.step(
        state.search, trial.f, dphi, *[] if bend is None else [bend]
    )
    # Give up once the next trial would not change x in floating point.
    shrinks = ~done & (search.alpha < alpha)
    gave_up |= run.compute_if(
        shrinks, lambda: search.alpha * _sizes(state, trial, run)[2] <= 1, shrinks
    )
    # Give up at once where the direction is no descent: a converged run taken up again has one.
    descent = dphi0 < 0
    accepted = run.running & (run.first | (done & descent))
    gave_up = run.running & ~accepted & (gave_up | ~descent)
    lower = (trial.f < lowest.f) & jnp.isfinite(trial.f) & jnp.isfinite(dphi)
    is_lowest = run.running & lower & ~accepted
    took_lowest = gave_up & (jnp.where(lower, trial.f, lowest.f) < point.f)
    accepted, gave_up, is_lowest, took_lowest = computed_once(
        accepted, gave_up, is_lowest, took_lowest
    )
    moved, failed = accepted | took_lowest, gave_up & ~took_lowest

    # STALLED: the search failed, values agree with slopes up to rounding, and the direction is −g
    # or promises a decrease below rounding. Where the search met noise, that is rounding.
    noise = jnp.maximum(now.noise, getattr(search, "noise", 0))

    def agree() -> Array:
        before, after = trial_products(state, trial, run)[1:]
        return agreement(point.f, trial.f, 0.5 * now.g_scale * (before + after), noise)

    values_agree = (
        run.compute_if(gave_up, agree, gave_up) & jnp.isfinite(trial.f) & jnp.isfinite(dphi0)
    )
    rounding = jnp.maximum(eps(point.f.dtype) * jnp.abs(point.f), noise)
    below_rounding = 0.5 * jnp.abs(dphi0) <= rounding
    # Learnt before the trial is committed: the extent, never negative, says so to XLA, which then
    # copies none of the trial's vectors.
    learned = learn_curvature(state, trial, moved, run)
    stalled = failed & values_agree & (state.flags.steepest | below_rounding) & ~(learned[1] < 0)
    judged = Judgement(accepted, took_lowest, is_lowest, failed, stalled, moved)
    endless = None if bend is None else bend.endless()
    return search, Slopes(dphi0, dphi, noise, endless, learned), judged


def _replan(
    linesearch: LineSearch, state: LoopState, outcome: Outcome, run: Run, second: Any
) -> Replanned:
    """Correct H by the pair, ask the model, restart where it is no use, and aim again."""
    new, g_scale, judged, path = outcome.point, outcome.g_scale, outcome.judged, run.path
    s = jax.tree.map(jnp.subtract, new.x, state.point.x)
    y = jax.tree.map(jnp.subtract, new.g, state.point.g)
    g_norm, jac_norm = _gradient_norms(outcome, run)
    approx, Hg, downhill, roots = correct(state, outcome, s, y, run, second)
    d = path.aim(new, Hg)
    now = run.now._replace(g_scale=g_scale, g_norm=g_norm, jac_norm=jac_norm)

    def squares() -> list[Array]:
        g = path.gradient(new)
        return vectors.products((d, g), (g, g), (d, d), (s, s), (new.x, new.x))

    curvature, now, prospects = assess_model(state, outcome, squares, roots, now, run)
    if downhill is not None:
        d, now, prospects = leave_saddle(new, d, downhill, now, prospects, judged)
        Hg = d
    plan = path.join(Hg, d)
    restarts, approx, new, plan, now, curvature = _restart(
        state, new, approx, plan, now, curvature, prospects, judged, run
    )
    steepest = restarts | (state.flags.steepest & (run.first | ~judged.moved))
    begins = judged.moved | restarts | prospects.doubts_values
    fresh = _aim(linesearch, state, outcome, new, now, steepest, prospects, run)
    search = where(begins, fresh, outcome.search)
    return Replanned(new, s, approx, curvature, plan, search, now, prospects, restarts, steepest)


def _gradient_norms(outcome: Outcome, run: Run) -> tuple[Array, Array]:
    """Largest entries of the next point's gradient by z and by x."""
    (g_size, jac_size), g_scale = outcome.sizes, run.now.g_scale
    lowest_g_size, lowest_jac_size = outcome.lowest.sizes
    accepted, moved = outcome.judged.accepted, outcome.judged.moved
    g_norm = jnp.where(moved, g_scale * jnp.where(accepted, g_size, lowest_g_size), run.now.g_norm)
    jac_norm = jnp.where(
        moved, g_scale * jnp.where(accepted, jac_size, lowest_jac_size), run.now.jac_norm
    )
    return g_norm, jac_norm


def _restart(
    state: LoopState,
    new: Point,
    approx: Any,
    plan: Any,
    now: Measures,
    curvature: ArrayTree,
    prospects: Prospects,
    judged: Judgement,
    run: Run,
) -> tuple[Array, Any, Point, Any, Measures, ArrayTree]:
    """Forget the curvature and aim along −g where H is of no use.

    That is after a failed search, without descent, and where squares of gradients are about to
    leave the range of the dtype.

    A run that has converged or stalled keeps the curvature that it found. By default it has stalled
    only along −g: a gradient above its noise doubts an H that promises nothing.
    """
    g_scale, gHg, settled = now.g_scale, now.gHg, prospects.settled
    descent = (gHg > 0) & jnp.isfinite(gHg)
    new_g_scale = jnp.where(state.flags.may_rescale, power_of_two(now.g_norm), g_scale)
    g_scale_drifted = (
        judged.moved
        & far_apart(new_g_scale, g_scale)
        & (now.jac_norm > run.tol.gtol)
        & ~prospects.at_minimum
    )
    believed = judged.stalled & (state.flags.steepest | (run.tol.noise_rtol == 0))
    gave_up = judged.failed & ~believed & ~prospects.doubts_values
    (restarts,) = computed_once(g_scale_drifted | (~settled & (gave_up | (run.running & ~descent))))
    approx = run.method.qn.reset(approx, restarts)

    factor = jnp.where(restarts, g_scale / new_g_scale, 1)

    def forget(given: Any) -> Any:
        _, _, g, root, extent = given  # not those from outside, which XLA would copy
        g = jax.tree.map(lambda g: factor.astype(g.dtype) * g, g)
        root = jax.tree.map(lambda r: jnp.sqrt(factor).astype(r.dtype) * r, root)
        free = run.path.gradient(new._replace(g=g))
        gg = vectors.products((free, free))[0]
        return run.path.join(free, free), gg, g, root, jnp.sqrt(factor) * extent

    # That the extent is among them orders this loop after every pass over its vectors, so that XLA
    # copies none of them.
    plan, gHg, g, curvature, extent = run.update_if(
        restarts, (plan, gHg, new.g, curvature, now.extent), forget
    )
    g_scale = jnp.where(restarts, new_g_scale, g_scale)
    now = now._replace(g_scale=g_scale, gHg=gHg, extent=extent)
    return restarts, approx, new._replace(g=g), plan, now, curvature


def _aim(
    linesearch: LineSearch,
    state: LoopState,
    outcome: Outcome,
    new: Point,
    now: Measures,
    steepest: Array,
    prospects: Prospects,
    run: Run,
) -> Any:
    """The next search, with its first trial (Nocedal & Wright, eq. 3.60)."""
    slope, length = -now.g_scale * now.gHg, jnp.sqrt(jnp.where(now.gHg > 0, now.gHg, 1))
    expected = jnp.full_like(new.f, jnp.inf)
    if run.method.qn.needs == "nothing":
        dphi0, dphi, *_ = outcome.slopes
        short = (
            outcome.judged.accepted
            & ~state.flags.steepest
            & stopped_short(state.search.alpha, dphi0, dphi)
        )
        expected = expected_decrease(new.f, prospects.decrease, short)
    expected = jnp.where(steepest, jnp.abs(new.f), expected)
    alpha = trial_along_gradient(
        expected,
        jnp.where(steepest, now.g_scale * length, slope),
        jnp.where(steepest, length, 1),
    )
    # A search may end higher by the noise that others met: slopes decide.
    return linesearch.init(new.f + now.noise, slope, alpha)
