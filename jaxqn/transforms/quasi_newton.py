"""Quasi-Newton approximations as optax transformations: H g in place of g.

``update`` is called once per step, so the pair lags by one call: the state keeps the previous
parameters and gradient, and s = params − previous params is the change that the rest of the chain
really made, however it clipped, masked or scheduled the step. The gradients handed in must be
those of the objective itself: whatever an earlier transformation does to them ends up in y.
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
from jaxqn.formulas import (
    bfgs_rule,
    broyden_rule,
    dfp_rule,
    osbfgs_rule,
    sr1_rule,
    ssbfgs_rule,
    ssbroyden_rule,
)
from jaxqn.linalg import vectors
from jaxqn.quasi_newton import QuasiNewton, check_quasi_newton, dense
from jaxqn.transforms.common import (
    all_entries,
    at_least_float32,
    check_one_dtype,
    float_dtypes,
    once,
)

__all__ = [
    "ScaleByQuasiNewtonState",
    "scale_by_bfgs",
    "scale_by_broyden",
    "scale_by_dfp",
    "scale_by_osbfgs",
    "scale_by_quasi_newton",
    "scale_by_sr1",
    "scale_by_ssbfgs",
    "scale_by_ssbroyden",
]


class ScaleByQuasiNewtonState(NamedTuple):
    """State of :func:`scale_by_quasi_newton`.

    Vectors are in float32 or wider; for a dense approximation they are ravelled, shape ``(n,)``.

    Attributes:
      count: finite gradients seen, int32.
      params: the parameters at the last of them.
      updates: that gradient.
      product: H times that gradient.
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
    returns H g, without a sign flip. Its product with g is positive: where H g is no direction of
    descent (an indefinite SR1 matrix), H is reset to I and g returned. The same happens where a
    line search downstream could not move at all: a ``value_fn`` is among the extra arguments, and
    neither params nor g have changed. A gradient that is not finite is handed on as it is, so that
    whatever watches for it sees it, and changes no state.

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

    # A point that is not finite is taken for the last one again.
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

    # No descent, or none that was found: forget the curvature, and follow the gradient.
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
    """What ``qn`` works on, flat or as it is, in float32 or wider; and the way back."""

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


def scale_by_bfgs(*, scale_init: bool = True) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_quasi_newton` with a dense H and :func:`jaxqn.bfgs_update`.

    Args:
      scale_init: whether to scale H = I before its first update; see :func:`jaxqn.dense`.

    Returns:
      An ``optax.GradientTransformationExtraArgs``.

    Example:
      >>> transform, x = scale_by_bfgs(), jnp.array([3.0])
      >>> _, state = transform.update(2 * x, transform.init(x), x)
      >>> transform.update(2 * (x - 1), state, x - 1)[0].tolist()  # f = x²: the Newton step
      [2.0]
    """
    return scale_by_quasi_newton(dense(bfgs_rule, scale_init=scale_init))


def scale_by_dfp(*, scale_init: bool = True) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_quasi_newton` with a dense H and :func:`jaxqn.dfp_update`.

    Args:
      scale_init: as in :func:`scale_by_bfgs`.

    Example:
      >>> transform, x = scale_by_dfp(), jnp.array([3.0])
      >>> _, state = transform.update(2 * x, transform.init(x), x)
      >>> transform.update(2 * (x - 1), state, x - 1)[0].tolist()
      [2.0]
    """
    return scale_by_quasi_newton(dense(dfp_rule, scale_init=scale_init))


def scale_by_sr1(*, scale_init: bool = True) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_quasi_newton` with a dense H and :func:`jaxqn.sr1_update`.

    Args:
      scale_init: as in :func:`scale_by_bfgs`.

    Example:
      >>> transform, x = scale_by_sr1(), jnp.array([3.0])
      >>> _, state = transform.update(2 * x, transform.init(x), x)
      >>> transform.update(2 * (x - 1), state, x - 1)[0].tolist()
      [2.0]
    """
    return scale_by_quasi_newton(dense(sr1_rule, scale_init=0.5 * scale_init))


def scale_by_broyden(
    phi: Array | float = 0.5, *, scale_init: bool = True
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_quasi_newton` with a dense H and :func:`jaxqn.broyden_update`.

    Args:
      phi: member of the class; 1 is BFGS and 0 is DFP.
      scale_init: as in :func:`scale_by_bfgs`.

    Example:
      >>> transform, x = scale_by_broyden(phi=0.25), jnp.array([3.0])
      >>> _, state = transform.update(2 * x, transform.init(x), x)
      >>> transform.update(2 * (x - 1), state, x - 1)[0].tolist()
      [2.0]
    """
    if isinstance(phi, jax.core.Tracer):  # under inject_hyperparams, say; no cache may keep it
        rule = broyden_rule.__wrapped__(phi)
        return scale_by_quasi_newton(dense.__wrapped__(rule, scale_init=scale_init))
    return scale_by_quasi_newton(dense(broyden_rule(float(phi)), scale_init=scale_init))


def scale_by_osbfgs(*, scale_init: bool = True) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_quasi_newton` with a dense H and :func:`jaxqn.osbfgs_update`.

    After a step that the rest of the chain bent away from −H g, the update is plain BFGS.

    Args:
      scale_init: as in :func:`scale_by_bfgs`.

    Example:
      >>> transform, x = scale_by_osbfgs(), jnp.array([3.0])
      >>> _, state = transform.update(2 * x, transform.init(x), x)
      >>> transform.update(2 * (x - 1), state, x - 1)[0].tolist()
      [2.0]
    """
    return scale_by_quasi_newton(dense(osbfgs_rule, scale_init=scale_init))


def scale_by_ssbfgs(*, scale_init: bool = True) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_quasi_newton` with a dense H and :func:`jaxqn.ssbfgs_update`.

    After a step that the rest of the chain bent away from −H g, the update is plain BFGS.

    Args:
      scale_init: as in :func:`scale_by_bfgs`.

    Example:
      >>> transform, x = scale_by_ssbfgs(), jnp.array([3.0])
      >>> _, state = transform.update(2 * x, transform.init(x), x)
      >>> transform.update(2 * (x - 1), state, x - 1)[0].tolist()
      [2.0]
    """
    return scale_by_quasi_newton(dense(ssbfgs_rule, scale_init=scale_init))


def scale_by_ssbroyden(*, scale_init: bool = True) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_quasi_newton` with a dense H and :func:`jaxqn.ssbroyden_update`.

    After a step that the rest of the chain bent away from −H g, the update is plain BFGS.

    Args:
      scale_init: as in :func:`scale_by_bfgs`.

    Example:
      >>> transform, x = scale_by_ssbroyden(), jnp.array([3.0])
      >>> _, state = transform.update(2 * x, transform.init(x), x)
      >>> transform.update(2 * (x - 1), state, x - 1)[0].tolist()
      [2.0]
    """
    return scale_by_quasi_newton(dense(ssbroyden_rule, scale_init=scale_init))
