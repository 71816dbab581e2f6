"""What a run has shown: curvature along each parameter, and with it the noise of the gradient.

A pair s, y with y = B s bounds every diagonal entry of the Hessian from below (Cauchy-Schwarz),

    yᵢ² / sᵀy ≤ Bᵢᵢ    for positive semidefinite B,

and a run keeps D, the largest bound of late. Trials that the search refuses count as well. What was
measured elsewhere fades: with every step, with the bend of f along the step, and with the part of
its own size by which a parameter moved. So the start has no say in it for long, however far it is.

The search measures the noise of f, where its values contradict their slopes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import computed_once, eps, vectors
from jaxqn.linesearch import rounding_noise
from jaxqn.loop.protocol import Judgement, Outcome, Prospects, Run
from jaxqn.loop.state import LoopState, Measures, Point
from jaxqn.loop.termination import (
    LITTLE_OF_F,
    at_gradient_noise,
    falls_without_bound,
    nothing_left,
    promises_little,
    vanished,
)

__all__ = ["assess_model", "learn_curvature", "trial_products"]

FLATTEST = 3e5
"""How much flatter than every parameter alone a direction through several of them may be."""

FADE = 0.77
"""What is left of the root of an earlier bound after a step."""

FADE_OF_EXTENT = 0.95
"""The same of the extent: where x* = 0, only earlier points know a size of x."""

UNMOVED = 1e-3
"""Moving a parameter by this part of the extent, over √D, is not moving it."""


class Evidence(NamedTuple):
    """Sums over a point, for a D and gradients over ``g_scale``.

    Attributes:
      extent: Σ Dᵢ xᵢ², the square of ``Measures.extent``.
      ratio: Σ gᵢ²/Dᵢ.
      xg: Σ xᵢ² gᵢ².
    """

    extent: Array
    ratio: Array
    xg: Array


def near_an_end(state: LoopState, run: Run) -> Array:
    """Whether evidence is worth its passes: for short vectors always.

    For long ones, where the model promises √eps |f| at most, or little is left of the first |f|.
    """
    if not run.branch:
        return run.running
    now, digit, size = run.now, eps(state.point.f.dtype), jnp.abs(state.point.f)
    little = 0.5 * now.g_scale * now.gHg <= digit**0.5 * size
    return run.running & (little | (size <= digit * now.f_first))


def trial_products(state: LoopState, trial: Point, run: Run) -> list[Array]:
    """Inner products of the gradient with the tangent, and of s with both ends' gradients."""
    s = jax.tree.map(jnp.subtract, trial.x, state.point.x)
    tangent = run.path.tangent(trial, state.plan)
    return vectors.products((trial.g, tangent), (state.point.g, s), (trial.g, s))


def learn_curvature(
    state: LoopState, trial: Point, moved: Array, run: Run
) -> tuple[ArrayTree, Array]:
    """The roots of the bounds D on the curvature after a trial, and the extent that x had."""
    now, point = run.now, state.point

    def learn(given: tuple[ArrayTree, Array]) -> tuple[ArrayTree, Array]:
        root, extent = given
        _, before, after = trial_products(state, trial, run)
        sy = after - before
        # A difference of slopes that is all rounding shows nothing.
        least = 100 * eps(sy.dtype) * jnp.maximum(jnp.abs(before), jnp.abs(after))
        shows = (sy > least) & jnp.isfinite(sy) & jnp.isfinite(trial.f)
        # The curvature changes along s by this fraction of its mean, if it changes evenly.
        error = jnp.abs(trial.f - point.f - 0.5 * now.g_scale * (before + after))
        beyond = jnp.maximum(error - rounding_noise(point.f), 0)
        bend = 12 * beyond / (now.g_scale * jnp.where(shows, sy, 1))
        shows &= run.running & ~run.first & (moved | (bend < 1))
        kept = jnp.where(moved, 1 / (1 + bend), 1)
        share = vectors.inf_norm(_shares(root, trial.x, point.x, extent))
        fade = jnp.where(moved, FADE * kept / (1 + share), 1)
        length = jnp.sqrt(jnp.where(shows, sy, 1))

        def larger(root: Array, new: Array, old: Array) -> Array:
            bound = jnp.abs(new - old) / length.astype(root.dtype)
            return jnp.where(shows, jnp.maximum(fade.astype(root.dtype) * root, bound), root)

        root = jax.tree.map(larger, root, trial.g, point.g)
        shorter = jnp.where(moved, FADE_OF_EXTENT * kept, 1) * extent
        return root, jnp.where(shows, shorter, extent)

    return run.update_if(near_an_end(state, run), (state.scales.curvature, now.extent), learn)


def _shares(root: ArrayTree, new: ArrayTree, old: ArrayTree, extent: Array) -> ArrayTree:
    """By what part of its own size each parameter moves."""

    def of_leaf(root: Array, new: Array, old: Array) -> Array:
        size = root * jnp.abs(new) + (UNMOVED * extent).astype(root.dtype)
        return jnp.where(size > 0, root * (new - old) / jnp.where(size > 0, size, 1), 0)

    return jax.tree.map(of_leaf, root, new, old)


def assess_model(
    state: LoopState,
    outcome: Outcome,
    squares: Any,
    roots: ArrayTree | None,
    now: Measures,
    run: Run,
) -> tuple[ArrayTree, Measures, Prospects]:
    """What the run and the corrected model say of the next point.

    Args:
      state: before the trip.
      outcome: the trial and the next point.
      squares: gives gᵀH g, gᵀg, and the squares of H g, of the step and of x.
      roots: those of the diagonal of the Hessian, if the method has it.
      now: measures of the next point so far.
      run: what the phases of the trip share.

    Returns:
      The curvature along each parameter, the measures, and the :class:`Prospects`.
    """
    new, judged, tol = outcome.point, outcome.judged, run.tol
    gHg = run.compute_if(judged.moved, lambda: squares()[0], run.now.gHg)
    decrease = state.point.f - new.f
    worthwhile = near_an_end(state, run)
    curvature, extent = outcome.slopes.learned
    curvature = curvature if roots is None else roots
    seeks = worthwhile | run.first
    nothing = jnp.zeros((3,), gHg.dtype)
    sizes = run.compute_if(seeks, lambda: jnp.stack(squares()[2:]), nothing)
    now = now._replace(
        gHg=gHg,
        extent=extent,
        f_first=_first_scale(state, outcome.trial, run),
        xx_first=jnp.where(run.first, sizes[2], run.now.xx_first),
        noise=jnp.maximum(run.now.noise, outcome.slopes.noise),
    )

    def summed() -> Array:
        return jnp.stack(_evidence(new, curvature, now, sizes[2], run))

    seen = Evidence(*run.compute_if(seeks, summed, nothing))
    # Noise that a search met at large values says nothing of small ones.
    modest = now.noise <= eps(new.f.dtype) ** 0.5 * jnp.abs(new.f)
    now = now._replace(
        extent=jnp.maximum(extent, jnp.sqrt(seen.extent)), noise=jnp.where(modest, now.noise, 0)
    )
    quiet, ends = _at_minimum(seen, new, decrease, sizes, now, judged, run)
    asked = worthwhile & ~run.first & (tol.noise_rtol > 0)
    quiet, ends = computed_once(asked & quiet, asked & ends)
    digit = eps(new.f.dtype)
    falls = falls_without_bound(outcome.trial.f, outcome.slopes.trial, now.f_first)
    falls = falls if outcome.slopes.endless is None else falls & outcome.slopes.endless
    prospects = Prospects(
        decrease,
        negligible=(decrease <= digit**2 * now.f_first)
        & (sizes[1] <= max(1e-10, digit) ** 2 * now.xx_first),
        settled=quiet | ends | (now.jac_norm <= tol.gtol),
        at_minimum=ends,
        doubts_values=judged.failed & (now.noise > 2 * run.now.noise) & ~quiet & ~ends,
        unbounded=falls & ~run.first,
    )
    return curvature, now, prospects


def _at_minimum(
    seen: Evidence,
    new: Point,
    decrease: Array,
    sizes: Array,
    now: Measures,
    judged: Judgement,
    run: Run,
) -> tuple[Array, Array]:
    """Whether the gradient is at its noise with nothing left to gain, and whether the run ends."""
    size, noise = jnp.abs(new.f), jnp.maximum(rounding_noise(new.f), now.noise)
    promised, hidden = 0.5 * now.g_scale * now.gHg, 0.5 * now.g_scale * seen.ratio
    little = promises_little(new.f, noise, decrease, promised, sizes, now.xx_first)
    length, xg = jnp.sqrt(seen.ratio), now.g_scale * jnp.sqrt(seen.xg)
    moved_little = jnp.maximum(xg, UNMOVED * now.g_scale * length * now.extent)
    spent = nothing_left(new.f, moved_little, now.g_scale * seen.extent, now.f_first)
    quiet = spent & at_gradient_noise(run.tol, length, now.extent)
    flat = (now.extent > 0) & (hidden <= noise) & (FLATTEST * hidden <= LITTLE_OF_F * size)
    gone = vanished(new.f, xg, now.f_first)
    accepted = judged.moved & little & (quiet | gone)
    return quiet, accepted | (judged.failed & (quiet | (spent & flat)))


def _first_scale(state: LoopState, trial: Point, run: Run) -> Array:
    """|f| at the first point, or what the first trial decreased it by if that is more."""
    fell = jnp.where(run.tally.nfev == 1, state.point.f - trial.f, 0)
    grown = jnp.fmax(run.now.f_first, jnp.where(jnp.isfinite(fell), fell, 0))
    return jnp.where(run.first, jnp.abs(trial.f), grown)


def _evidence(new: Point, root: ArrayTree, now: Measures, xx: Array, run: Run) -> list[Array]:
    """The sums of :class:`Evidence`.

    A gradient so small that a move by all of ‖x‖ changes f by less than its last digit counts as 0.
    """
    g, reach = run.path.gradient(new), now.g_scale * jnp.sqrt(xx)
    invisible = eps(new.f.dtype) * jnp.abs(new.f)

    def in_units_of_curvature(g: Array, root: Array) -> Array:
        return jnp.where(reach * jnp.abs(g) > invisible, g / root, 0)

    ratio = jax.tree.map(in_units_of_curvature, g, root)
    sizes = vectors.masked(run.path.free(new), jax.tree.map(jnp.multiply, root, new.x))
    xg = jax.tree.map(jnp.multiply, new.x, g)
    return vectors.products((sizes, sizes), (ratio, ratio), (xg, xg))
