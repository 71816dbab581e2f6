"""The search for the ends of profile intervals: every parameter and side a problem in a lane.

A round fixes tau, the distance of the parameter from its estimate in standard errors, minimises
over the others, and has t(tau) = √(2 (f(tau) − f)) with its derivative, which is the gradient with
respect to the parameter that was fixed. The ends are where t reaches its level.

The coordinates are those of :mod:`jaxqn.drivers.profile_problems`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import called, split_aux
from jaxqn.drivers.local_curvature import Local
from jaxqn.drivers.minimize_batch import minimize_batch
from jaxqn.drivers.profile_problems import Problems
from jaxqn.formulas import ProfilePoint, profile_trial
from jaxqn.linalg import dot, eps, safe_divide
from jaxqn.loop import Box, SumOfSquares, inside, sum_of_squares

__all__ = ["BOUND", "FOUND", "NEW_MINIMUM", "NOT_FOUND", "OPEN", "Search", "search"]

FOUND, BOUND, OPEN, NEW_MINIMUM, NOT_FOUND, SEARCHING = range(6)

ROUNDS = 24
WIDE = 1000.0
"""How far a search goes, over what it would be if f were quadratic."""

CLOSE = 1e-3
"""How near t comes to its level, relatively; a step of Newton's after that leaves its square."""

FAR = 1.5
"""The ratio of a distance to the one before from which on parabolas predict nothing."""

GTOL = 1e-3
"""The gradient of what is minimised, in units in which the Hessian is about 1."""

LOWER_BY = 0.01
"""A decrease of f below the minimum that makes it none, in units of the log likelihood."""


class Search(NamedTuple):
    """A round of the search.

    Attributes:
      trial: the next tau of every problem.
      low: the farthest point below the level.
      high: the nearest point above it.
      last: y at the last point that was minimised, ``(B, n)``.
      last_tau: tau there.
      code: what became of each.
      end: tau of the end.
      nfev: evaluations, int32.
      lowest: the least value, and its flat x.
      rounds: how many, int32.
    """

    trial: Array
    low: ProfilePoint
    high: ProfilePoint
    last: Array
    last_tau: Array
    code: Array
    end: Array
    nfev: Array
    lowest: tuple[Array, Array]
    rounds: Array


class Data(NamedTuple):
    """What the objective over y needs beside y and T."""

    x: ArrayTree
    scale: Array
    box: Box | None
    args: Any


@dataclasses.dataclass(frozen=True)
class Along:
    """A function of x as one of y; residuals are over the noise."""

    fun: Any
    has_aux: bool

    def __call__(self, y: Array, T: Array, data: Data) -> Any:
        """The value, or the residuals over the noise."""
        v, back = jax.flatten_util.ravel_pytree(data.x)
        x = back(v + dot(T, y))
        x = x if data.box is None else inside(x, data.box)
        if not isinstance(self.fun, SumOfSquares):
            out = called(self.fun, x, data.args)
            return split_aux(out)[0] if self.has_aux else out
        r, _ = self.fun.flat(called(self.fun.residuals, x, data.args))
        return r.astype(y.dtype) / data.scale

    def jacobian(self, y: Array, T: Array, data: Data) -> Array:
        """That of the residuals, by the caller's."""
        v, back = jax.flatten_util.ravel_pytree(data.x)
        x = back(v + dot(T, y))
        x = x if data.box is None else inside(x, data.box)
        return dot(self.fun.jacobian(x, data.args).astype(y.dtype), T) / data.scale


@functools.lru_cache(maxsize=256)
def along(fun: Any, has_aux: bool) -> Any:
    """The objective over y, the same one for the same function."""
    over_y = Along(fun, has_aux)
    if not isinstance(fun, SumOfSquares):
        return over_y
    return sum_of_squares(over_y, jac=None if fun.jac is None else over_y.jacobian)


def search(
    fun: Any, x: ArrayTree, args: Any, box: Box | None, here: Local, problems: Problems, aux: bool
) -> Search:
    """Rounds until every end is found, or known not to be."""
    v, least = jax.flatten_util.ravel_pytree(x)[0], here.f / here.scale**2
    zeros, data = jnp.zeros_like(problems.sign), Data(x, here.scale, box, args)
    H0 = None if isinstance(fun, SumOfSquares) else problems.H0
    fit: Any = functools.partial(
        minimize_batch, along(fun, aux), in_axes=(0, 0, None, 0), gtol=GTOL, hess_inv0=H0
    )
    blocked = problems.farthest <= 0
    start = Search(
        trial=jnp.minimum(problems.first, problems.farthest),
        low=ProfilePoint(zeros, zeros, jnp.where(problems.first < problems.level, 0, 1 + zeros)),
        high=ProfilePoint(zeros + jnp.inf, zeros + jnp.inf, zeros),
        last=jnp.zeros_like(problems.tangent),
        last_tau=zeros,
        code=jnp.where(blocked, BOUND, SEARCHING).astype(jnp.int32),
        end=zeros,
        nfev=jnp.zeros((), jnp.int32),
        lowest=(least, v),
        rounds=jnp.zeros((), jnp.int32),
    )
    end = jax.lax.while_loop(
        lambda state: jnp.any(state.code == SEARCHING) & (state.rounds < ROUNDS),
        functools.partial(_round, fit, v, data, least, problems),
        start,
    )
    never = end.code == SEARCHING
    opened = never & jnp.isinf(end.high.tau)
    code = jnp.where(opened, OPEN, jnp.where(never, NOT_FOUND, end.code))
    middle = 0.5 * (end.low.tau + end.high.tau)
    return end._replace(code=code, end=jnp.where(never, middle, end.end))


def _round(
    fit: Any, v: Array, data: Data, least: Array, problems: Problems, state: Search
) -> Search:
    """Fit the others at every trial, and see what that says."""
    searching, place = state.code == SEARCHING, problems.sign * state.trial
    lower, upper = (jnp.where(problems.own, place[:, None], side) for side in problems.box)
    y = jnp.clip(_predicted(state, problems), lower, upper)
    result = fit(y, (problems.T, data), bounds=(lower, upper))
    rise = result.fun - least
    slope = problems.sign * jnp.sum(jnp.where(problems.own, result.jac, 0), axis=1)
    finite = jnp.isfinite(rise) & jnp.isfinite(slope)
    t = jnp.sqrt(2 * jnp.maximum(rise, 0))
    is_profile = finite & ((t < problems.level) | result.success)
    t = jnp.where(is_profile, t, jnp.inf)
    point = ProfilePoint(state.trial, t, safe_divide(t, slope, is_profile & (slope > 0)))
    tried = _after(state, point, problems, searching)
    noise = jnp.maximum(LOWER_BY, 100 * eps(v.dtype) * jnp.abs(least))
    fell = searching & finite & (rise < -noise)
    k = jnp.argmin(jnp.where(finite, result.fun, jnp.inf))
    f, x = state.lowest
    lower_f = finite[k] & (result.fun[k] < f)
    lowest = (
        jnp.where(lower_f, result.fun[k], f),
        jnp.where(lower_f, v + dot(problems.T[k], result.x[k]), x),
    )
    keeps = searching & finite
    return tried._replace(
        last=jnp.where(keeps[:, None], result.x, state.last),
        last_tau=jnp.where(keeps, state.trial, state.last_tau),
        code=jnp.where(fell, NEW_MINIMUM, tried.code),
        nfev=state.nfev + jnp.sum(result.nfev, dtype=jnp.int32),
        lowest=lowest,
        rounds=state.rounds + 1,
    )


def _predicted(state: Search, problems: Problems) -> Array:
    """Where the others start: off the tangent by a square of tau, or far out where they were."""
    tangent, trial = problems.tangent, state.trial
    place, before = problems.sign * trial, problems.sign * state.last_tau
    ratio = safe_divide(trial, state.last_tau, state.last_tau > 0)[:, None]
    bent = place[:, None] * tangent + ratio**2 * (state.last - before[:, None] * tangent)
    stays = state.last + (place - before)[:, None] * problems.alone
    return jnp.where(ratio < FAR, bent, stays)


def _after(state: Search, point: ProfilePoint, problems: Problems, searching: Array) -> Search:
    """The bracket, the code and the next trial after a point."""
    level, farthest = problems.level, problems.farthest
    below = point.t < level

    def taken(where: Array, new: ProfilePoint, old: ProfilePoint) -> ProfilePoint:
        return ProfilePoint(*(jnp.where(where, a, b) for a, b in zip(new, old, strict=True)))

    low = taken(searching & below, point, state.low)
    high = taken(searching & ~below, point, state.high)
    step = (level - point.t) * point.slope
    close = (jnp.abs(point.t - level) <= CLOSE * level) & (jnp.abs(step) <= 10 * CLOSE * point.tau)
    narrow = jnp.isfinite(high.tau) & (high.tau - low.tau <= CLOSE**2 * high.tau)
    at_bound = below & (point.tau >= farthest)
    too_far = below & (point.tau >= WIDE * problems.first)
    end = jnp.where(close, point.tau + step, 0.5 * (low.tau + high.tau))
    end = jnp.where(at_bound, farthest, jnp.minimum(end, farthest))
    code = jnp.where(at_bound, BOUND, jnp.where(too_far, OPEN, SEARCHING))
    code = jnp.where(close | (narrow & jnp.isfinite(high.t)), FOUND, code)
    code = jnp.where(narrow & ~jnp.isfinite(high.t) & ~close, NOT_FOUND, code)
    halve = (state.rounds % 4) == 3
    trial = jax.vmap(profile_trial, (None, 0, 0, None))(level, low, high, halve)
    return state._replace(
        trial=jnp.where(searching, jnp.minimum(trial, farthest), state.trial),
        low=low,
        high=high,
        code=jnp.where(searching, code, state.code).astype(jnp.int32),
        end=jnp.where(searching, end, state.end),
    )
