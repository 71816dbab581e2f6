"""When to stop, and what to call it."""

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._numerics import eps
from jaxqn._typing import Array

__all__ = ["MESSAGES", "Status", "Tolerances", "assess", "default_rtol"]


class Status(enum.IntEnum):
    """How a run ended; one per problem of a batch. :data:`MESSAGES` says what to do about each."""

    RUNNING = 0
    CONVERGED = 1
    FTOL = 2
    XTOL = 3
    STALLED = 4
    MAX_ITER = 5
    MAX_FUN = 6
    LINE_SEARCH_FAILED = 7
    NON_FINITE = 8
    STOPPED = 9


MESSAGES: dict[Status, str] = {
    Status.RUNNING: "Still running: continue it with minimize(..., state=result.state).",
    Status.CONVERGED: "Converged: the gradient is within gtol.",
    Status.FTOL: "Stopped: the last decrease of the objective is within ftol.",
    Status.XTOL: "Stopped: the last step is within xtol.",
    Status.STALLED: "Stalled: rounding hides any further decrease of the objective. Usually a "
    "minimum to the precision of the dtype; check jac, and use float64 for more digits.",
    Status.MAX_ITER: "Stopped at maxiter. Continue with state=result.state and a larger maxiter.",
    Status.MAX_FUN: "Stopped at maxfun. Continue with state=result.state and a larger maxfun.",
    Status.LINE_SEARCH_FAILED: "No decrease along the negative gradient: the gradient does not "
    "match the objective. Look for discontinuities, stopped gradients, or noise in the objective.",
    Status.NON_FINITE: "The objective or its gradient is not finite at x0. Start elsewhere, or "
    "look for log, sqrt or division by zero in the objective.",
    Status.STOPPED: "Stopped by the callback.",
}
"""What each :class:`Status` means and what to do, as one or two sentences."""


class Tolerances(NamedTuple):
    """Stopping tolerances and budgets, all operands: changing them compiles nothing.

    Attributes:
      gtol: bound on the largest entry of the gradient.
      grtol: the same, as a fraction of its value at the first point.
      ftol: bound on the relative decrease of one iteration; 0 is off.
      xtol: bound on the relative length of one step; 0 is off.
      maxiter: iterations allowed in all, int32.
      maxfun: evaluations allowed in all, int32.
    """

    gtol: Array
    grtol: Array
    ftol: Array
    xtol: Array
    maxiter: Array
    maxfun: Array


def default_rtol(dtype: jax.typing.DTypeLike) -> float:
    """Fraction of the first gradient that counts as converged: eps^(2/3) of the dtype.

    4e-11 in float64 and 2e-5 in float32.
    """
    return eps(dtype) ** (2 / 3)


class Progress(NamedTuple):
    """What :func:`assess` looks at after a trip.

    Attributes:
      started: whether the first point has been evaluated.
      finite: whether the current value and gradient are finite.
      g_norm: largest entry of the current gradient.
      g0_norm: the same at the first point.
      moved: whether this trip accepted a step.
      decrease: decrease of the objective by that step.
      f: current value.
      step: length of that step over the length of x.
      flat: consecutive steps without visible progress, int32.
      failed: whether the search along the negative gradient failed.
      hidden: whether, when it failed, the decrease it sought was below the rounding noise.
      nit: iterations so far, int32.
      nfev: evaluations so far, int32.
    """

    started: Array
    finite: Array
    g_norm: Array
    g0_norm: Array
    moved: Array
    decrease: Array
    f: Array
    step: Array
    flat: Array
    failed: Array
    hidden: Array
    nit: Array
    nfev: Array


FLAT_LIMIT = 10
"""Consecutive steps without visible progress after which a run counts as stalled."""


def assess(p: Progress, tol: Tolerances) -> Array:
    """The status after a trip, int32; the first of the tests below that holds wins."""
    ftol = p.moved & (tol.ftol > 0) & (p.decrease <= tol.ftol * jnp.abs(p.f))
    xtol = p.moved & (tol.xtol > 0) & (p.step <= tol.xtol)
    tests = [
        (p.started & ~p.finite, Status.NON_FINITE),
        (p.started & (p.g_norm <= jnp.maximum(tol.gtol, tol.grtol * p.g0_norm)), Status.CONVERGED),
        (ftol, Status.FTOL),
        (xtol, Status.XTOL),
        ((p.flat >= FLAT_LIMIT) | (p.failed & p.hidden), Status.STALLED),
        (p.failed, Status.LINE_SEARCH_FAILED),
        (p.nit >= tol.maxiter, Status.MAX_ITER),
        (p.nfev >= tol.maxfun, Status.MAX_FUN),
    ]
    conditions = [condition for condition, _ in tests]
    values = [jnp.int32(status) for _, status in tests]
    return jnp.select(conditions, values, jnp.int32(Status.RUNNING))
