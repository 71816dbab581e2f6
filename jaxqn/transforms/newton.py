"""Newton's method as an optax transformation: the corrected inverse of the exact Hessian."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxqn._typing import Array
from jaxqn.checks import answered_part, check_number
from jaxqn.linalg import dot
from jaxqn.quasi_newton import spectrum_of
from jaxqn.transforms.common import (
    BoundObjective,
    at_least_float32,
    check_can_evaluate,
    check_one_dtype,
    once,
    split_data,
)

__all__ = ["ScaleByNewtonState", "scale_by_newton"]


class ScaleByNewtonState(NamedTuple):
    """The spectrum of the last Hessian, for the reader: :func:`scale_by_newton` uses no state.

    Attributes:
      smallest: the smallest eigenvalue, shape ``()``.
      largest: the largest.
      corrected: how many eigenvalues were corrected, int32.
      dropped: how many more needed a correction beyond ``rank``, int32; the inverse is zero along
        their eigenvectors.
    """

    smallest: Array
    largest: Array
    corrected: Array
    dropped: Array


@answered_part
def scale_by_newton(
    *,
    rank: int | Literal["all"] = "all",
    floor: float | None = None,
    mode: str = "reflect",
    has_aux: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Multiply the updates by the corrected inverse of the Hessian of ``value_fn``.

    The matrix is :func:`jaxqn.spectral_inverse` of the Hessian at ``params``: positive definite
    and bounded, so that a gradient becomes the opposite of a direction of descent, also at a saddle
    and where the Hessian is singular. Where the updates or the Hessian are not finite, the updates
    pass unchanged.

    Args:
      rank: how many eigenvalues may be corrected; see :func:`jaxqn.spectral_inverse`.
      floor: smallest eigenvalue left alone, as a fraction of the largest magnitude.
      mode: "reflect", "clip" or "drop".
      has_aux: whether ``value_fn`` returns ``(value, aux)``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``: ``update(updates, state, params, *, value_fn,
      **data)``. As in :func:`jaxqn.scale_by_linesearch`, ``value_fn`` receives those of ``data``
      that its signature names, and an eager call compiles ``value_fn`` once.

    Raises:
      TypeError: ``value_fn`` is missing; at ``init``, a parameter is not real floating.
      ValueError: ``params`` is missing; at ``init``, mixed dtypes.

    Cost: n Hessian-vector products and O(n³) per call: for small n.

    Example:
      >>> f = lambda x: 0.5 * x[0] ** 2 - 2.0 * x[1] ** 2  # a saddle
      >>> transform, x = scale_by_newton(), jnp.array([3.0, 4.0])
      >>> updates, state = transform.update(jax.grad(f)(x), transform.init(x), x, value_fn=f)
      >>> updates.tolist(), int(state.corrected)  # the second would be 4 without the correction
      ([3.0, -4.0], 1)

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, section 3.4.
    """
    if floor is not None:
        floor = check_number("floor", floor, "a fraction in (0, 1]")
    options = (("rank", rank), ("floor", floor), ("mode", mode))
    jax.eval_shape(lambda B: spectrum_of(B, **dict(options)), jnp.zeros((1, 1)))  # raises if wrong

    def init(params: optax.Params) -> ScaleByNewtonState:
        check_one_dtype(params)
        dtype = at_least_float32(ravel_pytree(params)[0].dtype)
        return ScaleByNewtonState(
            smallest=jnp.zeros((), dtype),
            largest=jnp.zeros((), dtype),
            corrected=jnp.zeros((), jnp.int32),
            dropped=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: optax.Updates,
        state: ScaleByNewtonState,
        params: optax.Params | None = None,
        *,
        value_fn: Callable[..., Any] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByNewtonState]:
        check_can_evaluate("Newton's method", params, value_fn=value_fn)
        assert value_fn is not None
        arrays, statics = split_data(value_fn, extra_args)
        objective = BoundObjective(value_fn, statics, has_aux)
        return once(
            _newton_step, updates, state, params, arrays, objective=objective, options=options
        )

    return optax.GradientTransformationExtraArgs(init, update)


@functools.partial(jax.jit, static_argnames=("objective", "options"))
def _newton_step(
    updates: optax.Updates,
    state: ScaleByNewtonState,
    params: optax.Params,
    arrays: list[Any],
    *,
    objective: BoundObjective,
    options: tuple[tuple[str, Any], ...],
) -> tuple[optax.Updates, ScaleByNewtonState]:
    """The Hessian, its corrected inverse, and the product with the updates."""
    raw, unravel = ravel_pytree(updates)
    x, unravel_params = ravel_pytree(params)
    dtype = state.smallest.dtype

    def fun(x: Array) -> Array:
        return objective(unravel_params(x.astype(raw.dtype)), arrays).astype(dtype)

    correction, finite = spectrum_of(jax.hessian(fun)(x.astype(dtype)), **dict(options))
    g = raw.astype(dtype)
    step = dot(correction.inverse, g)
    usable = finite & jnp.all(jnp.isfinite(g))
    return unravel(jnp.where(usable, step.astype(raw.dtype), raw)), ScaleByNewtonState(
        smallest=jnp.where(finite, correction.eigenvalues[0], jnp.nan),
        largest=jnp.where(finite, correction.eigenvalues[-1], jnp.nan),
        corrected=correction.rank,
        dropped=correction.uncorrected,
    )
