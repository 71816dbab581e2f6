"""A run of the loop, trip by trip, for a library that has a loop of its own."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import check_x0
from jaxqn.loop import (
    LoopState,
    MinimizeOptions,
    box_of,
    from_scaled,
    gradient_from_scaled,
    inside,
    lowest_point,
    problem_of,
    tolerances,
    trip,
)

__all__ = ["Run"]


class Run:
    """What is fixed along a run; the state is the caller's, and so is the loop.

    A host that keeps nothing but arrays makes the run anew for every step.

    Args:
      objective: function of x alone, ``x -> value``, or ``(value, aux)`` with ``has_aux``.
      x0: a point of the run, for its structure and dtype; ``start`` begins there.
      options: all options of :func:`jaxqn.minimize` that a run has.

    Raises:
      TypeError: see :func:`jaxqn.minimize`.
      ValueError: see :func:`jaxqn.minimize`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from jaxqn.loop import DEFAULTS
      >>> run = Run(lambda x: jnp.sum((x - 3) ** 2), jnp.zeros(2), {**DEFAULTS, "method": "bfgs"})
      >>> state, step = run.start(), jax.jit(run.trip)
      >>> while state.status == 0:
      ...     state = step(state)
      >>> [round(float(v), 3) for v in run.here(state)[0]]
      [3.0, 3.0]
    """

    def __init__(self, objective: Callable[..., Any], x0: ArrayTree, options: MinimizeOptions):
        self.x0, dtype, n = check_x0(x0)
        self.options = options
        # The host makes derivatives of the solution, if there are any.
        self.problem = problem_of(objective, (), options)._replace(implicit=None)
        self.tol = tolerances(dtype, n, options)
        self.box = box_of(options, self.x0)

    def start(self) -> LoopState:
        """The state before the first evaluation."""
        H0, x_scale = self.problem.starts(self.options, self.x0)
        return self.problem.start(self.x0, (), H0, x_scale, self.box)

    def trip(self, state: LoopState) -> LoopState:
        """One evaluation, and what follows from it."""
        on_vectors = functools.partial(self.problem.on_vectors, self.x0, (), self.box)
        return trip(state, on_vectors, self.problem.method, self.tol)

    def here(self, state: LoopState) -> tuple[ArrayTree, Array, ArrayTree]:
        """The current point, with value and gradient there; before the first trip infinity."""
        point, back = state.point, self.problem.vector(self.x0)[1]
        g = jax.tree.map(lambda g: state.g_scale.astype(g.dtype) * g, point.g)
        g = back(gradient_from_scaled(g, state.x_scale))
        return self._inside(back(from_scaled(point.x, state.x_scale))), point.f, g

    def lowest(self, state: LoopState) -> tuple[ArrayTree, Any]:
        """The lowest finite point seen, and the auxiliary output there."""
        path = self.problem.path(self.box, state.x_scale)
        best = lowest_point(state, self.problem.method, path)
        return self._inside(self.problem.vector(self.x0)[1](best.x)), best.aux

    def _inside(self, x: ArrayTree) -> ArrayTree:
        return x if self.box is None else inside(x, self.box)
