"""When a run ends, and with which status.

A run ends by default where the gradient is small beside the first one and the model promises no
decrease that rounding would show. Every test compares quantities of the run with one another, so
that multiplying f by a constant changes no decision.
"""

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import eps, vectors
from jaxqn.linesearch import rounding_noise
from jaxqn.loop.state import Tally

__all__ = [
    "MESSAGES",
    "Status",
    "Tolerances",
    "assess",
    "at_noise_level",
    "default_rtol",
    "is_short",
    "promises_little",
    "stall_rtol",
    "succeeded",
    "within_gtol",
]


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
    "minimum to the precision of the dtype; check jac, and for more digits use float64, or on a "
    "GPU or TPU jax.default_matmul_precision('highest').",
    Status.MAX_ITER: "Stopped at maxiter. Continue with state=result.state and a larger maxiter, "
    "unless fun shows that the objective is unbounded below.",
    Status.MAX_FUN: "Stopped at maxfun. Continue with state=result.state and a larger maxfun.",
    Status.LINE_SEARCH_FAILED: "No decrease along the negative gradient, although its slope "
    "promises one: the gradient does not match the objective, the objective is noisier than its "
    "last digit, or it is unbounded below. Look at fun, and for discontinuities, stopped gradients "
    "and cancellation; try float64, and on a GPU or TPU jax.default_matmul_precision('highest').",
    Status.NON_FINITE: "The objective or its gradient is not finite at x0. Start elsewhere, or "
    "look for log, sqrt or division by zero in the objective.",
    Status.STOPPED: "Stopped by the callback, or by the target of multi_start.",
}
"""What each :class:`Status` means and what to do, as one or two sentences."""


def succeeded(status: Array) -> Array:
    """Whether a tolerance was met: CONVERGED, FTOL or XTOL. Boolean, like ``status``."""
    return (status >= Status.CONVERGED) & (status <= Status.XTOL)


class Tolerances(NamedTuple):
    """Stopping tolerances and budgets, all scalar operands: changing them compiles nothing.

    Attributes:
      gtol: bound on the largest entry of the gradient.
      grtol: the same as a fraction of its value at the first point; counts where the model promises
        little.
      stall_rtol: the fraction of the first gradient that rounding may leave.
      ftol: bound on the relative decrease of one iteration; 0 is off.
      xtol: bound on the relative length of one step; 0 is off.
      maxiter: iterations allowed in all, int32.
      maxfun: evaluations allowed in all, int32.
    """

    gtol: Any
    grtol: Any
    stall_rtol: Any
    ftol: Any
    xtol: Any
    maxiter: Any
    maxfun: Any


def default_rtol(dtype: jax.typing.DTypeLike) -> float:
    """max(1e-10, eps), the fraction of the first gradient that counts as converged.

    1e-10 in float64 and 1.2e-7 in float32.
    """
    return max(1e-10, eps(dtype))


def stall_rtol(dtype: jax.typing.DTypeLike) -> float:
    """max(1e-10, 100 eps), the fraction of the first gradient that rounding may leave.

    1e-10 in float64 and 1.2e-5 in float32.
    """
    return max(1e-10, 100 * eps(dtype))


FLAT_LIMIT = 10
"""Steps in a row without progress after which a run ends. A step makes progress if it decreases the
objective by more than its last digit, or reaches a gradient below 0.9 times any before."""

FLAT_LIMIT_AT_MINIMUM = 2
"""The same where the gradient is at noise level and the model promises little."""


def is_short(s: ArrayTree, x: ArrayTree, xtol: Array) -> Array:
    """Whether ‖s‖ ≤ xtol ‖x‖; false where squares leave the range of the dtype."""
    ss, xx = vectors.products((s, s), (x, x))
    limit = xtol**2 * xx
    return (ss <= limit) & (limit > jnp.finfo(limit.dtype).tiny) & jnp.isfinite(limit)


def within_gtol(tol: Tolerances, g_norm: Array, g0_norm: Array, jac_norm: Array) -> Array:
    """Whether the largest entry of the gradient is within the tolerance on it."""
    return (jac_norm <= tol.gtol) | (g_norm <= tol.grtol * g0_norm)


def at_noise_level(tol: Tolerances, g_norm: Array, g0_norm: Array) -> Array:
    """Whether the gradient is as small beside the first as rounding may leave it."""
    return g_norm <= tol.stall_rtol * g0_norm


def promises_little(
    f: Array, decrease: Array, promised: Array, sizes: Array, xx_first: Array
) -> Array:
    """Whether the predicted decrease is at rounding level in f, or the predicted step in x.

        ½ gᵀH g ≤ 10 eps |f|  and  decrease ≤ √eps |f|,    or    ‖H g‖ ≤ r ‖x‖  and  ‖s‖ ≤ √r ‖x‖

    with r = :func:`stall_rtol`. After any step, a promise of √eps 10 eps |f| is little.

    Args:
      f: value at the current point.
      decrease: by how much the last step decreased it.
      promised: what a step to the minimum of the model would decrease it by, ½ gᵀH g.
      sizes: squares of the lengths of that step, of the last one and of x, shape ``(3,)``.
      xx_first: xᵀx of the first point, which counts where x has become smaller.
    """
    r, root = stall_rtol(sizes.dtype), eps(f.dtype) ** 0.5
    fits = decrease <= root * jnp.abs(f)
    of_f = promised <= rounding_noise(f) * jnp.where(fits, 1, root)
    xx = jnp.maximum(sizes[2], xx_first)
    of_x = jnp.all(sizes[:2] <= jnp.array([r**2, r], xx.dtype) * xx)
    return of_f | of_x


def assess(
    tol: Tolerances,
    counts: Array,
    *,
    g_norm: Array,
    g0_norm: Array,
    jac_norm: Array,
    finite: Any = np.True_,
    within_ftol: Any = np.False_,
    within_xtol: Any = np.False_,
    failed: Any = np.False_,
    stalled: Any = np.False_,
) -> Array:
    """The status after a trip, int32; the first of the tests below that holds wins.

    Of a state that is taken up again, the loop knows sizes and counts, and not the last trip.

    Args:
      tol: tolerances and budgets.
      counts: :class:`jaxqn.loop.Tally` as an array, int32.
      g_norm: largest entry of the current gradient by z.
      g0_norm: the same at the first point.
      jac_norm: largest entry of the current gradient by x.
      finite: whether the current value and gradient are finite.
      within_ftol: whether the last step decreased the objective by no more than ``tol.ftol``.
      within_xtol: whether the last step was no longer than ``tol.xtol``.
      failed: whether the search along the negative gradient failed.
      stalled: whether a search failed because rounding hides the decrease, or within the tolerance
        on the gradient.
    """
    nit, nfev, flat, little = Tally(*counts)
    small, near = at_noise_level(tol, g_norm, g0_norm), within_gtol(tol, g_norm, g0_norm, jac_norm)
    stalled |= flat >= jnp.where(small & (little > 0), FLAT_LIMIT_AT_MINIMUM, FLAT_LIMIT)
    # Being small beside the first gradient suffices only where the model promises little.
    converged = (jac_norm <= tol.gtol) | (near & (little > 0)) | (small & stalled)
    tests = [
        (~finite, Status.NON_FINITE),
        (converged, Status.CONVERGED),
        (within_ftol & (tol.ftol > 0), Status.FTOL),
        (within_xtol & (tol.xtol > 0), Status.XTOL),
        (stalled, Status.STALLED),
        (failed, Status.LINE_SEARCH_FAILED),
        (nit >= tol.maxiter, Status.MAX_ITER),
        (nfev >= tol.maxfun, Status.MAX_FUN),
    ]
    status = jnp.int32(Status.RUNNING)
    for holds, value in reversed(tests):
        status = jnp.where(holds, jnp.int32(value), status)
    return status
