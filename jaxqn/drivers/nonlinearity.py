"""How nonlinear an objective is within two standard errors of its minimum."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.drivers.local_curvature import Flat, Local
from jaxqn.formulas import profiled_square
from jaxqn.linalg import dot, safe_divide

__all__ = ["nonlinearity"]

LARGE = 2**24
"""Entries of Jacobians that may lie side by side."""

DISTANCE = 2.0
"""How far the check looks, in standard errors."""

LEAST_ROOM = 0.25
"""The part of that which a bound must leave for the check to say something."""


def nonlinearity(
    fun: Flat, v: Array, here: Local, free: Array, bounds: tuple[Array, Array]
) -> Array:
    """How far the profile of f departs from a parabola, the larger of both sides.

        z = v ± 2 sdᵢ A⁻¹eᵢ/(A⁻¹)ᵢᵢ,    f̂(z) = min over the others of f, linearised at z,
        (t/2)² = (f̂(z) − f) / (2 sdᵢ²/(A⁻¹)ᵢᵢ),    nonlinearity = abs(log(t/2))

    For squares the minimum is that of ½‖r + J p‖² with the Jacobian at z; otherwise, that of
    f + gᵀp + ½ pᵀA p with the gradient at z.

    Returns:
      Shape ``(n,)``; 0 for held parameters, and for sides that a bound cuts short.
    """
    n, A_inv = v.size, here.inverse.matrix
    a = jnp.diagonal(A_inv)
    errors = jnp.sqrt(jnp.diagonal(here.covariance))
    has = (a > 0) & jnp.isfinite(errors) & (errors > 0)
    errors = jnp.where(has, errors, 0)
    tangents = DISTANCE * errors[:, None] * safe_divide(A_inv, a[:, None], has[:, None])
    lower, upper = bounds

    def rise(step: tuple[Array, Array, Array]) -> Array:
        """The rise of f over that of the parabola."""
        i, sign, tangent = step
        p = sign * tangent
        room = jnp.where(p > 0, upper - v, jnp.where(p < 0, lower - v, jnp.inf))
        fits = jnp.where(p != 0, room / jnp.where(p != 0, p, 1), jnp.inf)
        part = jnp.minimum(1, jnp.min(fits))
        z = jnp.clip(v + part * p, lower, upper)
        if fun.residuals is not None and fun.slope is None:
            assert fun.jacobian is not None
            lowest = 0.5 * profiled_square(fun.jacobian(z), fun.residuals(z), i, free)
        else:
            f, g = jax.value_and_grad(fun.value)(z)
            Ag = dot(A_inv, g)
            lowest = f - 0.5 * (dot(g, Ag) - safe_divide(Ag[i] ** 2, a[i], has[i]))
        expected = 0.5 * (part * DISTANCE * errors[i]) ** 2
        found = safe_divide((lowest - here.f) * a[i], expected, has[i] & (part > LEAST_ROOM))
        skipped = ~has[i] | (part <= LEAST_ROOM)
        return jnp.where(skipped, 1, jnp.where(jnp.isfinite(found), jnp.maximum(found, 0), 0))

    i = jnp.tile(jnp.arange(n), 2)
    signs = jnp.repeat(jnp.array([1, -1], v.dtype), n)
    steps: Any = (i, signs, jnp.tile(tangents, (2, 1)))
    size = here.data * n
    if 2 * n * size <= LARGE:
        rises = jax.vmap(rise)(steps)
    else:
        rises = jax.lax.map(rise, steps, batch_size=max(1, LARGE // size))
    return jnp.max(jnp.abs(0.5 * jnp.log(rises)).reshape(2, n), axis=0)
