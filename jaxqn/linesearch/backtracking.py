"""Backtracking until sufficient decrease, with quadratic interpolation."""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.linesearch.base import LineSearch
from jaxqn.linesearch.conditions import approximate_wolfe, armijo

__all__ = ["BacktrackingState", "backtracking"]


class BacktrackingState(NamedTuple):
    """State of :func:`backtracking`.

    Attributes:
      alpha: next trial, or the accepted one.
      phi0: value at 0.
      dphi0: slope at 0.
      best: lowest value seen, phi0 at first.
      trials: trials so far, int32.
      done: the last trial is acceptable.
      failed: no acceptable step was found.
      improved: the last trial is the lowest so far.
    """

    alpha: Array
    phi0: Array
    dphi0: Array
    best: Array
    trials: Array
    done: Array
    failed: Array
    improved: Array


@functools.cache
def backtracking(*, c1: float = 1e-4, shrink: float = 0.5, max_trials: int = 30) -> LineSearch:
    """Backtracking line search with safeguarded quadratic interpolation.

    Accepts phi(alpha) ≤ phi(0) + c1 alpha phi'(0), or the approximate Wolfe conditions where the
    value is at its rounding noise. A refused trial is followed by the minimiser of the parabola
    through phi(0), phi'(0) and phi(alpha), kept within [0.1, ``shrink``] · alpha. It never
    lengthens the first trial, so pairs with too little curvature occur and are skipped by the
    update; prefer :func:`jaxqn.wolfe` unless gradients are dear.

    Args:
      c1: fraction of the predicted decrease to insist on, in (0, 1/2).
      shrink: largest factor from one trial to the next, in (0, 1).
      max_trials: evaluations before giving up.

    Returns:
      A :class:`jaxqn.LineSearch`.

    Example:
      >>> import jax.numpy as jnp
      >>> search = backtracking()
      >>> state = search.init(jnp.array(1.0), jnp.array(-2.0), jnp.array(2.0))
      >>> state = search.step(state, jnp.array(1.0), jnp.array(2.0))  # (1 − alpha)² at 2
      >>> float(state.alpha), bool(state.done)
      (1.0, False)

    References:
      Nocedal & Wright, 2006, algorithm 3.1 and eq. 3.58.
    """

    def init(phi0: Array, dphi0: Array, alpha0: Array) -> BacktrackingState:
        false = jnp.zeros((), bool)
        return BacktrackingState(
            alpha=alpha0,
            phi0=phi0,
            dphi0=dphi0,
            best=phi0,
            trials=jnp.zeros((), jnp.int32),
            done=false,
            failed=false,
            improved=false,
        )

    def step(state: BacktrackingState, phi: Array, dphi: Array) -> BacktrackingState:
        alpha, phi0, dphi0 = state.alpha, state.phi0, state.dphi0
        finite = jnp.isfinite(phi) & jnp.isfinite(dphi)
        done = armijo(phi0, dphi0, alpha, phi, c1) | approximate_wolfe(phi0, dphi0, phi, dphi, c1, 0.9)
        done &= finite
        improved = finite & (phi < state.best)
        excess = phi - phi0 - alpha * dphi0
        parabola = -0.5 * alpha * dphi0 * (alpha / jnp.where(excess > 0, excess, 1))
        shorter = jnp.where(finite & (excess > 0), parabola, 0.1 * alpha)
        trials = state.trials + 1
        return BacktrackingState(
            alpha=jnp.where(done, alpha, jnp.clip(shorter, 0.1 * alpha, shrink * alpha)),
            phi0=phi0,
            dphi0=dphi0,
            best=jnp.where(improved, phi, state.best),
            trials=trials,
            done=done,
            failed=~done & (trials >= max_trials),
            improved=improved,
        )

    return LineSearch(init, step)
