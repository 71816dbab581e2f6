"""Quasi-Newton approximations as optax transformations: H g in place of g.

A training loop calls ``update`` once per step, so the pair lags by one call: the state keeps the
previous parameters and gradient, and s = params − previous params is the actual change, after the
rest of the chain has clipped, masked or scheduled the step. The gradients must be those of the
objective itself: y contains every change that an earlier transformation makes to them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import check_initial
from jaxqn.linalg import vectors
from jaxqn.quasi_newton import QuasiNewton, check_quasi_newton
from jaxqn.transforms.common import (
    all_entries,
    at_least_float32,
    check_one_dtype,
    float_dtypes,
    once,
)

__all__ = ["ScaleByQuasiNewtonState", "precondition", "scale_by_quasi_newton"]


class ScaleByQuasiNewtonState(NamedTuple):
    """State of :func:`scale_by_quasi_newton`.

    Vectors are in float32 or wider; for a dense approximation they are ravelled, shape ``(n,)``.

    Attributes:
      count: finite gradients seen, int32.
      params: the parameters at the last finite gradient.
      updates: the last finite gradient g.
      product: H g.
      approx: state of the approximation.
    """

    count: Array  # type: ignore[assignment]
    params: ArrayTree
    updates: ArrayTree
    product: ArrayTree
    approx: Any


def scale_by_quasi_newton(
    qn: QuasiNewton, *, hess_inv0: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient g by H g, with the approximation ``qn`` for the inverse Hessian H.

    Every call but the first corrects H by the pair s = params − previous, y = g − previous, and
    returns H g, without a sign flip. gᵀH g is positive: where −H g is no direction of descent (an
    indefinite SR1 matrix), ``update`` resets H to I and returns g. ``update`` does the same after a
    later line search that could not move at all: a ``value_fn`` is among the extra arguments, and
    neither params nor g have changed. ``update`` returns a gradient that is not finite unchanged,
    so that a later transformation can react to the gradient, and keeps the state.

    Args:
      qn: the approximation, for instance ``dense(bfgs_rule)`` or ``lbfgs_memory(10)``.
      hess_inv0: initial inverse Hessian, positive definite; I by default. For a dense method as in
        :func:`jaxqn.minimize`, for a limited-memory one a diagonal, a pytree like the parameters.

    Returns:
      An ``optax.GradientTransformationExtraArgs``: ``update(grads, state, params, **ignored)``.
      The parameters are a pytree of one real floating dtype (of any for a limited-memory method);
      H is float32 for half precision.

    Raises:
      TypeError: at ``init``, a parameter is not real floating.
      ValueError: ``qn`` needs Hessians; at ``init``, mixed dtypes; at ``update``, ``params`` is
        missing.

    Cost: that of ``qn``, O(n²) for a dense one, which ravels the parameters.

    Example:
      >>> from jaxqn.formulas import bfgs_rule
      >>> from jaxqn.quasi_newton import dense
      >>> solver = optax.chain(scale_by_quasi_newton(dense(bfgs_rule)), optax.scale(-0.5))
      >>> x = jnp.array([3.0])
      >>> state = solver.init(x)
      >>> for _ in range(2):  # f(x) = 2 x²: a step too far, then half the Newton step
      ...     updates, state = solver.update(4 * x, state, x)
      ...     x = optax.apply_updates(x, updates)
      >>> x.tolist()
      [-1.5]
    """
    check_quasi_newton(qn)
    if qn.needs != "nothing":
        raise ValueError(
            "this method needs Hessians, which a quasi-Newton transformation does not have: use "
            "jaxqn.scale_by_newton"
        )

    def init(params: optax.Params) -> ScaleByQuasiNewtonState:
        if qn.dense:
            check_one_dtype(params)
        else:
            float_dtypes(params)
        x = jax.tree.map(jnp.array, _vector(params, qn)[0])  # copies: no leaf may alias params
        zeros = jax.tree.map(jnp.zeros_like, x)
        H0 = None
        if hess_inv0 is not None:
            H0 = check_initial(hess_inv0, x, qn.dense)
        return ScaleByQuasiNewtonState(
            count=jnp.zeros((), jnp.int32),
            params=x,
            updates=zeros,
            product=jax.tree.map(jnp.zeros_like, x),
            approx=qn.init(x) if H0 is None else qn.init(x, H0),
        )

    def update(
        updates: optax.Updates,
        state: ScaleByQuasiNewtonState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByQuasiNewtonState]:
        if params is None:
            raise ValueError(
                "a quasi-Newton transformation needs the parameters: call "
                "update(grads, state, params)"
            )
        searched = "value_fn" in extra_args
        return once(precondition, updates, state, params, qn=qn, searched=searched)

    return optax.GradientTransformationExtraArgs(init, update)


@functools.partial(jax.jit, static_argnames=("qn", "searched"))
def precondition(
    updates: optax.Updates,
    state: ScaleByQuasiNewtonState,
    params: optax.Params,
    H0: ArrayTree | None = None,
    *,
    qn: QuasiNewton,
    searched: bool,
) -> tuple[optax.Updates, ScaleByQuasiNewtonState]:
    """Form the pair, correct H, apply it."""
    x, _ = _vector(params, qn)
    g, to_updates = _vector(updates, qn)

    # The last finite point stands in for a point that is not finite.
    finite = all_entries(jnp.isfinite, x) & all_entries(jnp.isfinite, g)
    x, g = optax.tree.where(finite, x, state.params), optax.tree.where(finite, g, state.updates)

    # The pair is zero at the first call, and where the parameters have not moved.
    s, y = optax.tree.sub(x, state.params), optax.tree.sub(g, state.updates)
    later = finite & (state.count > 0)
    moved = later & ~all_entries(_zero, s)
    stuck = later & ~moved & all_entries(_zero, y) & searched
    zeros = optax.tree.zeros_like(s)
    s, y = optax.tree.where(moved, s, zeros), optax.tree.where(moved, y, zeros)
    start = {} if H0 is None else {"H0": H0}
    approx, Hg = qn.advance(state.approx, s, y, g, state.product, finite, **start)

    # Where −H g does not descend, or the search did not move: reset H, and follow the gradient.
    (slope,) = vectors.products((g, Hg))
    descent = (slope > 0) & all_entries(jnp.isfinite, Hg) & ~stuck
    approx = qn.reset(approx, finite & ~descent & ~all_entries(_zero, g))
    Hg = optax.tree.where(descent, Hg, g if H0 is None else optax.tree.mul(H0, g))
    state = ScaleByQuasiNewtonState(
        count=state.count + finite.astype(jnp.int32),
        params=x,
        updates=g,
        product=optax.tree.where(finite, Hg, state.product),
        approx=approx,
    )
    return optax.tree.where(finite, to_updates(Hg), updates), state


def _vector(tree: optax.Params, qn: QuasiNewton) -> tuple[ArrayTree, Callable[..., ArrayTree]]:
    """The vector for ``qn``, in float32 or wider and flat if dense; and the inverse map."""

    def widened(leaf: Array) -> Array:
        return leaf.astype(at_least_float32(leaf.dtype))

    if qn.dense:
        flat, unravel = ravel_pytree(tree)
        return widened(flat), lambda vector: unravel(vector.astype(flat.dtype))
    arrays = jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(widened, arrays), lambda vector: jax.tree.map(
        lambda leaf, like: leaf.astype(like.dtype), vector, arrays
    )


def _zero(leaf: Array) -> Array:
    return leaf == 0
