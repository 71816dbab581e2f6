"""What a run ended with, as a function of the data of its problem."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import called, scalar_value, split_aux
from jaxqn.linalg import vectors
from jaxqn.loop.box import Box, active
from jaxqn.loop.implicit import (
    MAX_DIRECT,
    Equations,
    Held,
    constant,
    follow,
    of_data,
    solution,
    value_at,
)
from jaxqn.loop.problem import Problem
from jaxqn.loop.state import LoopState
from jaxqn.loop.status import Status, succeeded
from jaxqn.loop.units import from_scaled, gradient_to_scaled

__all__ = ["Memory", "Minimum", "differentiable", "memory_of"]


class Minimum(NamedTuple):
    """A point where a run ended.

    Attributes:
      x: the point.
      f: the value there.
      g: the gradient there, by x.
      aux: auxiliary data.
      residuals: flat residuals, where the method looks into them, or ``None``.
      status: how the run ended.
    """

    x: ArrayTree
    f: Array
    g: ArrayTree
    aux: Any
    residuals: Any
    status: Array


class Memory(NamedTuple):
    """The inverse Hessian that a run ended with: the approximation, and its units."""

    approx: Any
    g_scale: Array
    x_scale: Any


def memory_of(problem: Problem, state: LoopState) -> Memory | None:
    """The inverse Hessian of a run, where a derivative needs one and pairs alone have made it.

    One of a trust region may be indefinite, and no preconditioner.
    """
    qn = problem.method.qn
    definite = qn.needs == "nothing" and qn.model is None
    if not definite or vectors.size(state.point.x) <= MAX_DIRECT:
        return None
    return Memory(state.approx, state.g_scale, state.x_scale)


def differentiable(
    problem: Problem, minimum: Minimum, args: Any, box: Box | None, memory: Memory | None
) -> Minimum:
    """The minimum as a function of ``args``, of ``box`` and of all that the objective closes over.

    Args:
      problem: the problem; it says which derivatives a run has that did not converge.
      minimum: what the run ended with, a constant from here on.
      args: further arguments of the objective.
      box: bounds, or ``None``.
      memory: an approximate inverse Hessian, or ``None``.
    """
    minimum, memory = constant((minimum, memory))
    x, f, g, aux, residuals, status = minimum
    fun, data = of_data(_outputs(problem), x, args)
    ok = succeeded(status) | (status == Status.STALLED) | (problem.implicit == "model")
    trust = jnp.where(ok, 1.0, jnp.nan).astype(f.dtype)
    held = None if box is None else Held(active(x, g, box), *box)

    def value(x: ArrayTree, data: Any) -> Array:
        return fun(x, data)[0]

    def others(x: ArrayTree, data: Any) -> tuple[Any, Any]:
        _, aux, r = fun(x, data)
        return aux, None if residuals is None else r

    gradient = jax.grad(value)
    inverse = None if memory is None else lambda memory, v: _product(problem, memory, v)
    x = solution(Equations(gradient, preconditioner=inverse), x, data, held, memory, trust)
    f = value_at(value, f, x, data, held, trust)
    g = follow(gradient, g, x, data)
    aux, residuals = follow(others, (aux, residuals), x, data)
    return Minimum(x, f, g, aux, residuals, status)


def _outputs(problem: Problem) -> Any:
    """``(x, *args) -> (value, aux, residuals)``, of which the last two may be ``None``."""

    def outputs(x: ArrayTree, *args: Any) -> tuple[Array, Any, Any]:
        residuals, objective = problem.residuals, problem.objective
        if residuals is not None:
            r, aux = objective.flat(called(residuals, x, args))
            return objective.cost(r)[0], aux, r
        out = called(objective, x, args)
        value, aux = split_aux(out) if problem.has_aux else (out, None)
        return scalar_value(value).astype(vectors.tree_dtype(x)), aux, None

    return outputs


def _product(problem: Problem, memory: Memory, v: ArrayTree) -> ArrayTree:
    """H v for v like x, by the inverse Hessian of the run."""
    approx, g_scale, x_scale = memory
    vector, back = problem.vector(v)
    Hv = problem.method.qn.apply(approx, gradient_to_scaled(vector, x_scale))
    Hv = jax.tree.map(lambda h: h / g_scale.astype(h.dtype), from_scaled(Hv, x_scale))
    return back(Hv)
