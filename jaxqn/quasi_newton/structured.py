"""Gauss-Newton matrices, alone and with a rank-2 correction for what they leave out."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.formulas import structured_update
from jaxqn.linalg import inner, matvec
from jaxqn.quasi_newton.protocol import Model, Normal, QuasiNewton, Trial

__all__ = ["StructuredState", "gauss_newton", "model_matrix", "residual_space", "structured"]

SWITCH = 1.5
"""How much worse the model in use must have predicted a decrease before the other one is used."""


class StructuredState(NamedTuple):
    """What JᵀJ leaves out of the Hessian, as far as pairs show it.

    Attributes:
      S: shape ``(n, n)``, symmetric.
      in_use: 1 where the model is JᵀJ + S, 0 where it is JᵀJ; in the dtype of S, shape ``()``.
      s: the last step, shape ``(n,)``.
      h: JᵀW times the second derivative of the residuals along s, shape ``(n,)``.
    """

    S: Array
    in_use: Array
    s: Array
    h: Array


@functools.cache
def structured() -> QuasiNewton:
    """JᵀJ + S within a trust region, for a :func:`jaxqn.sum_of_squares`.

    S is what JᵀJ leaves out of the Hessian, learned by :func:`jaxqn.structured_update` from
    y# = y − J₊ᵀJ₊ s, which needs no Jacobian of before: the state is n-by-n, whatever the number of
    residuals is. It is used where JᵀJ + S predicted the last decrease clearly better than JᵀJ. From
    three points the method knows how residuals bend along its last step,
    r_ss ≈ 2 (r − r₊ + J₊ s), and a step that goes on along it allows for that (geodesic
    acceleration).

    Returns:
      A :class:`jaxqn.QuasiNewton` over flat vectors that asks its host for the Jacobian.

    Cost: per evaluation, n products with J; O(m n²) for JᵀJ; a factorisation, O(n³). Memory: 2 n².

    Example:
      >>> from jaxqn import minimize, sum_of_squares
      >>> residuals = lambda x: jnp.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])
      >>> result = minimize(sum_of_squares(residuals), jnp.array([-1.2, 1.0]), method=structured())
      >>> [round(float(value), 3) for value in result.x]
      [1.0, 1.0]

    References:
      Dennis, Gay & Welsch, ACM Trans. Math. Softw. 7 (1981); Transtrum & Sethna, arXiv:1201.5885,
      for the acceleration.
    """
    return _host_only(_start, Model("radius", _learn, model_matrix, _bend))


@functools.cache
def gauss_newton() -> QuasiNewton:
    """JᵀJ with damping, Levenberg and Marquardt's method, for a :func:`jaxqn.sum_of_squares`.

    It is the faster one on a batch of easy fits, and the weaker one far from a solution, with
    large residuals and with robust losses.

    Returns:
      A :class:`jaxqn.QuasiNewton` over flat vectors that asks its host for the Jacobian.

    Example:
      >>> from jaxqn import minimize, sum_of_squares
      >>> residuals = lambda x: jnp.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])
      >>> result = minimize(sum_of_squares(residuals), jnp.array([-1.2, 1.0]), method="lm")
      >>> [round(float(value), 3) for value in result.x]
      [1.0, 1.0]

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, section 10.3; Nielsen,
      IMM-REP-1999-05, for the damping.
    """
    return _host_only(_stateless, Model("damping", _learns_nothing, lambda _, linear: linear.H))


@functools.cache
def residual_space() -> QuasiNewton:
    """Levenberg-Marquardt in the space of the residuals, for fewer of them than parameters.

        p = −Jᵀ(JJᵀ + mu I)⁻¹ r,    then p + a/2,    a = −Jᵀ(JJᵀ + mu I)⁻¹ r_pp,

    r_pp being the second derivative of the residuals along p (geodesic acceleration). Matrices are
    m-by-m and m-by-n. Made for physics-informed networks.

    Returns:
      A :class:`jaxqn.QuasiNewton` over flat vectors that asks its host for the Jacobian.

    Example:
      >>> from jaxqn import minimize, sum_of_squares
      >>> residuals = lambda x: jnp.array([x[0] * x[1] - 2, x[1] * x[2] - 3])
      >>> result = minimize(sum_of_squares(residuals), jnp.ones(3), method="residual")
      >>> [round(float(value), 3) for value in result.x[:2] * result.x[1:]]
      [2.0, 3.0]

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, section 10.3; Transtrum & Sethna,
      arXiv:1201.5885, for the acceleration.
    """
    return _host_only(_stateless, Model("damping", _learns_nothing, None))


def _stateless(_x: Array) -> tuple[()]:
    return ()


def _learns_nothing(state: Any, _trial: Trial) -> Any:
    return state


def _host_only(start: Any, model: Model) -> QuasiNewton:
    """A method that lives in its model: without residuals there is nothing to correct or apply."""

    def refuse(*_: Any) -> Any:
        raise TypeError(
            "this method is made from residuals: hand jaxqn.sum_of_squares(residuals) to a driver"
        )

    def init(x: Array, H0: Any = None) -> Any:
        if H0 is not None:
            raise ValueError("a method for sums of squares takes no initial inverse Hessian")
        return start(x)

    return QuasiNewton(
        init=init,
        update=refuse,
        apply=refuse,
        advance=refuse,
        reset=refuse,
        needs="jacobian",
        model=model,
    )


def _start(x: Array) -> StructuredState:
    n, zeros = x.size, jnp.zeros_like(x)
    return StructuredState(jnp.zeros((n, n), x.dtype), jnp.zeros((), x.dtype), zeros, zeros)


def _learn(state: StructuredState, trial: Trial) -> StructuredState:
    before, after = trial.before, trial.after
    Hs = matvec(after.H, trial.s)
    pair = trial.s, trial.g_trial - trial.g, trial.g_trial - trial.g - Hs
    s, y, y_sharp = jnp.where(trial.moved, jnp.stack(pair), 0)
    bend = 2 * (after.pulled - trial.g_trial + Hs)
    return StructuredState(
        S=structured_update(state.S, s, y, y_sharp, weights=trial.weights),
        in_use=_truer(state, before, trial),
        s=jnp.where(trial.moved, s, state.s),
        h=jnp.where(trial.moved, bend, state.h),
    )


def _truer(state: StructuredState, before: Normal, trial: Trial) -> Array:
    """Which model to use: the other one, if it foretold the decrease clearly better."""
    s, in_use = trial.s, state.in_use > 0
    gs, sHs, sSs = inner((trial.g, s), (s, matvec(before.H, s)), (s, matvec(state.S, s)))
    alone = -gs - 0.5 * sHs
    both = alone - 0.5 * sSs
    error, error_of_both = jnp.abs(alone - trial.decrease), jnp.abs(both - trial.decrease)
    worse = jnp.where(in_use, SWITCH * error < error_of_both, SWITCH * error_of_both < error)
    return (in_use ^ (worse & trial.finite)).astype(state.in_use.dtype)


def model_matrix(state: StructuredState, linear: Normal) -> Array:
    """JᵀJ, or JᵀJ + S where S is in use."""
    return linear.H + state.in_use * state.S


def _bend(state: StructuredState) -> tuple[Array, Array]:
    return state.s, state.h
