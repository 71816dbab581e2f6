"""The search for the ends of profile intervals: every parameter and side a problem in a lane.

A round fixes tau, the distance of the parameter from its estimate in standard errors, minimises
over the others, and has t(tau) = √(2 (f(tau) − f)) with its derivative, which is the gradient with
respect to the parameter that was fixed. The ends are where t reaches its level.

Without bounds the lanes work in y with x = x̂ + T y, where y₀ alone moves the parameter, along the
tangent of its profile, and f is ½‖y‖² as far as it is quadratic. With bounds T is diagonal, so that
the box stays one.
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
from jaxqn.formulas import ProfilePoint, profile_trial
from jaxqn.linalg import HIGHEST, dot, eps, safe_divide
from jaxqn.loop import Box, SumOfSquares, inside, sum_of_squares

__all__ = ["BOUND", "FOUND", "NEW_MINIMUM", "NOT_FOUND", "OPEN", "Problems", "Search", "search"]

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


class Problems(NamedTuple):
    """All ends that are looked for, with a leading axis (B,) but for what they share.

    Attributes:
      T: columns, ``(B, n, n)``: x = x̂ + T y.
      own: the entry of y that moves the parameter, boolean, ``(B, n)``.
      tangent: y along the profile, per unit of that entry, ``(B, n)``.
      alone: y along which the other parameters stay, per unit of that entry, ``(B, n)``.
      sign: ±1, the side.
      farthest: tau at which the parameter meets its bound.
      first: the first trial; where f is quadratic, the end.
      box: of y, ``(lower, upper)``, each ``(B, n)``.
      H0: for a quasi-Newton method, an inverse Hessian over y that all share, ``(n, n)``.
      level: what t is to reach.
    """

    T: Array
    own: Array
    tangent: Array
    alone: Array
    sign: Array
    farthest: Array
    first: Array
    box: tuple[Array, Array]
    H0: Array
    level: Array


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
    v = jax.flatten_util.ravel_pytree(x)[0]
    zeros = jnp.zeros_like(problems.sign)
    data, least = Data(x, here.scale, box, args), here.f / here.scale**2
    options: Any = {"hess_inv0": None if isinstance(fun, SumOfSquares) else problems.H0}
    fit: Any = functools.partial(
        minimize_batch, along(fun, aux), in_axes=(0, 0, None, 0), gtol=GTOL, **options
    )
    noise = jnp.maximum(LOWER_BY, 100 * eps(v.dtype) * jnp.abs(least))

    def round_of(state: Search) -> Search:
        searching = state.code == SEARCHING
        place = problems.sign * state.trial
        y = _predicted(state, problems)
        lower, upper = (jnp.where(problems.own, place[:, None], side) for side in problems.box)
        y = jnp.clip(y, lower, upper)
        result = fit(y, (problems.T, data), bounds=(lower, upper))
        rise = result.fun - least
        slope = problems.sign * jnp.sum(jnp.where(problems.own, result.jac, 0), axis=1)
        finite = jnp.isfinite(rise) & jnp.isfinite(slope)
        t = jnp.sqrt(2 * jnp.maximum(rise, 0))
        dtau = safe_divide(t, slope, slope > 0)
        known_t = finite & ((t < problems.level) | result.success)
        point = ProfilePoint(state.trial, jnp.where(known_t, t, jnp.inf), dtau)
        tried = _after(state, point, problems, searching)
        fell = searching & finite & (rise < -noise)
        code = jnp.where(fell, NEW_MINIMUM, tried.code)
        k = jnp.argmin(jnp.where(finite, result.fun, jnp.inf))
        x_k = v + dot(problems.T[k], result.x[k])
        lower_f = finite[k] & (result.fun[k] < state.lowest[0])
        keeps = searching & finite
        return tried._replace(
            last=jnp.where(keeps[:, None], result.x, state.last),
            last_tau=jnp.where(keeps, state.trial, state.last_tau),
            code=code,
            nfev=state.nfev + jnp.sum(result.nfev, dtype=jnp.int32),
            lowest=(
                jnp.where(lower_f, result.fun[k], state.lowest[0]),
                jnp.where(lower_f, x_k, state.lowest[1]),
            ),
            rounds=state.rounds + 1,
        )

    known = ProfilePoint(zeros, zeros, jnp.where(problems.first < problems.level, 0, 1 + zeros))
    unknown = ProfilePoint(zeros + jnp.inf, zeros + jnp.inf, zeros)
    blocked = problems.farthest <= 0
    start = Search(
        trial=jnp.minimum(problems.first, problems.farthest),
        low=known,
        high=unknown,
        last=jnp.zeros_like(problems.tangent),
        last_tau=zeros,
        code=jnp.where(blocked, BOUND, SEARCHING).astype(jnp.int32),
        end=zeros,
        nfev=jnp.zeros((), jnp.int32),
        lowest=(least, v),
        rounds=jnp.zeros((), jnp.int32),
    )
    end = jax.lax.while_loop(
        lambda state: jnp.any(state.code == SEARCHING) & (state.rounds < ROUNDS), round_of, start
    )
    never = end.code == SEARCHING
    opened = never & jnp.isinf(end.high.tau)
    code = jnp.where(opened, OPEN, jnp.where(never, NOT_FOUND, end.code))
    middle = 0.5 * (end.low.tau + end.high.tau)
    return end._replace(code=code, end=jnp.where(never, middle, end.end))


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


def whitened(here: Local, which: Array) -> tuple[Array, Array, Array, Array]:
    """What :class:`Problems` has of T, ``own``, ``tangent`` and ``alone`` of one parameter."""
    W = here.scale * here.inverse.root
    w, one = W[:, which], jnp.ones((), W.dtype)
    size = jnp.sqrt(jnp.sum(w**2))
    first = jnp.arange(w.size) == 0
    e = first.astype(w.dtype)
    direction = safe_divide(w, size, size > 0)
    side = jnp.where(w[0] > 0, -one, one)
    u = direction - side * e
    length = safe_divide(2 * one, dot(u, u), dot(u, u) > 0)
    Q = jnp.eye(w.size, dtype=w.dtype) - length * jnp.outer(u, u)
    Q = Q * jnp.where(first, side, one)[None]
    T = jnp.matmul(W.T, Q, precision=HIGHEST)
    T = jnp.where((jnp.arange(w.size) == which)[:, None], (size * e)[None], T)
    alone = dot(Q.T, jnp.linalg.pinv(W.T)[:, which]) * size
    return T, first, e, jnp.where(first, one, alone)
