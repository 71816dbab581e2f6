"""The default line search: strong or approximate Wolfe, by bracketing and cubic interpolation.

The textbook's two phases, extrapolating to a bracket and zooming into it, are one step of a state
machine. A trial that is not finite counts as too far. Slopes decide where values differ by rounding
only. Widths are relative, and no step length is tried twice.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.linalg import computed_once, eps
from jaxqn.linesearch.conditions import (
    approximate_wolfe,
    armijo,
    noise_shown,
    quasi_wolfe,
    rounding_noise,
    strong_curvature,
)
from jaxqn.linesearch.protocol import Bend, LineSearch, check_options

__all__ = ["WolfeState", "wolfe"]


PARABOLIC_SLOPE_LEFT = 0.6
"""The part of the slope that may remain where two trials look like those of a parabola.

The exact minimum is then one trial away, and a much shorter step makes a poor pair: on quadratics
with eigenvalues many orders apart L-BFGS would take dozens of steps that leave 0.618 of the slope
each."""


class WolfeState(NamedTuple):
    """State of :func:`wolfe`.

    Attributes:
      alpha: next step length to try.
      known: rows ``(alpha, phi, dphi)``, shape ``(3, 3)``: the origin; the best trial so far,
        ``lo``, whose slope points into the bracket; the bracket's other end, ``hi``, at infinity
        until an acceptable step is known to lie between the two.
      trials: trials so far, int32.
      noise: by how much values contradicted slopes where noise showed, else 0.
    """

    alpha: Array
    known: Array
    trials: Array
    noise: Array

    @property
    def dphi0(self) -> Array:
        """Slope at the origin, shape ``(...)``."""
        return self.known[..., 0, 2]


@functools.cache
def wolfe(
    *, c1: float = 1e-4, c2: float = 0.9, growth: float = 10.0, max_trials: int = 30
) -> LineSearch:
    """Line search for the strong Wolfe conditions, or the approximate ones.

    The search accepts alpha when

        phi(alpha) ≤ phi(0) + c1 alpha phi'(0)   and   |phi'(alpha)| ≤ c2 |phi'(0)|,

    or when the approximate Wolfe conditions hold and phi(alpha) exceeds phi(0) by rounding at most.
    Until a bracket is known, the next trial is the minimiser of the cubic through the last two
    trials, between 1.1 and ``growth`` times their distance further. Inside a bracket it is the
    minimiser of the cubic through its ends, at least a tenth of the width away from both, or the
    middle when the last trial did not shrink the bracket by a third.

    The last trial and the best before it look like those of a parabola where the cubic term of the
    cubic through both is less than a fiftieth of the square term. The bounds on the minimiser then
    widen, the more so the smaller the cubic term, and the search accepts no step that leaves more
    than 0.6 of the slope, 2/5 of the way to the minimum.

    On a path that bends at bounds, the decrease is measured by the real displacement, and a trial
    that meets a new bound needs phi'(alpha) ≥ c2 phi'(0) only (quasi-Wolfe: a kink may be the
    minimiser). From the second trial on the search tries the last bend before a proposed point.

    The search gives up after ``max_trials``, where the bracket is as narrow as rounding allows, and
    where noise shows: values then differ from the prediction of their slopes by as much on half the
    distance.

    Args:
      c1: fraction of the predicted decrease to insist on, in [0, 1/2).
      c2: fraction of the slope that may remain, in [c1, 1).
      growth: how far beyond the last two trials to look while there is no bracket; at least 1.1.
      max_trials: evaluations before giving up.

    Returns:
      A :class:`jaxqn.LineSearch`.

    Raises:
      ValueError: an option is out of its bounds.

    Example:
      >>> search = wolfe(c2=0.1)
      >>> state = search.init(jnp.array(1.0), jnp.array(-2.0), jnp.array(3.0))  # (1 − alpha)²
      >>> state, done, failed = search.step(state, jnp.array(4.0), jnp.array(4.0))
      >>> round(float(state.alpha), 6)
      1.0

    References:
      Nocedal & Wright, 2006, algorithms 3.5 and 3.6, eq. 3.59; Moré & Thuente, ACM Trans. Math.
      Softw. 20 (1994), for the extrapolation; Hager & Zhang, SIAM J. Optim. 16 (2005), eq. 4.1.
    """
    check_options(max_trials, c1=(c1, 0, 0.5), c2=(c2, c1, 1), growth=(growth, 1.1, jnp.inf))

    def init(phi0: Array, dphi0: Array, alpha0: Array) -> WolfeState:
        zero, inf = jnp.zeros_like(phi0), jnp.full_like(phi0, jnp.inf)
        origin, nowhere = jnp.stack([zero, phi0, dphi0]), jnp.stack([inf, zero, zero])
        known = jnp.stack([origin, origin, nowhere])
        return WolfeState(alpha0, known, jnp.zeros((), jnp.int32), zero)

    def step(
        state: WolfeState, phi: Array, dphi: Array, bend: Bend | None = None
    ) -> tuple[WolfeState, Array, Array]:
        origin, lo, hi = state.known
        alpha, phi0, dphi0 = state.alpha, origin[1], origin[2]
        finite = jnp.isfinite(phi) & jnp.isfinite(dphi)
        decrease = armijo(phi0, dphi0 if bend is None else bend.promised / alpha, alpha, phi, c1)
        done = decrease & strong_curvature(dphi0, dphi, c2)
        done = finite & (done | approximate_wolfe(phi0, dphi0, phi, dphi, c1, c2))
        trial, trials = jnp.stack([alpha, phi, dphi]), state.trials + 1
        doubt = _doubt(lo, trial)
        short = (doubt < 1) & (dphi < PARABOLIC_SLOPE_LEFT * dphi0) & (trials < max_trials)
        done &= ~short
        if bend is not None:
            done |= finite & decrease & bend.clips & quasi_wolfe(dphi0, dphi, c2)

        # A trial that is too far becomes the far end. Any other becomes the best so far, and the
        # old best becomes the far end if the slope changed its sign in between.
        values_agree = jnp.abs(phi - lo[1]) <= rounding_noise(phi0)
        near = (decrease & (phi <= lo[1])) | (values_agree & (dphi < 0))
        (too_far,) = computed_once(~(finite & near))
        turned = dphi * lo[2] < 0
        new_lo = jnp.where(too_far, lo, trial)
        new_hi = jnp.where(too_far, trial, jnp.where(turned, lo, hi))

        width, old_width = jnp.abs(new_hi[0] - new_lo[0]), jnp.abs(hi[0] - lo[0])
        slow = (width > 0.66 * old_width) & jnp.isfinite(old_width)
        resolution = 4 * eps(alpha.dtype) * new_lo[0]
        next_alpha = _next_trial(lo, new_lo, new_hi, slow, doubt, growth)
        if bend is not None:
            next_alpha = bend.landed(new_lo[0], next_alpha, ~done)
        noise = _noise(lo, hi, trial, phi0)
        exhausted = (trials >= max_trials) | (width <= resolution) | (noise > 0)
        known = jnp.stack([origin, new_lo, new_hi])
        return WolfeState(next_alpha, known, trials, noise), done, ~done & exhausted

    return LineSearch(init, step, bends=True)


def _next_trial(
    last: Array, lo: Array, hi: Array, slow: Array, doubt: Array, growth: float
) -> Array:
    """Interpolate in the bracket (lo, hi), or extrapolate from ``last`` beyond ``lo``."""
    closed = jnp.isfinite(hi[0])
    t = _cubic_minimiser(lo, jnp.where(closed, hi, last))
    found = jnp.isfinite(t)
    # Inside, t is a fraction of the way to hi; a tenth of the way where the value at hi is not
    # finite.
    off = jnp.minimum(0.1, doubt)
    inside = jnp.where(slow, 0.5, jnp.where(found, jnp.clip(t, off, 1 - off), 0.1))
    # Beyond lo, t counts the way from lo to the last trial and is negative; without a minimiser
    # there, the next trial is as far as allowed.
    reach = jnp.maximum(growth, 1 / doubt)
    beyond = jnp.where(found & (t < 0), jnp.clip(t, -reach, -1.1), -growth)
    return lo[0] + jnp.where(closed, inside * (hi[0] - lo[0]), beyond * (last[0] - lo[0]))


def _cubic_minimiser(u: Array, v: Array) -> Array:
    """Minimiser of the cubic through two trials, as a fraction of the way from u to v; or NaN.

    References:
      Nocedal & Wright, 2006, eq. 3.59, with slopes per unit of the way.
    """
    du, dv, change = _differences(u, v)
    # Where rounding hides the change, the slopes replace it, and the cubic is a parabola.
    below_rounding = jnp.abs(change) + jnp.abs(du) + jnp.abs(dv) <= 2 * rounding_noise(u[1])
    theta = du + dv - 3 * jnp.where(below_rounding, 0.5 * (du + dv), change)
    gamma = jnp.sqrt(theta**2 - du * dv)
    return 1 - (dv + gamma - theta) / (dv - du + 2 * gamma)


def _doubt(u: Array, v: Array) -> Array:
    """How little two trials look like those of a parabola with a minimum: √eps to 0.1, otherwise 1.

    It is five times the cubic term of the cubic through both trials over its square term, with
    rounding added. At 1/doubt times the distance the cubic term is a fifth of the square one, and
    the terms that a cubic leaves out are smaller.
    """
    du, dv, change = _differences(u, v)
    noise = rounding_noise(jnp.abs(u[1]) + jnp.abs(change))
    doubt = 10 * (jnp.abs(du + dv - 2 * change) + noise) / jnp.maximum(dv - du, 0)
    return jnp.where(doubt < 0.1, jnp.maximum(doubt, eps(doubt.dtype) ** 0.5), 1)


def _noise(lo: Array, hi: Array, trial: Array, phi0: Array) -> Array:
    """The noise that hides the function inside a bracket; 0 where none beyond rounding shows."""
    hi = jnp.where(jnp.isfinite(hi[0]), hi, trial)
    far, near = _disagreement(lo, hi), _disagreement(lo, trial)
    shorter = jnp.abs(trial[0] - lo[0]) <= 0.5 * jnp.abs(hi[0] - lo[0])
    du, dv, _ = _differences(lo, trial)
    shows = shorter & noise_shown(phi0, near, far, jnp.abs(du) + jnp.abs(dv))
    return jnp.where(shows, near, 0)


def _disagreement(u: Array, v: Array) -> Array:
    """The difference of two values, less the slopes' prediction by the trapezoidal rule."""
    du, dv, change = _differences(u, v)
    return jnp.abs(change - 0.5 * (du + dv))


def _differences(u: Array, v: Array) -> tuple[Array, Array, Array]:
    """Both slopes times the way from u to v, and the change of the value."""
    way = v[0] - u[0]
    return u[2] * way, v[2] * way, v[1] - u[1]
