"""The front door for residuals: ``least_squares(residuals, x0, args)``."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import answered, called, check_args, check_callback, check_x0
from jaxqn.drivers.minimize import minimize
from jaxqn.drivers.result import MinimizeResult, message_of, status_shown
from jaxqn.drivers.summary import plot_history, shown, status_name, summary
from jaxqn.formulas import Loss
from jaxqn.linalg import vectors
from jaxqn.loop import (
    History,
    LoopState,
    MinimizeOptions,
    SumOfSquares,
    box_of,
    problem_of,
    succeeded,
    sum_of_squares,
    tolerances,
)
from jaxqn.quasi_newton import QuasiNewton

__all__ = ["LeastSquaresResult", "least_squares"]


class LeastSquaresResult(NamedTuple):
    """What :func:`least_squares` returns. Under ``vmap`` every field has the batch's leading axis.

    Attributes:
      x: the solution, like ``x0``.
      cost: ½ Σ C² rho((rᵢ/C)²) there, shape ``()``.
      residuals: r(x), as ``residuals`` returns it.
      grad: gradient of ``cost``, like ``x0``; where a bound holds, its multiplier.
      status: :class:`jaxqn.Status` as int32, shape ``()``.
      nit: steps taken, int32.
      nfev: evaluations of the residuals; of those that were not refused, with their Jacobian.
      active: which bound holds, like ``x``, int32: −1 the lower, 1 the upper, 0 none; ``None``
        where there are no bounds.
      state: everything needed to continue the run.
      aux: auxiliary output of ``residuals`` at ``x``, or ``None``.
      history: the last steps, of a run with ``history=N``, else ``None``: a
        :class:`jaxqn.History`.
    """

    x: ArrayTree
    cost: Array
    residuals: ArrayTree
    grad: ArrayTree
    status: Array
    nit: Array
    nfev: Array
    active: ArrayTree
    state: Any
    aux: Any
    history: History | None = None

    def __repr__(self) -> str:
        """A single status by name, large arrays by shape; no state."""
        status, cost = status_shown(self.status), shown(self.cost)
        counts = f"status={status}, nit={shown(self.nit)}, nfev={shown(self.nfev)}, cost={cost}"
        x, residuals, grad = shown((self.x, self.residuals, self.grad))
        return f"LeastSquaresResult({counts}, x={x}, residuals={residuals}, grad={grad})"

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
        """The status by name; of a batch, a NumPy array of names."""
        return status_name(self.status)

    def summary(self, errors: ArrayTree | None = None) -> str:
        """The result as text; see :meth:`jaxqn.MinimizeResult.summary`."""
        return summary(self, "cost", errors)

    def plot_history(self, axis: Any = None) -> Any:
        """A picture of ``history``; see :meth:`jaxqn.MinimizeResult.plot_history`."""
        return plot_history(self.history, axis)


@answered
def least_squares(
    residuals: Callable[..., Any],
    x0: ArrayTree,
    args: tuple[Any, ...] = (),
    *,
    bounds: Any = None,
    loss: str | Loss = "linear",
    f_scale: float = 1.0,
    method: str | QuasiNewton | None = None,
    x_scale: Any = None,
    gtol: Any = None,
    ftol: Any = 0.0,
    xtol: Any = 0.0,
    maxiter: Any = None,
    maxfun: Any = None,
    has_aux: bool = False,
    jac: Callable[..., Any] | None = None,
    implicit: bool | str = True,
    state: LoopState | None = None,
    callback: Callable[[LeastSquaresResult], Any] | None = None,
    callback_every: int = 1,
    progress: bool = False,
    history: int = 0,
) -> LeastSquaresResult:
    """Fit parameters by least squares: minimise ½ Σ C² rho((rᵢ(x)/C)²), without or with bounds.

    The default method steps to the minimum of a quadratic model with the matrix JᵀJ + S within a
    trust region; S is a rank-2 correction for what JᵀJ leaves out of the Hessian
    (:func:`jaxqn.structured`). It may be called under ``jit`` and ``vmap``; for many fits hand
    :func:`jaxqn.sum_of_squares` to :func:`jaxqn.minimize_batch`.

    Args:
      residuals: ``residuals(x, *args) -> r``, a pytree of real floating arrays, or ``(r, aux)``
        with ``has_aux``. Keep it one function object, see :func:`jaxqn.minimize`.
      x0: first point, a pytree of real floating arrays of one dtype.
      args: further arguments of ``residuals``: the data.
      bounds: see :func:`jaxqn.minimize`. No trial leaves the box. Of a step that would, the
        parameters that leave are clamped, and the others are solved for again.
      loss: "linear", or against outliers "huber", "soft_l1", "cauchy", "arctan" or a function; see
        :func:`jaxqn.sum_of_squares`.
      f_scale: the size C of residual above which a robust loss takes it for an outlier.
      method: "structured"; "lm" (Levenberg and Marquardt's, for batches of easy fits); or
        "residual", whose matrices are m-by-m. By default "structured", or "residual" for fewer
        residuals than parameters without bounds.
      x_scale: sizes of the parameters, like ``x0`` or one number. Only "residual" depends on it;
        the others measure by the columns of the Jacobian.
      gtol: stop when the largest entry of the gradient of the cost is at most this. By default a
        run stops where the cosine of the angle between r and what a change of x can do to r is
        within max(1e-10, 80 eps), or where for residuals that vanish no step changes x. Neither
        depends on the scale of x or r.
      ftol: stop when a step decreases the cost by at most this fraction; 0 is off.
      xtol: stop when a step is at most this fraction of x long; 0 is off.
      maxiter: steps allowed in all; by default max(1000, 200 n).
      maxfun: evaluations allowed in all; by default unlimited.
      has_aux: whether ``residuals`` returns auxiliary data.
      jac: the Jacobian, if there is a fast way to it; see :func:`jaxqn.sum_of_squares`.
      implicit: see :func:`jaxqn.minimize`; derivatives of ``residuals`` follow those of ``x``.
      state: ``result.state`` of an earlier call, to continue where it stopped.
      callback: called after every step with the result so far; a true return value stops the run.
        Eager calls only.
      callback_every: steps between two calls of it.
      progress: see :func:`jaxqn.minimize`.
      history: steps of which ``result.history`` keeps value, gradient and length: the last so many.

    Returns:
      A :class:`LeastSquaresResult`. A run that ends badly is a status, never an exception; SINGULAR
      says that the residuals do not depend on some parameter any more.

    Raises:
      TypeError: residuals that are not real floating arrays; see :func:`jaxqn.minimize`.
      ValueError: an unknown loss or method, no residuals; see :func:`jaxqn.minimize`.

    Cost: per evaluation min(n, m) products with the Jacobian, O(m n²) for JᵀJ and O(n³) for the
    step. A refused trial costs no Jacobian, except under ``vmap``.

    Example:
      >>> import jax.numpy as jnp
      >>> def misfit(p, t, y):
      ...     return p["scale"] * jnp.exp(-p["rate"] * t) - y
      >>> t = jnp.linspace(0.0, 4.0, 30)
      >>> start = {"scale": jnp.array(1.0), "rate": jnp.array(1.0)}
      >>> fit = least_squares(misfit, start, (t, 3 * jnp.exp(-0.7 * t)), bounds=(0.0, None))
      >>> bool(fit.success), {name: round(float(v), 3) for name, v in fit.x.items()}
      (True, {'rate': 0.7, 'scale': 3.0})

    References:
      Dennis, Gay & Welsch, ACM Trans. Math. Softw. 7 (1981); Nocedal & Wright, Numerical
      Optimization, 2nd ed., 2006, chapter 10; Bates & Watts, Technometrics 23 (1981), for the stop.
    """
    objective: Any = sum_of_squares(residuals, loss, f_scale, has_aux=has_aux, jac=jac)
    check_args(args)
    check_callback(callback)
    x0, dtype, n = check_x0(x0)
    options: Any = MinimizeOptions(
        bounds=bounds,
        method=method,
        linesearch=None,
        gtol=gtol,
        ftol=ftol,
        xtol=xtol,
        maxiter=maxiter,
        maxfun=maxfun,
        has_aux=has_aux,
        hess_inv0=None,
        x_scale=x_scale,
        implicit=implicit,
    )
    _check(objective, x0, args, options, dtype, n)
    like = _residuals_at.eval_shape(x0, tuple(args), objective=objective)
    if method is None:
        m = vectors.size(like)
        method = "residual" if m < n and bounds is None else "structured"

    result = minimize(
        objective,
        x0,
        args,
        **{**options, "method": method},
        state=state,
        callback=None if callback is None else lambda result: callback(_completed(result, like)),
        callback_every=callback_every,
        progress=progress,
        history=history,
    )
    return _completed(result, like)


def _check(
    objective: SumOfSquares, x0: ArrayTree, args: Any, options: MinimizeOptions, dtype: Any, n: int
) -> None:
    """Raise errors for the options before the residuals are traced for their shapes."""
    problem = problem_of(objective, args, options)
    tolerances(dtype, n, options)
    problem.starts(options, x0)
    box_of(options, x0)


def _completed(result: MinimizeResult, like: ArrayTree) -> LeastSquaresResult:
    """The result in the words of this door, with residuals ``like`` those returned."""
    return LeastSquaresResult(
        x=result.x,
        cost=result.fun,
        residuals=_like(result.state.point.linear.r, like),
        grad=result.jac,
        status=result.status,
        nit=result.nit,
        nfev=result.nfev,
        active=result.active,
        state=result.state,
        aux=result.aux,
        history=result.history,
    )


@functools.partial(jax.jit, static_argnames=("objective",))
def _residuals_at(x: ArrayTree, args: Any, *, objective: SumOfSquares) -> ArrayTree:
    """The residuals as they are returned; traced once for what its shapes say."""
    out = called(objective.residuals, x, args)
    objective.flat(out)  # raises errors for what is no residual
    return out[0] if objective.has_aux else out


def _like(r: Array, like: ArrayTree) -> ArrayTree:
    """Flat residuals in the structure in which they were returned."""
    leaves, structure = jax.tree.flatten(like)
    parts = jax.lax.split(r, [leaf.size for leaf in leaves], axis=r.ndim - 1)
    shaped = [
        part.reshape(*part.shape[:-1], *leaf.shape)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, shaped)
