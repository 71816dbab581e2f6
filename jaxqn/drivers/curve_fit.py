"""SciPy's ``curve_fit``, by :func:`jaxqn.least_squares`."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import Array
from jaxqn.checks import check_hashable, check_keywords, is_traced
from jaxqn.drivers.least_squares import LeastSquaresResult, least_squares
from jaxqn.drivers.small_programs import eager_program
from jaxqn.formulas import inverse_gram

__all__ = ["curve_fit"]

KNOWN = {*inspect.signature(least_squares).parameters, "sigma", "absolute_sigma", "full_output"}
"""What may be said by name."""


def curve_fit(
    model: Callable[..., Any],
    xdata: Any,
    ydata: Any,
    p0: Any,
    *,
    sigma: Any = None,
    absolute_sigma: bool | None = None,
    bounds: Any = None,
    full_output: bool = False,
    **options: Any,
) -> tuple[Array, Array] | tuple[Array, Array, LeastSquaresResult]:
    """Fit the parameters of a curve, ydata ≈ model(xdata, *p), as SciPy's function does.

        min over p of ½ Σ ((model(xdataᵢ, *p) − ydataᵢ)/sigmaᵢ)²

    Args:
      model: ``model(xdata, *p) -> `` an array like ``ydata``, written with ``jax.numpy``.
      xdata: what the model takes, a pytree of arrays.
      ydata: measurements, an array.
      p0: first parameters, one number for each: shape ``(n,)``.
      sigma: standard deviations like ``ydata``, or its covariance matrix, shape ``(m, m)``.
      absolute_sigma: whether ``sigma`` is the truth, so that the covariance of p follows from it
        alone; otherwise only its ratios count, and the size of the residuals gives the rest. Has to
        be said where ``sigma`` is given.
      bounds: ``(lower, upper)``, each a number or one for each parameter.
      full_output: whether the whole :class:`LeastSquaresResult` is returned as well.
      **options: those of :func:`jaxqn.least_squares`, such as ``loss`` and ``method``.

    Returns:
      ``popt``, shape ``(n,)``, and ``pcov``, shape ``(n, n)``: s² (JᵀJ)⁻¹ with s² = 2 cost/(m − n),
      or 1 with ``absolute_sigma``. It is infinite where the data do not determine all parameters,
      and, without ``absolute_sigma``, where m ≤ n.

    Raises:
      ValueError: a model of another shape than ``ydata``; data that are not finite; ``sigma``
        without ``absolute_sigma``, not positive, or of another shape.
      TypeError: see :func:`jaxqn.least_squares`.

    Cost: that of the fit, and a Jacobian with its singular values.

    Example:
      >>> t = jnp.linspace(0.0, 4.0, 30)
      >>> curve = lambda t, scale, rate: scale * jnp.exp(-rate * t)
      >>> popt, pcov = curve_fit(curve, t, curve(t, 3.0, 0.7) + 0.01 * jnp.cos(40 * t), [1.0, 1.0])
      >>> [round(float(value), 2) for value in popt], pcov.shape
      ([3.0, 0.7], (2, 2))

    References:
      Bates & Watts, Nonlinear Regression Analysis, 1988, section 2.2.
    """
    check_hashable(model, "model")
    check_keywords("curve_fit", options, KNOWN - {"residuals", "x0", "args"})
    if sigma is not None and absolute_sigma is None:
        raise ValueError(
            "say absolute_sigma=True if sigma are the true standard deviations, or False if only "
            "their ratios count; the covariance depends on it"
        )
    p0, ydata = jnp.asarray(p0), jnp.asarray(ydata)
    if not jnp.issubdtype(p0.dtype, jnp.floating):
        p0 = p0.astype(jnp.result_type(float))
    if p0.ndim != 1:
        raise ValueError(f"p0 must have shape (n,), a number for each parameter, not {p0.shape}")
    for name, data in (("xdata", xdata), ("ydata", ydata)):
        for leaf in jax.tree.leaves(data):
            if not is_traced(leaf) and not np.all(np.isfinite(leaf)):
                raise ValueError(f"{name} is not finite everywhere: leave those points out")
    xdata = jax.tree.map(jnp.asarray, xdata)
    args = (xdata, ydata, _whitening(sigma, ydata))
    fit = least_squares(_residuals_of(model), p0, args, bounds=bounds, **options)
    pcov = _covariance(fit.x, args, residuals=_residuals_of(model))
    dof = ydata.size - p0.size
    if not absolute_sigma:
        variance = jnp.sum(fit.residuals**2) / dof if dof > 0 else jnp.inf
        pcov = jnp.where(jnp.isinf(pcov), pcov, variance * pcov) if dof > 0 else pcov + jnp.inf
    return (fit.x, pcov, fit) if full_output else (fit.x, pcov)


@functools.lru_cache(maxsize=256)
def _residuals_of(model: Callable[..., Any]) -> Callable[..., Array]:
    """The residuals of a model, the same function for the same model."""

    def residuals(p: Array, xdata: Any, ydata: Array, whitening: Array | None) -> Array:
        predicted = jnp.asarray(model(xdata, *p))
        _check_alike(predicted, ydata)
        r = (predicted - ydata).ravel()
        if whitening is None:
            return r
        if whitening.ndim == 1:
            return r / whitening
        return jax.scipy.linalg.solve_triangular(whitening, r, lower=True)

    return residuals


def _check_alike(predicted: Array, ydata: Array) -> None:
    """Raise unless the model's values are like the data; fewer axes and axes of size 1 stretch."""
    try:
        common = np.broadcast_shapes(predicted.shape, ydata.shape)
    except ValueError:
        common = None
    if common != ydata.shape:
        raise ValueError(
            f"model(xdata, *p) must have the shape {ydata.shape} of ydata, but it has "
            f"{predicted.shape}: reshape one of them, for instance by .ravel()"
        )


def _whitening(sigma: Any, ydata: Array) -> Array | None:
    """Flat standard deviations, or the Cholesky factor of a covariance; ``None`` for none."""
    if sigma is None:
        return None
    sigma, m = jnp.asarray(sigma), ydata.size
    if sigma.ndim == 0 or sigma.shape == ydata.shape:
        sigma = jnp.broadcast_to(sigma, ydata.shape).ravel()
        if not is_traced(sigma) and not np.all(np.asarray(sigma) > 0):
            raise ValueError("sigma must be positive: leave out points that were not measured")
        return sigma
    if sigma.shape != (m, m):
        raise ValueError(
            f"sigma must have the shape {ydata.shape} of ydata, or be a covariance matrix of shape "
            f"{(m, m)}, but its shape is {sigma.shape}"
        )
    factor = jnp.linalg.cholesky(sigma)
    if not is_traced(factor) and not np.all(np.isfinite(factor)):
        raise ValueError("sigma, as a covariance matrix, must be symmetric and positive definite")
    return factor


@eager_program("residuals")
def _covariance(p: Array, args: Any, *, residuals: Callable[..., Array]) -> Array:
    """(JᵀJ)⁻¹ at p, infinite where J has not full rank."""
    try:
        J = jax.jacfwd(residuals)(p, *args)
    except TypeError:  # a model with a derivative backwards only
        J = jax.jacrev(residuals)(p, *args)
    inverse, rank = inverse_gram(J)
    return jnp.where(rank == p.size, inverse, jnp.inf)
