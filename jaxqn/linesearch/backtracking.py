"""Backtracking until sufficient decrease, with quadratic interpolation."""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.linesearch.conditions import approximate_wolfe, armijo, rounding_noise
from jaxqn.linesearch.protocol import Bend, LineSearch, check_options

__all__ = ["BacktrackingState", "backtracking"]


class BacktrackingState(NamedTuple):
    """State of :func:`backtracking`.

    Attributes:
      alpha: next step length to try.
      phi0: value at 0.
      dphi0: slope at 0.
      trials: trials so far, int32.
    """

    alpha: Array
    phi0: Array
    dphi0: Array
    trials: Array


@functools.cache
def backtracking(*, c1: float = 1e-4, shrink: float = 0.5, max_trials: int = 30) -> LineSearch:
    """Backtracking line search with safeguarded quadratic interpolation.

    It accepts phi(alpha) ≤ phi(0) + c1 alpha phi'(0), or the approximate Wolfe conditions where the
    value is at its rounding noise. A refused trial is followed by the minimiser of the parabola
    through phi(0), phi'(0) and phi(alpha), kept within [0.1, ``shrink``] · alpha. It never
    lengthens the first trial, so that pairs with too little curvature occur, and the update skips
    them; prefer :func:`jaxqn.wolfe` unless gradients are expensive.

    Args:
      c1: fraction of the predicted decrease to insist on, in [0, 1/2).
      shrink: largest factor from one trial to the next, in [0.1, 1).
      max_trials: evaluations before giving up.

    Returns:
      A :class:`jaxqn.LineSearch`.

    Raises:
      ValueError: an option is out of its bounds.

    Example:
      >>> import jax.numpy as jnp
      >>> search = backtracking()
      >>> state = search.init(jnp.array(1.0), jnp.array(-2.0), jnp.array(2.0))
      >>> state, done, failed = search.step(state, jnp.array(1.0), jnp.array(2.0))  # (1 − alpha)²
      >>> float(state.alpha), bool(done)
      (1.0, False)

    References:
      Nocedal & Wright, 2006, algorithm 3.1 and eq. 3.58.
    """
    check_options(max_trials, c1=(c1, 0, 0.5), shrink=(shrink, 0.1, 1))

    def init(phi0: Array, dphi0: Array, alpha0: Array) -> BacktrackingState:
        return BacktrackingState(alpha0, phi0, dphi0, trials=jnp.zeros((), jnp.int32))

    def step(
        state: BacktrackingState, phi: Array, dphi: Array, bend: Bend | None = None
    ) -> tuple[BacktrackingState, Array, Array]:
        alpha, phi0, dphi0 = state.alpha, state.phi0, state.dphi0
        finite = jnp.isfinite(phi) & jnp.isfinite(dphi)
        slope = dphi0 if bend is None else bend.promised / alpha
        done = armijo(phi0, slope, alpha, phi, c1)
        done = finite & (done | approximate_wolfe(phi0, dphi0, phi, dphi, c1, 0.9))
        excess = phi - phi0 - alpha * slope
        curved = finite & (excess > 0)
        parabola = -0.5 * alpha * slope * (alpha / jnp.where(curved, excess, jnp.ones_like(excess)))
        shorter = jnp.where(curved, parabola, 0.1 * alpha)
        trials = state.trials + 1
        next_alpha = jnp.clip(shorter, 0.1 * alpha, shrink * alpha)
        # The value rises visibly, and at the next trial rounding would hide even a decrease.
        noise = rounding_noise(phi0)
        hopeless = (phi > phi0 + noise) & (next_alpha * jnp.abs(dphi0) < noise)
        exhausted = (trials >= max_trials) | hopeless
        state = state._replace(alpha=next_alpha, trials=trials)
        return state, done, ~done & exhausted

    return LineSearch(init, step, bends=True)
