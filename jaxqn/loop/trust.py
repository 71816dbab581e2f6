"""How far a model is trusted: the radius of a region, or the damping of its matrix.

A trial that keeps most of the promised decrease makes the region wider, and one that keeps little
of it narrower (Nocedal & Wright, algorithm 4.1).
"""

from typing import NamedTuple

import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.linalg import eps, safe_divide
from jaxqn.linesearch import rounding_noise
from jaxqn.loop.protocol import Run
from jaxqn.loop.state import LoopState, Point

__all__ = [
    "ACCEPTED",
    "Trust",
    "hidden",
    "idle_trips",
    "may_accept",
    "new_damping",
    "new_radius",
    "positive_scales",
]

ACCEPTED = 1e-4
"""The least part of the promised decrease that a step must keep."""


class Trust(NamedTuple):
    """Numbers of a trust region.

    Attributes:
      radius: the longest step, in the norm of D.
      mu: the multiplier, or the damping.
      growth: Nielsen's factor for the damping after a refused trial.
      length: the length of the step to try, before it was accelerated.
      fall: see :class:`jaxqn.formulas.TrustRegionStep`.
      promised: the decrease that the model promises of it.
      last: the length of the last step taken.
      offset: the relative offset at the point, ∞ where the model has not shown it.
      full: the length of the step to the minimum of the model, ∞ likewise.
      idle: trips in a row that rounding decided.
    """

    radius: Array
    mu: Array
    growth: Array
    length: Array
    fall: Array
    promised: Array
    last: Array
    offset: Array
    full: Array
    idle: Array


def rounding_of(point: Point) -> Array:
    """The rounding of f: of its own digits, and of what the residuals are differences of.

    They are differences of data and of a model of about the size √(Σ Hⱼⱼ xⱼ²).
    """
    model = jnp.sqrt(jnp.sum(point.linear.diagonal * point.x**2))
    differences = eps(model.dtype) * jnp.sqrt(2 * jnp.abs(point.f)) * model
    return rounding_noise(point.f) + differences


def hidden(state: LoopState, f: Array) -> Array:
    """Whether rounding of f hides the promised decrease."""
    rounding, promised = rounding_of(state.point), Trust(*state.search.scalars).promised
    return (jnp.abs(state.point.f - f) <= rounding) & (promised <= 10 * rounding)


def may_accept(state: LoopState, f: Array, run: Run) -> Array:
    """Whether a trial of value f may be accepted: only then its Jacobian is needed."""
    kept = state.point.f - f > ACCEPTED * Trust(*state.search.scalars).promised
    return run.running & jnp.isfinite(f) & (run.first | kept | hidden(state, f))


def idle_trips(state: LoopState, fell: Array, finite: Array, accepted: Array) -> Array:
    """Trips in a row that rounding decides: what they promise, or their steps, are below it."""
    point, trust = state.point, Trust(*state.search.scalars)
    digit = eps(point.f.dtype)
    x_size = jnp.sqrt(jnp.sum((state.scales.curvature * point.x) ** 2))
    promises_nothing = trust.promised <= rounding_of(point)
    changes_x = trust.length > 4 * digit * x_size  # also false for NaN
    held = (finite & promises_nothing) | ~changes_x
    taken = (fell <= digit * point.f) & promises_nothing
    return jnp.where(
        accepted,
        jnp.where(taken, trust.idle + 1, 0),
        jnp.where(held, trust.idle + 1, trust.idle),
    )


def new_radius(
    trust: Trust, decrease: Array, ratio: Array, slope: Array, finite: Array, accepted: Array
) -> Trust:
    """The radius after a trial: twice a step that went well, a part of one that did not.

    The part leads to the minimum of the parabola through both ends of the step, where that is
    between a tenth and a half.
    """
    bend = slope + decrease
    least = safe_divide(0.5 * slope, bend, jnp.isfinite(bend) & (bend != 0))
    part = jnp.where(decrease >= 0, 0.5, least)
    part = jnp.where(finite & (slope < 0), jnp.clip(part, 0.1, 0.5), 0.1)
    shorter = part * jnp.minimum(trust.radius, trust.length)
    grows = (ratio > 0.75) | (trust.mu == 0)
    radius = jnp.where(grows, jnp.maximum(trust.radius, 2 * trust.length), trust.radius)
    return trust._replace(radius=jnp.where((ratio < 0.25) | ~accepted, shorter, radius))


def new_damping(trust: Trust, ratio: Array, accepted: Array) -> Trust:
    """The damping after a trial, by Nielsen's rule: smoothly less, or more and more."""
    less = jnp.maximum(1 / 3, 1 - (2 * ratio - 1) ** 3)
    return trust._replace(
        mu=trust.mu * jnp.where(accepted, less, trust.growth),
        growth=jnp.where(accepted, 2, 2 * trust.growth),
    )


def positive_scales(D: Array) -> Array:
    """The scales of x, and 1 where f has never changed with it."""
    return jnp.where(D > 0, D, 1)
