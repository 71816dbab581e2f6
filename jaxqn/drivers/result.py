"""What the drivers return, and what a result says of curvature."""

from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import is_traced
from jaxqn.drivers.summary import plot_history, shown, status_name, summary
from jaxqn.linalg import dot, unpacked
from jaxqn.loop import (
    MESSAGES,
    History,
    LoopState,
    from_scaled,
    gradient_from_scaled,
    gradient_to_scaled,
    succeeded,
)
from jaxqn.quasi_newton import (
    DenseState,
    MemoryState,
    Normal,
    RegionMemoryState,
    RegionState,
    StructuredState,
    Wide,
    dense,
    inverse_hessian,
    inverse_hessian_product,
    known_matrix,
    stored_pairs,
)

__all__ = ["MinimizeResult", "message_of", "status_shown"]


def status_shown(status: Any) -> Any:
    """A single, concrete status by name; any other as it is, or by its shape."""
    if isinstance(status, jax.Array) and not is_traced(status) and status.ndim == 0:
        return status_name(status)
    return shown(status)


def message_of(status: Array, messages: Any = MESSAGES) -> str:
    """A single, concrete status in words."""
    if np.ndim(status):
        raise ValueError("message is for one problem; a batch has statuses: see result.status")
    return messages[status]


NO_INVERSE = "the method 'residual' keeps no inverse Hessian: its matrices are those of residuals"


class MinimizeResult(NamedTuple):
    """What :func:`minimize` returns. Under ``vmap`` every field has the batch's leading axis.

    Attributes:
      x: the lowest point seen, like ``x0``.
      fun: value there, shape ``()``.
      jac: gradient there, like ``x0``; where a bound holds, its multiplier.
      status: :class:`jaxqn.Status` as int32, shape ``()``.
      nit: iterations (steps taken), int32.
      nfev: evaluations of value and gradient, int32.
      state: everything needed to continue the run: ``minimize(..., state=result.state)``; a
        ``LoopState``; of a batch, a :class:`jaxqn.BatchState`.
      aux: auxiliary output of the objective at ``x``, or ``None``.
      active: which bound holds, like ``x``, int32: −1 the lower, 1 the upper, 0 none; ``None``
        where there are no bounds.
      history: the last iterations, of a run with ``history=N``, else ``None``: a
        :class:`jaxqn.History`.
    """

    x: ArrayTree
    fun: Array
    jac: ArrayTree
    status: Array
    nit: Array
    nfev: Array
    state: Any
    aux: Any = None
    active: ArrayTree = None
    history: History | None = None

    def __repr__(self) -> str:
        """A single status by name, large arrays by shape; no state, which is as large as H."""
        x, jac, aux = shown((self.x, self.jac, self.aux))
        status, fun = status_shown(self.status), shown(self.fun)
        counts = f"status={status}, nit={shown(self.nit)}, nfev={shown(self.nfev)}, fun={fun}"
        return f"MinimizeResult({counts}, x={x}, jac={jac}, aux={aux})"

    @property
    def success(self) -> Array:
        """Whether a tolerance was met: CONVERGED, FTOL or XTOL. Boolean array."""
        return succeeded(self.status)

    @property
    def message(self) -> str:
        """The status in words, with advice. Only for a single, concrete result."""
        return message_of(self.status)

    @property
    def status_name(self) -> Any:
        """The status by name, such as "CONVERGED"; of a batch, a NumPy array of names."""
        return status_name(self.status)

    def summary(self, errors: ArrayTree | None = None) -> str:
        """The result as text: the status and what to do, and the parameters by name.

        Of a batch, how many ended how, and where the value is largest.

        Args:
          errors: standard errors, like ``x``, to stand beside the parameters.
        """
        return summary(self, "fun", errors)

    def plot_history(self, axis: Any = None) -> Any:
        """A picture of ``history`` by matplotlib: value and gradient against evaluations.

        Args:
          axis: where to draw; by default a new figure.

        Returns:
          The axis.
        """
        return plot_history(self.history, axis)

    @property
    def hess_inv(self) -> Array:
        """The final approximation of the inverse Hessian over ravelled parameters, ``(n, n)``.

        With bounds, its rows and columns of variables that no bound holds are that; the others
        mean nothing.

        Of a sum of squares it is the inverse of JᵀJ, or of JᵀJ + S where S was in use. Otherwise
        it is what the method needed, which for the self-scaled ones may be far from the inverse of
        the Hessian, and for "sr1" indefinite; for standard errors take
        :func:`jaxqn.covariance`.
        """
        if isinstance(self._linear, Normal):
            return _inverse_model(self.state)
        if isinstance(self._linear, Wide):
            raise ValueError(NO_INVERSE)
        if isinstance(self._approx, RegionState):
            return _inverse_of_region(self.state)
        if not isinstance(self._approx, DenseState):
            raise ValueError(
                "a limited-memory method has no matrix: multiply by it with "
                "result.hess_inv_product(v), or take result.pairs"
            )
        return _matrix(self.state)

    def hess_inv_product(self, v: ArrayTree) -> ArrayTree:
        """H v with the final approximation of the inverse Hessian, for ``v`` like ``x``.

        Of limited memory by two reads of its pairs, without a matrix. Only for a single result.
        """
        if np.ndim(self.status):
            raise ValueError("hess_inv_product is for one problem: take it under jax.vmap")
        if isinstance(self._linear, Normal):
            vector, back = jax.flatten_util.ravel_pytree(v)
            return back(dot(_inverse_model(self.state), vector))
        if isinstance(self._linear, Wide):
            raise ValueError(NO_INVERSE)
        if isinstance(self._approx, RegionState):
            vector, back = jax.flatten_util.ravel_pytree(v)
            return back(dot(_inverse_of_region(self.state), vector))
        product = _dense_product if isinstance(self._approx, DenseState) else _limited_product
        return product(self.state, v)

    @property
    def pairs(self) -> tuple[ArrayTree, ArrayTree, Array]:
        """The pairs of a limited-memory method, see :func:`jaxqn.stored_pairs`.

        In the objective's own units, which are not those of the state. Only for a single result.
        """
        if np.ndim(self.status):
            raise ValueError("pairs is for one problem: take jaxqn.stored_pairs under jax.vmap")
        if not isinstance(self._approx, MemoryState | RegionMemoryState):
            raise ValueError("a dense method keeps no pairs: its matrix is result.hess_inv")
        return _pairs(self.state, self.x)

    @property
    def _approx(self) -> Any:
        """The approximation of the inverse Hessian that the run ended with."""
        if not isinstance(self.state, LoopState):
            raise ValueError(
                "a batch keeps no inverse Hessians and no pairs: run minimize from the x of those "
                "that you want them of, or invert jaxqn.derivatives.hessian(fun) there"
            )
        return self.state.approx

    @property
    def _linear(self) -> Any:
        """The residuals that the run ended with, linearised, or ``None``."""
        return self.state.point.linear if isinstance(self.state, LoopState) else None


# Every reader of curvature is compiled once for a kind of state.


@jax.jit
def _matrix(state: LoopState) -> Array:
    u, g_scale = state.x_scale, state.g_scale[..., None, None]
    H = inverse_hessian(state.approx) / g_scale
    return H if u is None else u[..., :, None] * u[..., None, :] * H


@jax.jit
def _inverse_model(state: LoopState) -> Array:
    """The inverse of the last model of a sum of squares, JᵀJ or JᵀJ + S."""
    B, u = state.point.linear.H, state.x_scale
    if isinstance(state.approx, StructuredState):
        B = B + state.approx.in_use[..., None, None] * state.approx.S
    H = jnp.linalg.inv(B)
    return H if u is None else u[..., :, None] * u[..., None, :] * H


@jax.jit
def _inverse_of_region(state: LoopState) -> Array:
    """The inverse of the matrix that symmetric rank one has made in a trust region."""
    u, g_scale = state.x_scale, state.g_scale[..., None, None]
    H = jnp.linalg.inv(known_matrix(state.approx)) / g_scale
    return H if u is None else u[..., :, None] * u[..., None, :] * H


@jax.jit
def _dense_product(state: LoopState, v: ArrayTree) -> ArrayTree:
    vector, back = jax.flatten_util.ravel_pytree(v)
    Hv = dense().apply(state.approx, gradient_to_scaled(vector, state.x_scale))
    return back(from_scaled(Hv / state.g_scale, state.x_scale))


@jax.jit
def _limited_product(state: LoopState, v: ArrayTree) -> ArrayTree:
    u, g_scale = unpacked(state.x_scale, v), state.g_scale
    Hv = inverse_hessian_product(state.approx, gradient_to_scaled(v, u))
    return from_scaled(jax.tree.map(lambda h: h / g_scale.astype(h.dtype), Hv), u)


@jax.jit
def _pairs(state: LoopState, x: ArrayTree) -> tuple[ArrayTree, ArrayTree, Array]:
    S, Y, valid = stored_pairs(state.approx)
    g_scale, u = state.g_scale, jax.tree.map(lambda u: u[None], unpacked(state.x_scale, x))
    S, Y = unpacked(S, x), unpacked(Y, x)
    Y = jax.tree.map(lambda y: g_scale.astype(y.dtype) * y, Y)
    return from_scaled(S, u), gradient_from_scaled(Y, u), valid
