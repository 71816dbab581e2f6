"""The ends of profile intervals as problems: coordinates, first trials, what is fixed.

Without bounds they work in y with x = x̂ + T y, where y₀ alone moves the parameter, along the
tangent of its profile, and f is ½‖y‖² as far as it is quadratic. With bounds T is diagonal, so that
the box stays one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.drivers.local_curvature import Local
from jaxqn.linalg import HIGHEST, dot, safe_divide

__all__ = ["Problems", "problems_of"]

RIDGE = 1e-3
"""What is added to the inverse Hessian that bounded problems start from, whose diagonal is 1."""


class Problems(NamedTuple):
    """All ends that are looked for, with a leading axis (B,) but for what they share.

    Attributes:
      T: columns, ``(B, n, n)``: x = x̂ + T y.
      own: the entry of y that moves the parameter, boolean, ``(B, n)``.
      tangent: y along the profile, per unit of that entry, ``(B, n)``.
      alone: y along which the other parameters stay, per unit of that entry, ``(B, n)``.
      sign: ±1, the side.
      farthest: tau at which the parameter meets its bound.
      first: the first trial; where f is quadratic, the end.
      box: of y, ``(lower, upper)``, each ``(B, n)``.
      H0: for a quasi-Newton method, an inverse Hessian over y that all share, ``(n, n)``.
      level: what t is to reach.
    """

    T: Array
    own: Array
    tangent: Array
    alone: Array
    sign: Array
    farthest: Array
    first: Array
    box: tuple[Array, Array]
    H0: Array
    level: Array


def problems_of(
    here: Local,
    v: Array,
    bounds: tuple[Array, Array],
    free: Array,
    unit: Array,
    q: Array,
    which: tuple[int, ...],
    bounded: bool,
) -> Problems:
    """The upper ends of all chosen parameters, then the lower ones."""
    n, half = v.size, jnp.array(which)
    i, sign = jnp.tile(half, 2), jnp.repeat(jnp.array([1, -1], v.dtype), half.size)
    lower, upper = ((bound - v) / unit for bound in bounds)
    if bounded:
        A_inv = here.inverse.matrix
        own = jnp.diagonal(A_inv)
        rows = A_inv * unit[:, None] / unit[None]
        along = safe_divide(rows, own[:, None], own[:, None] > 0)
        along = jnp.where(jnp.eye(n, dtype=bool), jnp.ones((), v.dtype), along)
        T, tangent = jnp.broadcast_to(jnp.diag(unit), (i.size, n, n)), along[i]
        own_axis = jnp.arange(n)[None] == i[:, None]
        alone = own_axis.astype(v.dtype)
        H0 = (here.scale**2 * A_inv) / unit[:, None] / unit[None]
        H0 = H0 + jnp.diag(jnp.where(jnp.diagonal(H0) > 0, RIDGE, 1).astype(v.dtype))
        boxes = [jnp.broadcast_to(side, (i.size, n)) for side in (lower, upper)]
    else:
        T, own_axis, tangent, alone = (
            jnp.tile(a, (2,) + (1,) * (a.ndim - 1))
            for a in jax.vmap(functools.partial(_whitened, here))(half)
        )
        H0 = jnp.eye(n, dtype=v.dtype)
        boxes = [jnp.full((i.size, n), side, v.dtype) for side in (-jnp.inf, jnp.inf)]
    pull = jnp.where(free, 0, here.g * unit / here.scale**2)[i] * sign
    pull = jnp.maximum(pull, 0)
    return Problems(
        T=T,
        own=own_axis,
        tangent=tangent,
        alone=alone,
        sign=sign,
        farthest=jnp.where(sign > 0, upper[i], -lower[i]),
        first=jnp.sqrt(pull**2 + q**2) - pull,
        box=(boxes[0], boxes[1]),
        H0=H0,
        level=q,
    )


def _whitened(here: Local, which: Array) -> tuple[Array, Array, Array, Array]:
    """What :class:`Problems` has of T, ``own``, ``tangent`` and ``alone`` of one parameter."""
    W = here.scale * here.inverse.root
    w, one = W[:, which], jnp.ones((), W.dtype)
    size = jnp.sqrt(jnp.sum(w**2))
    first = jnp.arange(w.size) == 0
    e = first.astype(w.dtype)
    direction = safe_divide(w, size, size > 0)
    side = jnp.where(w[0] > 0, -one, one)
    u = direction - side * e
    length = safe_divide(2 * one, dot(u, u), dot(u, u) > 0)
    Q = jnp.eye(w.size, dtype=w.dtype) - length * jnp.outer(u, u)
    Q = Q * jnp.where(first, side, one)[None]
    T = jnp.matmul(W.T, Q, precision=HIGHEST)
    T = jnp.where((jnp.arange(w.size) == which)[:, None], (size * e)[None], T)
    alone = dot(Q.T, jnp.linalg.pinv(W.T)[:, which]) * size
    return T, first, e, jnp.where(first, one, alone)
