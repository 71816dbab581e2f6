"""What a run has shown: curvature along each parameter, and with it the noise of the gradient.

A pair s, y with y = B s bounds every diagonal entry of the Hessian from below (Cauchy-Schwarz),

    yᵢ² / sᵀy ≤ Bᵢᵢ    for positive semidefinite B,

and a run keeps D, the largest bound of late. Trials that the search refuses count as well. What was
measured elsewhere fades: with every step, with the bend of f along the step, and with the part of
its own size by which a parameter moved. So the start has no say in it for long, however far it is.

The search measures the noise of f, where its values contradict their slopes.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import eps, vectors
from jaxqn.linesearch import rounding_noise
from jaxqn.loop.path import Path
from jaxqn.loop.protocol import Outcome, Prospects, Run
from jaxqn.loop.state import LoopState, Measures, Point
from jaxqn.loop.termination import (
    LITTLE_OF_F,
    at_gradient_noise,
    falls_without_bound,
    nothing_left,
    promises_little,
)

__all__ = ["assess_model"]

FLATTEST = 3e5
"""How much flatter than every parameter alone a direction through several of them may be."""

FADE = 0.6
"""What is left of an earlier bound after a step."""

FADE_OF_SQUARE = 0.9
"""The same of the square of the extent: where x* = 0, only earlier points know a size of x."""

UNMOVED = 1e-3
"""Moving a parameter by this part of the extent, over √D, is not moving it."""


def near_an_end(state: LoopState, run: Run) -> Array:
    """Whether evidence is worth its passes: for short vectors always.

    For long ones, where the model promises √eps |f| at most, or little is left of the first |f|.
    """
    if not run.branch:
        return run.running
    now, digit, size = run.now, eps(state.point.f.dtype), jnp.abs(state.point.f)
    little = 0.5 * now.g_scale * now.gHg <= digit**0.5 * size
    return run.running & (little | (size <= digit * now.f_first))


def learn_curvature(
    state: LoopState, outcome: Outcome, run: Run, worthwhile: Array
) -> tuple[ArrayTree, Array]:
    """The bounds D on the curvature after a trial, and the extent that x had."""
    now, trial, point, moved = run.now, outcome.trial, state.point, outcome.judged.moved

    def learn(given: tuple[ArrayTree, Array]) -> tuple[ArrayTree, Array]:
        D, extent = given
        s = jax.tree.map(jnp.subtract, trial.x, point.x)
        y = jax.tree.map(jnp.subtract, trial.g, point.g)
        sy, before, after = vectors.products((s, y), (point.g, s), (trial.g, s))
        # A difference of slopes that is all rounding shows nothing.
        least = 100 * eps(sy.dtype) * jnp.maximum(jnp.abs(before), jnp.abs(after))
        shows = (sy > least) & jnp.isfinite(sy) & jnp.isfinite(trial.f)
        # The curvature changes along s by this fraction of its mean, if it changes evenly.
        error = jnp.abs(trial.f - point.f - 0.5 * now.g_scale * (before + after))
        beyond = jnp.maximum(error - rounding_noise(point.f), 0)
        bend = 12 * beyond / (now.g_scale * jnp.where(shows, sy, 1))
        shows &= run.running & ~run.first & (moved | (bend < 1))
        kept = jnp.where(moved, 1 / (1 + bend), 1)
        (share,) = vectors.inf_norms(_shares(D, trial.x, s, extent))
        fade = jnp.where(moved, FADE * (kept / (1 + share)) ** 2, 1)
        sy = jnp.where(shows, sy, 1)
        D = jax.tree.map(lambda D, y: jnp.where(shows, jnp.maximum(fade * D, y**2 / sy), D), D, y)
        shorter = jnp.where(moved, FADE_OF_SQUARE**0.5 * kept, 1) * extent
        return D, jnp.where(shows, shorter, extent)

    return run.update_if(worthwhile, (state.scales.curvature, now.extent), learn)


def _shares(D: ArrayTree, x: ArrayTree, s: ArrayTree, extent: Array) -> ArrayTree:
    """By what part of its own size each parameter moves."""

    def of_leaf(D: Array, x: Array, s: Array) -> Array:
        root = jnp.sqrt(D)
        size = root * jnp.abs(x) + UNMOVED * extent.astype(D.dtype)
        return jnp.where(size > 0, root * s / jnp.where(size > 0, size, 1), 0)

    return jax.tree.map(of_leaf, D, x, s)


def assess_model(
    path: Path,
    state: LoopState,
    outcome: Outcome,
    squares: Any,
    diagonal: ArrayTree | None,
    now: Measures,
    run: Run,
) -> tuple[ArrayTree, Measures, Prospects]:
    """What the run and the corrected model say of the next point.

    Args:
      path: says which variables may move.
      state: before the trip.
      outcome: the trial and the next point.
      squares: gives gᵀH g, gᵀg, and the squares of H g, of the step and of x.
      diagonal: that of the Hessian, if the method has it.
      now: measures of the next point so far.
      run: what the phases of the trip share.

    Returns:
      The curvature along each parameter, the measures, and the :class:`Prospects`.
    """
    new, judged, tol = outcome.point, outcome.judged, run.tol
    gHg = run.compute_if(judged.moved, lambda: squares()[0], run.now.gHg)
    decrease = state.point.f - new.f
    worthwhile = near_an_end(state, run)
    curvature, extent = learn_curvature(state, outcome, run, worthwhile)
    curvature = curvature if diagonal is None else diagonal
    now = now._replace(
        gHg=gHg,
        extent=extent,
        f_first=_first_scale(state, outcome.trial, run),
        noise=jnp.maximum(run.now.noise, outcome.slopes.noise),
    )

    def measured() -> Array:
        return jnp.stack([*_evidence(path, new, curvature, now), *squares()[2:]])

    extent, largest, hidden, xg, *sizes = run.compute_if(
        worthwhile | run.first, measured, jnp.zeros((7,), gHg.dtype)
    )
    now = now._replace(
        extent=jnp.maximum(now.extent, extent),
        xx_first=jnp.where(run.first, sizes[2], run.now.xx_first),
    )
    # Noise that a search met at large values says nothing of small ones.
    modest = now.noise <= eps(new.f.dtype) ** 0.5 * jnp.abs(new.f)
    noise = jnp.maximum(rounding_noise(new.f), jnp.where(modest, now.noise, 0))
    little = promises_little(
        new.f, noise, decrease, 0.5 * now.g_scale * gHg, jnp.stack(sizes), now.xx_first
    )
    xg = jnp.maximum(xg, UNMOVED * now.g_scale * largest * now.extent)
    size, digit = jnp.abs(new.f), eps(new.f.dtype)
    spent = nothing_left(new.f, xg, now.g_scale**0.5 * now.extent, now.f_first)
    asked = worthwhile & ~run.first & (tol.noise_rtol > 0)
    quiet = asked & spent & at_gradient_noise(tol, largest, now.extent)
    vanished = (size <= digit**3 * now.f_first) & (sizes[2] <= digit**1.5 * now.xx_first)
    flat = (now.extent > 0) & (hidden <= noise) & (FLATTEST * hidden <= LITTLE_OF_F * size)
    ends = (judged.moved & little & (quiet | (asked & vanished))) | (
        judged.failed & (quiet | (asked & spent & flat))
    )
    doubts_values = judged.failed & modest & (now.noise > 2 * run.now.noise) & ~quiet & ~ends
    prospects = Prospects(
        decrease,
        negligible=(decrease <= digit**2 * now.f_first) & (sizes[1] <= digit**2 * now.xx_first),
        settled=quiet | ends | (now.jac_norm <= tol.gtol),
        at_minimum=ends,
        doubts_values=doubts_values,
        unbounded=~run.first
        & falls_without_bound(outcome.trial.f, outcome.slopes.trial, now.f_first),
    )
    return curvature, now._replace(noise=jnp.where(modest, now.noise, 0)), prospects


def _first_scale(state: LoopState, trial: Point, run: Run) -> Array:
    """|f| at the first point, or what the first trial decreased it by if that is more."""
    fell = jnp.where(run.tally.nfev == 1, state.point.f - trial.f, 0)
    grown = jnp.fmax(run.now.f_first, jnp.where(jnp.isfinite(fell), fell, 0))
    return jnp.where(run.first, jnp.abs(trial.f), grown)


def _evidence(path: Path, new: Point, curvature: ArrayTree, now: Measures) -> list[Array]:
    """The extent, the largest |gᵢ|/√Dᵢ, half the sum of its squares, and the largest |xᵢ gᵢ|.

    A gradient so small that a move by all of ‖x‖ changes f by less than its last digit counts as 0.
    """
    g, invisible = path.free(new), eps(new.f.dtype) * jnp.abs(new.f)
    (reach,) = vectors.inf_norms(new.x)
    root = jax.tree.map(jnp.sqrt, curvature)

    def in_units_of_curvature(g: Array, root: Array) -> Array:
        shown = now.g_scale * jnp.abs(g) * reach > invisible
        return jnp.where(shown, jnp.abs(g) / root, 0)

    ratio = jax.tree.map(in_units_of_curvature, g, root)
    extent, hidden = vectors.products((root, jax.tree.map(jnp.abs, new.x)), (ratio, ratio))
    largest, xg = vectors.inf_norms(ratio, jax.tree.map(jnp.multiply, new.x, g))
    return [extent, largest, 0.5 * now.g_scale * hidden, now.g_scale * xg]
