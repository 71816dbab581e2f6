"""Approximations of an inverse Jacobian: Broyden's, and Newton's from the Jacobian itself."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.formulas import jacobian_correction
from jaxqn.linalg import dot, eps, update_if

__all__ = ["InverseJacobian", "JacobianState", "broyden_jacobian", "newton_jacobian"]


class InverseJacobian(NamedTuple):
    """An approximation H of the inverse Jacobian of F, as a value; H is not symmetric.

    Attributes:
      init: ``(x, J0=None) -> state``; H = I unless given the Jacobian J0.
      update: ``(state, s, y) -> state``. The zero pair, and any unusable one, changes no entry. Of
        a dense method ``(state, s, y, D)``, which measures the unknowns by D x; D = 1 by default.
      apply: ``(state, F) -> H F``; no sign flip.
      renew: ``(state, J) -> state``, made anew from the Jacobian, or from what the method takes of
        it, at the point.
      dense: whether vectors must be flat arrays.
      every_step: whether the host renews it at every new point; else where progress stops.
      solve: of a method that has it, ``(push, F, rtol) -> d`` with J d ≈ F, from products
        ``push(v)`` = J v alone.
      needs: of its host, for :class:`jaxqn.loop.Method`.
      model: what it is a model of, likewise.
    """

    init: Callable[..., Any]
    update: Callable[[Any, Any, Any], Any]
    apply: Callable[[Any, Any], Any]
    renew: Callable[[Any, Any], Any]
    dense: bool = True
    every_step: bool = False
    solve: Callable[..., Any] | None = None
    needs: Literal["jacobian"] = "jacobian"
    model: Literal["equations"] = "equations"


class JacobianState(NamedTuple):
    """A dense Jacobian and its inverse.

    Attributes:
      J: shape ``(n, n)``.
      H: its inverse; of a singular J one that is regularised.
      counts: Jacobians evaluated, pairs absorbed and refused, int32, shape ``(3,)``.
    """

    J: Array
    H: Array
    counts: Array

    @property
    def njev(self) -> Array:
        """Jacobians evaluated so far, int32, shape ``(...)``."""
        return self.counts[..., 0]


@functools.cache
def broyden_jacobian(*, bad: bool = False) -> InverseJacobian:
    """Broyden's good or bad update of a dense inverse Jacobian.

    Args:
      bad: the update of least change in H rather than in J = H⁻¹; see
        :func:`jaxqn.broyden_good_update` and :func:`jaxqn.broyden_bad_update`.

    Returns:
      An :class:`InverseJacobian` over flat vectors. It keeps J beside H: a step within a trust
      region needs JᵀF. The good update is the least change of J D⁻¹, as in MINPACK, so that the
      units of the unknowns decide nothing; the bad one has that property by itself. Memory: 2 n².
      An update is four products and two passes, O(n²); a renewal is an inverse, O(n³).

    References:
      Dennis & Schnabel, Numerical Methods, 1983, section 8.3; Moré, Garbow & Hillstrom, MINPACK
      (1980), hybrd, for the scaled update.
    """
    return InverseJacobian(_init, functools.partial(_update, bad), _apply, _renew)


@functools.cache
def newton_jacobian() -> InverseJacobian:
    """Newton's method: the inverse of the Jacobian at every new point; pairs are ignored."""
    return InverseJacobian(_init, _same, _apply, _renew, every_step=True)


def _init(x: Array, J0: Array | None = None) -> JacobianState:
    identity = jnp.eye(x.size, dtype=x.dtype)
    state = JacobianState(identity, identity, jnp.zeros((3,), jnp.int32))
    if J0 is None:
        return state
    return _renew(state, jnp.asarray(J0, x.dtype))._replace(counts=state.counts)


def _same(state: JacobianState, _s: Array, _y: Array, _D: Array | None = None) -> JacobianState:
    return state


def _update(
    bad: bool, state: JacobianState, s: Array, y: Array, D: Array | None = None
) -> JacobianState:
    """The update of (D H, J D⁻¹) by the pair (D s, y)."""
    J, H, counts = state
    D = jnp.ones_like(s) if D is None else D
    nothing = jnp.zeros_like(s)
    turned = (nothing, dot(y, J) / D) if bad else (dot(D * (D * s), H), nothing)
    c = jacobian_correction(D * s, y, D * dot(H, y), turned[0], dot(J, s), turned[1], bad=bad)
    tally = jnp.stack([jnp.zeros((), bool), c.accepted, ~c.accepted & jnp.any(s != 0)])
    return JacobianState(
        J=jnp.where(c.accepted, J + jnp.outer(c.p, c.q * D), J),
        H=jnp.where(c.accepted, H + jnp.outer(c.u / D, c.v), H),
        counts=counts + tally.astype(counts.dtype),
    )


def _apply(state: JacobianState, F: Array) -> Array:
    return dot(state.H, F)


def _renew(state: JacobianState, J: Array) -> JacobianState:
    """The state made from a Jacobian; entries that are not finite count as 0."""
    J = jnp.where(jnp.isfinite(J), J, 0)
    n = J.shape[0]
    columns = jnp.max(jnp.abs(J), axis=0)
    D = jnp.where(columns > 0, columns, 1)
    scaled = J / D[None]
    H = jnp.linalg.inv(scaled)
    # A relative condition number in the 1-norm beyond what digits can tell means singular.
    condition = jnp.max(jnp.sum(jnp.abs(scaled), axis=0)) * jnp.max(jnp.sum(jnp.abs(H), axis=0))
    singular = ~(condition * eps(J.dtype) * n < 0.1)

    def regularised(_: Array) -> Array:
        A = dot(scaled.T, scaled)
        mu = (n * eps(J.dtype)) ** 0.5 * jnp.max(jnp.sum(jnp.abs(A), axis=0))
        mu = jnp.where(mu > 0, mu, 1)
        L = jnp.linalg.cholesky(A + mu * jnp.eye(n, dtype=J.dtype), symmetrize_input=False)
        return jax.scipy.linalg.cho_solve((L, True), scaled.T)

    H = update_if(singular, H, regularised, branch=True)
    return JacobianState(J, H / D[:, None], state.counts.at[0].add(1))
