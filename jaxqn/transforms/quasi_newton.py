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
from jaxqn.checks import answered_part, check_initial
from jaxqn.linalg import vectors
from jaxqn.loop import Box, Path, Point, bent, face_of, straight
from jaxqn.quasi_newton import QuasiNewton, check_method, check_quasi_newton
from jaxqn.transforms.common import (
    all_entries,
    at_least_float32,
    box_of,
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
      product: H g; with bounds, of the gradient over the parameters that may move.
      approx: state of the approximation.
    """

    count: Array  # type: ignore[assignment]
    params: ArrayTree
    updates: ArrayTree
    product: ArrayTree
    approx: Any


@answered_part
def scale_by_quasi_newton(
    qn: QuasiNewton, *, hess_inv0: Any = None, bounds: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient g by H g, with the approximation ``qn`` for the inverse Hessian H.

    Every call but the first corrects H by the pair s = params − previous, y = g − previous, and
    returns H g, without a sign flip. gᵀH g is positive: where −H g is no direction of descent (an
    indefinite SR1 matrix), ``update`` resets H to I and returns g. ``update`` does the same after a
    later line search that could not move at all: a ``value_fn`` is among the extra arguments, and
    neither params nor g have changed. ``update`` returns a gradient that is not finite unchanged,
    so that a later transformation can react to the gradient, and keeps the state.

    With ``bounds`` the direction is that of two-metric projection, H_FF g_F over the parameters F
    that may move. It is 0 for those at a bound that −g or the direction itself pushes out. A search
    with the same bounds, :func:`jaxqn.scale_by_linesearch`, stays in the box. Without a search,
    project after every step; the next pair is of the projected step:

        params = optax.projections.projection_box(optax.apply_updates(params, updates), *box)

    A projection does not make up for missing ``bounds``: the pairs are right, but steps −H g come
    to rest at a wrong point where bounds hold parameters.

    Args:
      qn: the approximation, for instance ``dense(bfgs_rule)`` or ``lbfgs_memory(10)``.
      hess_inv0: initial inverse Hessian, positive definite; I by default. For a dense method as in
        :func:`jaxqn.minimize`, for a limited-memory one a diagonal, a pytree like the parameters.
      bounds: as in :func:`jaxqn.minimize`.

    Returns:
      An ``optax.GradientTransformationExtraArgs``: ``update(grads, state, params, **ignored)``.
      The parameters are a pytree of one real floating dtype (of any for a limited-memory method);
      H is float32 for half precision.

    Raises:
      TypeError: ``qn`` takes no bounds; at ``init``, a parameter is not real floating.
      ValueError: ``qn`` needs Hessians; at ``init``, mixed dtypes; at ``update``, ``params`` is
        missing; at both, ``bounds`` that are NaN, crossed, or not like ``params``.

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

      Bounds, where f(x, y) = x² + x y + y² − 2 x + 2 y has its minimum for x, y ≥ 0 at (1, 0):

      >>> from jaxqn.quasi_newton import lbfgs_memory
      >>> direction = scale_by_quasi_newton(lbfgs_memory(), bounds=(0.0, None))
      >>> solver, x = optax.chain(direction, optax.scale(-0.5)), jnp.array([3.0, 3.0])
      >>> state = solver.init(x)
      >>> for _ in range(25):
      ...     grads = jnp.array([2 * x[0] + x[1] - 2, x[0] + 2 * x[1] + 2])
      ...     updates, state = solver.update(grads, state, x)
      ...     x = optax.projections.projection_non_negative(optax.apply_updates(x, updates))
      >>> [round(float(v), 4) for v in x]
      [1.0, 0.0]

    References:
      Bounds: Bertsekas, SIAM J. Control Optim. 20 (1982).
    """
    check_quasi_newton(qn)
    if qn.needs != "nothing":
        raise ValueError(
            "this method needs Hessians or residuals, which a transformation does not have: use "
            "jaxqn.scale_by_newton"
        )
    check_method(qn, bounded=bounds is not None)

    def init(params: optax.Params) -> ScaleByQuasiNewtonState:
        if qn.dense:
            check_one_dtype(params)
        else:
            float_dtypes(params)
        box_of(bounds, params)  # raises if wrong
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
        options = {"qn": qn, "searched": "value_fn" in extra_args}
        box = box_of(bounds, params)
        if box is None:
            return once(precondition, updates, state, params, **options)
        options["may_rescale"] = hess_inv0 is None
        return once(precondition, updates, state, params, None, box, **options)

    return optax.GradientTransformationExtraArgs(init, update)


@functools.partial(jax.jit, static_argnames=("qn", "searched", "may_rescale"))
def precondition(
    updates: optax.Updates,
    state: ScaleByQuasiNewtonState,
    params: optax.Params,
    H0: ArrayTree | None = None,
    box: Box | None = None,
    *,
    qn: QuasiNewton,
    searched: bool,
    may_rescale: bool = True,
) -> tuple[optax.Updates, ScaleByQuasiNewtonState]:
    """Form the pair, correct H, apply it; in a box, over the parameters that may move."""
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
    path, start = _path(box, params, qn), {} if H0 is None else {"H0": H0}
    none = jnp.zeros(())
    old, new = Point(state.params, none, state.updates, None), Point(x, none, g, None)
    free = vectors.masked(path.free(new), g)
    face = face_of(path, old, new, jnp.asarray(may_rescale))
    if face is None:
        approx, Hg = qn.advance(state.approx, s, y, g, state.product, finite, **start)
    else:
        assert qn.advance_on_face is not None  # the factory has checked
        s, y = (vectors.masked(face.free, v) for v in (s, y))
        approx, Hg = qn.advance_on_face(state.approx, s, y, free, state.product, finite, face)

    # Where −H g does not descend, or the search did not move: reset H, and follow the gradient.
    (slope,) = vectors.products((free, path.aim(new, Hg)))
    descent = (slope > 0) & all_entries(jnp.isfinite, Hg) & ~stuck
    approx = qn.reset(approx, finite & ~descent & ~all_entries(_zero, free))
    Hg = optax.tree.where(descent, Hg, free if H0 is None else optax.tree.mul(H0, g))
    state = ScaleByQuasiNewtonState(
        count=state.count + finite.astype(jnp.int32),
        params=x,
        updates=g,
        product=optax.tree.where(finite, Hg, state.product),
        approx=approx,
    )
    return optax.tree.where(finite, to_updates(path.aim(new, Hg)), updates), state


def _path(box: Box | None, params: optax.Params, qn: QuasiNewton) -> Path:
    """Straight, or bent in the box over vectors for ``qn``."""
    if box is None:
        return straight

    def vector(bound: ArrayTree) -> ArrayTree:
        full = jax.tree.map(lambda b, p: jnp.broadcast_to(b, jnp.shape(p)), bound, params)
        return _vector(full, qn)[0]

    return bent(Box(vector(box.lower), vector(box.upper)))


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
