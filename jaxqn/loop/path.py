"""How a step length becomes a point.

A line search sees phi(alpha) = f(x(alpha)) and its slope only. What the path x(alpha) is, a
straight line or one that bends at bounds, is a value of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxqn._typing import Array, ArrayTree
from jaxqn.loop.state import Point

__all__ = ["Path", "straight"]


class Path(NamedTuple):
    """A path x(alpha) that leaves a point along −d; ``plan`` is what it is made from.

    Attributes:
      at: ``(x, alpha, plan) -> x(alpha)``.
      tangent: ``(trial, plan) -> −dx/dalpha`` at the trial.
      free: ``point -> g`` over the variables that may move; what vanishes at a solution.
      direction: ``(qn, approx, point, Hg) -> d``, given H times the gradient.
      join: ``(Hg, d) -> plan``.
      product: ``plan -> Hg``.
    """

    at: Callable[[ArrayTree, Array, Any], ArrayTree]
    tangent: Callable[[Point, Any], ArrayTree]
    free: Callable[[Point], ArrayTree]
    direction: Callable[..., ArrayTree]
    join: Callable[[ArrayTree, ArrayTree], Any]
    product: Callable[[Any], ArrayTree]


def along(x: ArrayTree, alpha: Array, d: ArrayTree) -> ArrayTree:
    """The point x − alpha d."""
    return jax.tree.map(lambda x, d: x - alpha * d, x, d)


straight = Path(
    at=along,
    tangent=lambda _trial, Hg: Hg,
    free=lambda point: point.g,
    direction=lambda _qn, _approx, _point, Hg: Hg,
    join=lambda Hg, _d: Hg,
    product=lambda Hg: Hg,
)
"""The straight line x − alpha H g, whose plan is H g itself."""
