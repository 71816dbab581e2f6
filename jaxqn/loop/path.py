"""How a step length becomes a point.

A line search sees phi(alpha) = f(x(alpha)) and its slope only. What the path x(alpha) is, a
straight line or one that bends at bounds (:mod:`jaxqn.loop.box`), is a value of its own.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import vectors
from jaxqn.linesearch import Bend
from jaxqn.loop.state import Point
from jaxqn.loop.units import gradient_from_scaled
from jaxqn.quasi_newton import Face

__all__ = ["Path", "face_of", "straight"]


class Path(NamedTuple):
    """A path x(alpha) that leaves a point along −d; ``plan`` is what it is made from.

    Attributes:
      at: ``(x, alpha, plan) -> x(alpha)``.
      tangent: ``(trial, plan) -> −dx/dalpha`` at the trial.
      gradient: ``point -> `` its gradient over the variables that may move, 0 elsewhere: what
        vanishes at a solution.
      free: ``point -> `` masks of the variables that may move, or ``None`` where all may.
      room: ``point -> (l − x, u − x)``, the shortest and the longest change of every variable, or
        ``None`` where there are no bounds.
      stationarity: ``(point, x_scale, g_scale) -> `` what vanishes there by x, over ``g_scale``.
      bend: ``(x, trial, plan, promised) -> `` what the search has to know of bends, or ``None``;
        ``promised`` is a function.
      aim: ``(point, Hg) -> d``.
      join: ``(Hg, d) -> plan``.
      product: ``plan -> Hg``, the product of H with the restricted gradient.
    """

    at: Callable[[ArrayTree, Array, Any], ArrayTree]
    tangent: Callable[[Point, Any], ArrayTree]
    gradient: Callable[[Point], ArrayTree]
    free: Callable[[Point], Any]
    room: Callable[[Point], Any]
    stationarity: Callable[[Point, Any, Array], ArrayTree]
    bend: Callable[..., Bend | None]
    aim: Callable[[Point, ArrayTree], ArrayTree]
    join: Callable[[ArrayTree, ArrayTree], Any]
    product: Callable[[Any], ArrayTree]


def face_of(path: Path, before: Point, new: Point, may_rescale: Array) -> Face | None:
    """The variables that may move from a new point, or ``None`` where all may."""
    could, free = path.free(before), path.free(new)
    if free is None:
        return None
    differ = [jnp.any(a != b) for a, b in zip(*map(jax.tree.leaves, (could, free)), strict=True)]
    changed = functools.reduce(jnp.logical_or, differ)
    return Face(free, changed, vectors.masked(free, before.g), may_rescale)


def along(x: ArrayTree, alpha: Array, d: ArrayTree) -> ArrayTree:
    """The point x − alpha d."""
    return jax.tree.map(lambda x, d: x - alpha * d, x, d)


straight = Path(
    at=along,
    tangent=lambda _trial, Hg: Hg,
    gradient=lambda point: point.g,
    free=lambda _point: None,
    room=lambda _point: None,
    stationarity=lambda point, x_scale, _g_scale: gradient_from_scaled(point.g, x_scale),
    bend=lambda _x, _trial, _plan, _promised: None,
    aim=lambda _point, Hg: Hg,
    join=lambda Hg, _d: Hg,
    product=lambda Hg: Hg,
)
"""The straight line x − alpha H g, whose plan is H g itself."""
