"""When a run ends, and with which status.

By default a run may conclude that it is at a minimum from three things together:

- from its gradient, beside a measure of its own noise that the start has no say in
  (:func:`at_gradient_noise`);
- from what the gradient could still do: a change of any parameter by its own size changes f little,
  or nothing is left of f (:func:`nothing_left`);
- from what the model promises (:func:`promises_little`), or from a search that failed.

The promise of the model alone never suffices: an H made of few pairs is too small along directions
that no step has tried. A run that makes no progress without the first two ends STALLED. With a
``gtol`` that number decides, and a run without progress ends STALLED.

Every test compares quantities of the run with one another, so that multiplying f by a constant, or
x by powers of two, changes no decision.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import eps, vectors
from jaxqn.loop.state import Tally
from jaxqn.loop.status import Status

__all__ = [
    "FLAT_LIMIT",
    "LITTLE_OF_F",
    "Tolerances",
    "assess",
    "at_gradient_noise",
    "at_offset",
    "falls_without_bound",
    "is_short",
    "little_offset",
    "lost_column",
    "lost_columns",
    "noise_rtol",
    "nothing_left",
    "promises_little",
    "stands_still",
    "vanished",
]


class Tolerances(NamedTuple):
    """Stopping tolerances and budgets, all scalar operands: changing them compiles nothing.

    Attributes:
      gtol: bound on the largest entry of the gradient.
      noise_rtol: relative change of x that counts as rounding in the default test of convergence; 0
        where a ``gtol`` decides instead.
      ftol: bound on the relative decrease of one iteration; 0 is off.
      xtol: bound on the relative length of one step; 0 is off.
      maxiter: iterations allowed in all, int32.
      maxfun: evaluations allowed in all, int32.
    """

    gtol: Any
    noise_rtol: Any
    ftol: Any
    xtol: Any
    maxiter: Any
    maxfun: Any


def noise_rtol(dtype: jax.typing.DTypeLike) -> float:
    """max(1e-10, 8 eps), the relative change of x that counts as rounding: 9.5e-7 in float32."""
    return max(1e-10, 8 * eps(dtype))


FLAT_LIMIT = 10
"""Steps in a row without progress after which a run ends. A step makes progress if it decreases the
objective by more than its last digit, or reaches a gradient below 0.9 times any before. At a kink
where f = 0 the digits never end: a decrease below eps² |f₀| by a step below 1e-10 ‖x₀‖ is none."""

LITTLE_OF_F = 0.003
"""The part of |f| that a change of a parameter by its own size may change at a minimum."""


def is_short(s: ArrayTree, x: ArrayTree, xtol: Array) -> Array:
    """Whether ‖s‖ ≤ xtol ‖x‖; false where squares leave the range of the dtype."""
    ss, xx = vectors.products((s, s), (x, x))
    limit = xtol**2 * xx
    return (ss <= limit) & (limit > jnp.finfo(limit.dtype).tiny) & jnp.isfinite(limit)


def at_gradient_noise(tol: Tolerances, length: Array, extent: Array) -> Array:
    """Whether a relative change of x by ``noise_rtol`` explains the whole gradient.

        √(Σ gᵢ²/Dᵢ) ≤ r √(Σ Dᵢ xᵢ²)

    D being the diagonal of the Hessian B as far as the run knows it. Where B is diagonal, a change
    of every xᵢ by r |xᵢ| makes the two sides equal; where it is full, random changes make the left
    one larger by up to the root of the number of parameters.

    Args:
      tol: tolerances and budgets.
      length: √(Σ gᵢ²/Dᵢ).
      extent: √(Σ Dᵢ xᵢ²).
    """
    return (extent > 0) & (length <= tol.noise_rtol * extent)


def nothing_left(f: Array, xg: Array, F: Array, f_first: Array) -> Array:
    """Whether no parameter can change f much, or f itself is nothing on the scale of the problem.

        √(Σ xᵢ² gᵢ²) ≤ 0.003 |f|,    or    |f| ≤ 0.1 eps F  and  |f| ≤ eps^1.5 max(F, |f₀|)

    Where rounding hides a gradient, one flat direction may still lead far down. The first measure
    sees that where the start says nothing. The second is for f → 0, as in a sum of squares with
    residuals 0: a change of x by its own size makes f about F = Σ Dᵢ xᵢ².
    """
    digit = eps(f.dtype)
    solved = jnp.abs(f) <= jnp.minimum(0.1 * digit * F, digit**1.5 * jnp.maximum(F, f_first))
    return (xg <= LITTLE_OF_F * jnp.abs(f)) | solved


NOTHING = 1e-32
"""The part of the first |f| that is nothing, in either dtype, however far the start."""


def vanished(f: Array, xg: Array, f_first: Array) -> Array:
    """Whether f has fallen to nothing, |f| ≤ 1e-32 |f₀|, like a power of x.

    A minimum of 0 without curvature has no other scale than the first value. There
    √(Σ xᵢ² gᵢ²) is about the degree times |f|; 10 is allowed for. On the way to other values, or
    down an exponential from a far start, it is far more.
    """
    return (jnp.abs(f) <= NOTHING * f_first) & (xg <= 10 * jnp.abs(f))


def promises_little(
    f: Array, noise: Array, decrease: Array, promised: Array, sizes: Array, xx_first: Array
) -> Array:
    """Whether the predicted decrease is at rounding level in f, or the predicted step in x.

        ½ gᵀH g ≤ 10 eps |f|  and  decrease ≤ √eps |f|,    or    ‖H g‖ ≤ r ‖x‖  and  ‖s‖ ≤ √r ‖x‖

    with r = max(1e-10, 100 eps). After any step, a promise of √eps 10 eps |f| is little.

    Args:
      f: value at the current point.
      noise: noise of f, 10 eps |f| or more.
      decrease: by how much the last step decreased it.
      promised: what a step to the minimum of the model would decrease it by, ½ gᵀH g.
      sizes: squares of the lengths of that step, of the last one and of x, shape ``(3,)``.
      xx_first: xᵀx of the first point, which counts where x has become smaller.
    """
    r, root = max(1e-10, 100 * eps(sizes.dtype)), eps(f.dtype) ** 0.5
    fits = decrease <= root * jnp.abs(f)
    of_f = promised <= noise * jnp.where(fits, 1, root)
    xx = jnp.maximum(sizes[2], xx_first)
    of_x = jnp.all(sizes[:2] <= jnp.array([r**2, r], xx.dtype) * xx)
    return of_f | of_x


def falls_without_bound(f: Array, slope: Array, f_first: Array) -> Array:
    """Whether a trial is lower than any scale of the run, and f still falls there.

        f ≤ −eps^-1.5 |f₀|    and    φ' < 0

    That is 2e10 times the first |f| in float32, 3e23 times in float64.
    """
    falls = jnp.isfinite(f) & (slope < 0) & (f_first > 0)
    return falls & (f <= -f_first / eps(f.dtype) ** 1.5)


def at_offset(offset: Array) -> Array:
    """Whether residuals are orthogonal to what a change of x can do, as far as rounding shows.

        √(gᵀB⁻¹g / 2f) ≤ max(1e-10, 80 eps),

    the cosine of the angle between r and the tangent space, for B = JᵀJ.

    References:
      Bates & Watts, Technometrics 23 (1981).
    """
    return offset <= max(1e-10, 80 * eps(offset.dtype))


def stands_still(full: Array, last: Array, x_size: Array) -> Array:
    """Whether the step to the minimum of the model is nothing beside x, after a short step.

    For residuals that vanish at the solution, where the offset has no limit.
    """
    xtol = max(1e-10, 100 * eps(full.dtype))
    return (full <= xtol * x_size) & (last <= xtol**0.5 * x_size)


def little_offset(offset: Array, full: Array, x_size: Array) -> Array:
    """Whether a run that makes no progress is at a minimum."""
    return (offset <= 1e-4) | (full <= 1e-6 * x_size)


def lost_column(diagonal: Array, D: Array, free: Array | None, f: Array, f_first: Array) -> Array:
    """Whether some parameter has lost its effect on residuals that are not all 0."""
    return jnp.any(lost_columns(diagonal, D, free)) & (f > eps(f.dtype) ** 2 * f_first)


def lost_columns(diagonal: Array, D: Array, free: Array | None) -> Array:
    """Which columns of the Jacobian are at rounding level beside their largest length so far.

        (JᵀJ)ⱼⱼ ≤ eps^1.5 Dⱼ²

    Args:
      diagonal: of JᵀJ.
      D: the largest lengths of its columns so far.
      free: masks of the variables that may move, or ``None`` where all may.
    """
    lost = diagonal <= eps(D.dtype) ** 1.5 * D**2
    return lost if free is None else lost & free


def assess(
    tol: Tolerances,
    counts: Array,
    *,
    jac_norm: Array,
    finite: Any = np.True_,
    within_ftol: Any = np.False_,
    within_xtol: Any = np.False_,
    failed: Any = np.False_,
    stalled: Any = np.False_,
    unbounded: Any = np.False_,
    singular: Any = np.False_,
) -> Array:
    """The status after a trip, int32; the first of the tests below that holds wins.

    Of a state that is taken up again, the loop knows sizes and counts, and not the last trip.

    Args:
      tol: tolerances and budgets.
      counts: :class:`jaxqn.loop.Tally` as an array, int32.
      jac_norm: largest entry of the current gradient by x.
      finite: whether the current value and gradient are finite.
      within_ftol: whether the last step decreased the objective by no more than ``tol.ftol``.
      within_xtol: whether the last step was no longer than ``tol.xtol``.
      failed: whether the search along the negative gradient failed.
      stalled: whether a search failed because rounding hides the decrease, or within the tolerance
        on the gradient.
      unbounded: see :func:`falls_without_bound`.
      singular: whether some parameter has lost its effect on the residuals.
    """
    nit, nfev, flat, at_minimum = Tally(*counts)
    converged = (jac_norm <= tol.gtol) | ((at_minimum > 0) & (tol.noise_rtol > 0))
    stalled |= flat >= FLAT_LIMIT
    tests = [
        (~finite, Status.NON_FINITE),
        (singular & (converged | stalled), Status.SINGULAR),
        (converged, Status.CONVERGED),
        (within_ftol & (tol.ftol > 0), Status.FTOL),
        (within_xtol & (tol.xtol > 0), Status.XTOL),
        (stalled, Status.STALLED),
        (failed, Status.LINE_SEARCH_FAILED),
        (unbounded, Status.UNBOUNDED),
        (nit >= tol.maxiter, Status.MAX_ITER),
        (nfev >= tol.maxfun, Status.MAX_FUN),
    ]
    status = jnp.int32(Status.RUNNING)
    for holds, value in reversed(tests):
        status = jnp.where(holds, jnp.int32(value), status)
    return status
