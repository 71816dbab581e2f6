"""An objective around a point: its curvature, and the covariance that follows from it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import called, scalar_value, split_aux
from jaxqn.drivers.covariance_result import jacobian_of
from jaxqn.formulas import InverseCurvature, gram_inverse, hessian_inverse, sandwich
from jaxqn.linalg import dot, eps, safe_divide
from jaxqn.loop import Box, SumOfSquares, inside

__all__ = ["Flat", "Local", "flat_objective", "local"]

AT_ROUNDING = 100
"""Roundings of x within which residuals are none."""


class Flat(NamedTuple):
    """An objective over flat parameters.

    Attributes:
      value: ``v -> f``.
      residuals: ``v -> r`` of a sum of squares, or ``None``.
      jacobian: ``v -> `` their Jacobian, or ``None``.
      slope: ``r -> `` the derivative of the cost by every residual, or ``None`` for r itself.
    """

    value: Callable[[Array], Array]
    residuals: Callable[[Array], Array] | None = None
    jacobian: Callable[[Array], Array] | None = None
    slope: Callable[[Array], Array] | None = None


class Local(NamedTuple):
    """An objective around a point.

    Attributes:
      f: value, shape ``()``.
      g: gradient, shape ``(n,)``.
      inverse: of its Hessian, or of the part of it that is expected.
      covariance: shape ``(n, n)``.
      scale: the standard deviation over whose square twice a rise of f is a χ²; 1 for a likelihood.
      dof: degrees of freedom left for the noise; 1 where it is known.
      left_out: what was inverted from the exact Hessian, or ``None``.
      rounding: whether the residuals are no more than rounding.
      data: how many residuals, 0 of a likelihood.
      unit: 1/√Hⱼⱼ of every parameter, 1 for no curvature, shape ``(n,)``.
    """

    f: Array
    g: Array
    inverse: InverseCurvature
    covariance: Array
    scale: Array
    dof: Array
    left_out: Array | None
    rounding: Array
    data: int
    unit: Array


def flat_objective(objective: Any, x: ArrayTree, args: Any, box: Box | None, has_aux: bool) -> Flat:
    """The objective as functions of a flat point in the dtype of ``x``, in the box."""
    v, back = jax.flatten_util.ravel_pytree(x)
    dtype = v.dtype

    def at(fun: Callable[..., Any], v: Array) -> Any:
        x = back(v)
        return called(fun, x if box is None else inside(x, box), args)

    def value(v: Array) -> Array:
        out = at(objective, v)
        if not has_aux and np.ndim(out) > 0 and not isinstance(out, tuple | list):
            raise ValueError(
                f"fun must return a scalar, but it returned shape {jnp.shape(out)}: if these are "
                "residuals, hand over jaxqn.sum_of_squares(fun)"
            )
        return scalar_value(split_aux(out)[0] if has_aux else out).astype(dtype)

    if not isinstance(objective, SumOfSquares):
        return Flat(value)

    def residuals(v: Array) -> Array:
        return objective.flat(at(objective.residuals, v))[0].astype(dtype)

    def jacobian(v: Array) -> Array:
        if objective.jac is None:
            return jacobian_of(residuals, v)
        return at(lambda x, *args: objective.jacobian(x, args), v).astype(dtype)

    def cost(r: Array) -> Array:
        return objective.cost(r)[0]

    slope = None if objective.loss == "linear" else jax.grad(cost)
    return Flat(lambda v: cost(residuals(v)), residuals, jacobian, slope)


def local(
    fun: Flat, v: Array, free: Array, sigma: Array, *, kind: str, noise: str, exact: bool
) -> Local:
    """The objective around a point, and its covariance there.

    Args:
      fun: the objective.
      v: the point, flat.
      free: the free parameters.
      sigma: standard deviation of the residuals, where it is known.
      kind: see :func:`jaxqn.covariance`.
      noise: "none" of a likelihood, "estimated" or "known".
      exact: whether a sum of squares compares with its exact Hessian.
    """
    if fun.residuals is None:
        f, g = jax.value_and_grad(fun.value)(v)
        H = _hessian(fun.value, v)
        inverse, unit = hessian_inverse(H, free), _unit(jnp.diagonal(H))
        one, no = jnp.ones((), v.dtype), jnp.zeros((), bool)
        return Local(f, g, inverse, inverse.matrix, one, one, None, no, 0, unit)
    assert fun.jacobian is not None
    r, J = fun.residuals(v), fun.jacobian(v)
    psi, bend = r, jnp.ones_like(r)
    if fun.slope is not None:
        psi, bend = jax.jvp(fun.slope, (r,), (jnp.ones_like(r),))
    expected, left_out = dot((bend[:, None] * J).T, J), None
    if kind == "observed":
        inverse = hessian_inverse(_hessian(fun.value, v), free)
    else:
        linear = fun.slope is None
        inverse = gram_inverse(J, free) if linear else hessian_inverse(expected, free)
        left_out = _hessian(fun.value, v) - expected if exact else None
    dof = r.size - inverse.rank
    left = jnp.maximum(dof, 1).astype(v.dtype)
    variance = dot(psi, psi) / left
    if fun.slope is not None:
        variance = safe_divide(variance, jnp.mean(bend), jnp.mean(bend) > 0)
    if noise == "known":
        variance, dof = sigma**2, jnp.ones_like(dof)
    C = variance * inverse.matrix
    if kind == "sandwich" or fun.slope is not None:
        C = sandwich(inverse.matrix, J, psi) * (r.size / left)
    C = jnp.where(dof > 0, C, jnp.where(free[:, None] & free[None], jnp.inf, 0))
    size = dot(jnp.abs(J), jnp.abs(v))
    rounding = dot(r, r) <= (AT_ROUNDING * eps(v.dtype)) ** 2 * dot(size, size)
    rounding &= noise != "known"
    return Local(
        f=fun.value(v),
        g=dot(psi, J),
        inverse=inverse,
        covariance=C,
        scale=jnp.sqrt(variance),
        dof=dof,
        left_out=left_out,
        rounding=rounding,
        data=r.size,
        unit=_unit(jnp.diagonal(expected)),
    )


def _unit(curvature: Array) -> Array:
    return jnp.where(curvature > 0, 1 / jnp.sqrt(jnp.where(curvature > 0, curvature, 1)), 1)


def _hessian(fun: Callable[[Array], Array], v: Array) -> Array:
    """The Hessian, symmetric."""
    H = jacobian_of(jax.grad(fun), v)
    return 0.5 * (H + H.T)
