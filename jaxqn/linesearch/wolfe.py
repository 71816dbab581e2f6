"""The default line search: strong or approximate Wolfe, by Moré and Thuente's bracketing.

The algorithm is MINPACK-2's, which is a state machine already ("reverse communication"). Changed
here: values at their rounding noise are judged by slopes, a non-finite trial means "too far",
widths are relative, and no step length is ever tried twice.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._numerics import eps
from jaxqn._typing import Array
from jaxqn.linesearch.base import LineSearch, Trial
from jaxqn.linesearch.conditions import approximate_wolfe, armijo, strong_curvature

__all__ = ["Bracket", "WolfeState", "wolfe"]


class Bracket(NamedTuple):
    """The interval of uncertainty.

    Attributes:
      lo: the best trial so far; its slope points into the interval.
      hi: the other end, meaningful once ``closed``.
      closed: whether a minimiser is known to lie between ``lo`` and ``hi``.
      width: the last interval's width, for the bisection safeguard.
      last_width: the one before it.
    """

    lo: Trial
    hi: Trial
    closed: Array
    width: Array
    last_width: Array


class WolfeState(NamedTuple):
    """State of :func:`wolfe`.

    Attributes:
      alpha: next trial, or the accepted one.
      phi0: value at 0.
      dphi0: slope at 0.
      bracket: the interval of uncertainty.
      cap: the shortest step known to be too far (non-finite), else infinity.
      auxiliary: whether the interval is still chosen by phi(alpha) − phi(0) − c1 alpha phi'(0).
      trials: trials so far, int32.
      done: the last trial is acceptable.
      failed: no acceptable step was found.
      improved: the last trial is the lowest so far.
    """

    alpha: Array
    phi0: Array
    dphi0: Array
    bracket: Bracket
    cap: Array
    auxiliary: Array
    trials: Array
    done: Array
    failed: Array
    improved: Array


@functools.cache
def wolfe(
    *, c1: float = 1e-4, c2: float = 0.9, growth: float = 4.0, max_trials: int = 30
) -> LineSearch:
    """Line search for the strong Wolfe conditions, approximate where phi is at its noise.

    Accepts alpha when phi(alpha) ≤ phi(0) + c1 alpha phi'(0) and |phi'(alpha)| ≤ c2 |phi'(0)|, or
    when the approximate Wolfe conditions hold and phi(alpha) exceeds phi(0) by rounding at most.
    Interpolates by safeguarded cubics and secants; converges to an acceptable step in a finite
    number of trials on a smooth function that is bounded below.

    Args:
      c1: fraction of the predicted decrease to insist on, in (0, 1/2).
      c2: fraction of the slope that may remain, in (c1, 1).
      growth: how far beyond the last two trials to look while there is no bracket.
      max_trials: evaluations before giving up.

    Returns:
      A :class:`jaxqn.LineSearch`.

    Example:
      >>> search = wolfe(c2=0.1)
      >>> state = search.init(jnp.array(1.0), jnp.array(-2.0), jnp.array(3.0))  # (1 − alpha)²
      >>> state = search.step(state, jnp.array(4.0), jnp.array(4.0))
      >>> float(state.alpha)
      1.0

    References:
      Moré & Thuente, ACM Trans. Math. Softw. 20 (1994); Hager & Zhang, SIAM J. Optim. 16 (2005),
      eq. 4.1; Nocedal & Wright, 2006, eq. 3.7.
    """

    def init(phi0: Array, dphi0: Array, alpha0: Array) -> WolfeState:
        false, inf = jnp.zeros((), bool), jnp.full_like(alpha0, jnp.inf)
        start = Trial(jnp.zeros_like(alpha0), phi0, dphi0)
        return WolfeState(
            alpha=alpha0,
            phi0=phi0,
            dphi0=dphi0,
            bracket=Bracket(start, start, closed=false, width=inf, last_width=inf),
            cap=inf,
            auxiliary=~false,
            trials=jnp.zeros((), jnp.int32),
            done=false,
            failed=false,
            improved=false,
        )

    def step(state: WolfeState, phi: Array, dphi: Array) -> WolfeState:
        phi0, dphi0, old = state.phi0, state.dphi0, state.bracket
        trial = Trial(state.alpha, phi, dphi)
        finite = jnp.isfinite(phi) & jnp.isfinite(dphi)
        decrease = armijo(phi0, dphi0, trial.alpha, phi, c1)
        done = decrease & strong_curvature(dphi0, dphi, c2)
        done = finite & (done | approximate_wolfe(phi0, dphi0, phi, dphi, c1, c2))

        auxiliary = state.auxiliary & ~(decrease & (dphi >= 0))
        tilt = jnp.where(
            auxiliary & (phi <= old.lo.phi) & ~decrease, c1 * dphi0, jnp.zeros_like(dphi0)
        )
        cap = jnp.where(finite, state.cap, trial.alpha)
        reach = _reach(old, trial.alpha, growth, first=state.trials == 0)
        alpha = _interpolate(_tilt(old.lo, tilt), _tilt(old.hi, tilt), _tilt(trial, tilt),
                             old.closed, reach)  # fmt: skip
        bracket = _narrow(old, trial, finite, tilt)
        alpha, bracket = _bisect_if_slow(alpha, bracket)
        # Towards a non-finite trial only in small steps; before there is any, in larger ones.
        alpha = jnp.where(finite, alpha, bracket.lo.alpha + 0.1 * (cap - bracket.lo.alpha))
        alpha = jnp.minimum(alpha, bracket.lo.alpha + 0.5 * (cap - bracket.lo.alpha))

        trials = state.trials + 1
        return WolfeState(
            alpha=jnp.where(done, trial.alpha, alpha),
            phi0=phi0,
            dphi0=dphi0,
            bracket=bracket,
            cap=cap,
            auxiliary=auxiliary,
            trials=trials,
            done=done,
            failed=~done & ((trials >= max_trials) | _exhausted(bracket, alpha, trial.alpha)),
            improved=finite & (phi < old.lo.phi),
        )

    return LineSearch(init, step)


def _tilt(t: Trial, slope: Array) -> Trial:
    """The same trial of phi(alpha) − slope · alpha."""
    return Trial(t.alpha, t.phi - slope * t.alpha, t.dphi - slope)


def _reach(b: Bracket, alpha: Array, growth: float, first: Array) -> tuple[Array, Array]:
    """Where the next trial may lie: inside a closed bracket, or beyond the last trial."""
    ahead = alpha - b.lo.alpha
    nearest = jnp.where(first, jnp.zeros_like(alpha), alpha + 1.1 * ahead)
    return (
        jnp.where(b.closed, jnp.minimum(b.lo.alpha, b.hi.alpha), nearest),
        jnp.where(b.closed, jnp.maximum(b.lo.alpha, b.hi.alpha), alpha + growth * ahead),
    )


def _interpolate(
    lo: Trial, hi: Trial, t: Trial, closed: Array, reach: tuple[Array, Array]
) -> Array:
    """The next trial from the ends of the bracket and the last trial (MINPACK-2's ``dcstep``)."""
    higher = t.phi > lo.phi
    turned = t.dphi * jnp.sign(lo.dphi) < 0
    flatter = jnp.abs(t.dphi) < jnp.abs(lo.dphi)
    steep = ~higher & ~turned & ~flatter
    far = jnp.where(t.alpha > lo.alpha, reach[1], reach[0])

    other = jax.tree.map(functools.partial(jnp.where, steep), hi, lo)
    cubic, curved = _cubic_minimiser(other, t)
    secant = t.alpha + _ratio(t.dphi, t.dphi - lo.dphi) * (lo.alpha - t.alpha)
    gap = t.alpha - lo.alpha
    parabola = lo.alpha + 0.5 * _ratio(lo.dphi, _ratio(lo.phi - t.phi, gap) + lo.dphi) * gap

    nearer_lo = jnp.abs(cubic - lo.alpha) < jnp.abs(parabola - lo.alpha)
    case_higher = jnp.where(nearer_lo, cubic, cubic + 0.5 * (parabola - cubic))

    cubic_is_farther = jnp.abs(cubic - t.alpha) > jnp.abs(secant - t.alpha)
    case_turned = jnp.where(cubic_is_farther, cubic, secant)

    # The cubic may have its minimiser behind us, or none at all: then as far as allowed.
    ahead = curved & ((cubic - t.alpha) * gap > 0)
    cubic_ahead = jnp.where(ahead, cubic, far)
    cubic_is_nearer = jnp.abs(cubic_ahead - t.alpha) < jnp.abs(secant - t.alpha)
    inside = jnp.where(cubic_is_nearer, cubic_ahead, secant)
    limit = t.alpha + 0.66 * (hi.alpha - t.alpha)
    inside = jnp.where(gap > 0, jnp.minimum(limit, inside), jnp.maximum(limit, inside))
    beyond = jnp.clip(jnp.where(cubic_is_nearer, secant, cubic_ahead), *reach)
    case_flatter = jnp.where(closed, inside, beyond)

    case_steep = jnp.where(closed, cubic, far)
    return jnp.where(
        higher, case_higher,
        jnp.where(turned, case_turned, jnp.where(flatter, case_flatter, case_steep)),
    )  # fmt: skip


def _cubic_minimiser(u: Trial, t: Trial) -> tuple[Array, Array]:
    """Minimiser of the cubic through two trials, and whether the cubic has one.

    References:
      Nocedal & Wright, 2006, eq. 3.59.
    """
    theta = 3 * _ratio(u.phi - t.phi, t.alpha - u.alpha) + u.dphi + t.dphi
    scale = jnp.maximum(jnp.abs(theta), jnp.maximum(jnp.abs(u.dphi), jnp.abs(t.dphi)))
    scale = jnp.where(scale > 0, scale, jnp.ones_like(scale))
    square = (theta / scale) ** 2 - (u.dphi / scale) * (t.dphi / scale)
    gamma = scale * jnp.sqrt(jnp.maximum(square, 0))
    gamma = jnp.where(t.alpha > u.alpha, -gamma, gamma)
    r = _ratio((gamma - t.dphi) + theta, (gamma + (u.dphi - t.dphi)) + gamma)
    return t.alpha + r * (u.alpha - t.alpha), square > 0


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and a where b is 0 (a degenerate interpolation, which the safeguards catch)."""
    return a / jnp.where(b == 0, jnp.ones_like(b), b)


def _narrow(b: Bracket, t: Trial, finite: Array, tilt: Array) -> Bracket:
    """Put the last trial into the bracket."""
    higher = t.phi - tilt * t.alpha > b.lo.phi - tilt * b.lo.alpha
    turned = (t.dphi - tilt) * jnp.sign(b.lo.dphi - tilt) < 0
    replace_hi = functools.partial(jnp.where, finite & higher)
    replace_lo = functools.partial(jnp.where, finite & ~higher)
    behind = jax.tree.map(functools.partial(jnp.where, finite & ~higher & turned), b.lo, b.hi)
    return b._replace(
        lo=jax.tree.map(replace_lo, t, b.lo),
        hi=jax.tree.map(replace_hi, t, behind),
        closed=b.closed | (finite & (higher | turned)),
    )


def _bisect_if_slow(alpha: Array, b: Bracket) -> tuple[Array, Bracket]:
    """Bisect when two trials have not shrunk a closed bracket by a third."""
    width = jnp.abs(b.hi.alpha - b.lo.alpha)
    slow = b.closed & (width >= 0.66 * b.last_width)
    alpha = jnp.where(slow, b.lo.alpha + 0.5 * (b.hi.alpha - b.lo.alpha), alpha)
    return alpha, b._replace(
        last_width=jnp.where(b.closed, b.width, b.last_width),
        width=jnp.where(b.closed, width, b.width),
    )


def _exhausted(b: Bracket, alpha: Array, last: Array) -> Array:
    """Whether the next trial cannot be told from one already made."""
    near = 4 * eps(alpha.dtype) * jnp.maximum(jnp.abs(alpha), jnp.abs(last))
    at = [jnp.abs(alpha - known) <= near for known in (b.lo.alpha, b.hi.alpha, last)]
    return at[0] | (at[1] & b.closed) | at[2] | ~jnp.isfinite(alpha)
