"""Derivatives of a solution by the implicit function theorem.

A solution x(θ) of F(x, θ) = 0 moves with its data θ as

    dx = −(∂F/∂x)⁻¹ (∂F/∂θ) dθ,

F being the gradient of an objective. No derivative passes through the iterations, so that memory
does not depend on their number. Variables that bounds hold move with their bounds, and the equation
is that of the others. The value of the objective moves with its data and these alone (the envelope
theorem).

Every rule is written in terms of x, whose derivative is again by such a rule: derivatives of any
order follow.

References:
  Krantz & Parks, The Implicit Function Theorem, 2002. Ramzi et al., SHINE, arXiv:2106.00553, take
  the inverse Hessian of the run for that of the solution; here it is a preconditioner.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax.extend.core import (
    ClosedJaxpr,
    get_opaque_trace_state,
    jaxpr_as_fun,
    jaxprs_in_params,
)

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import is_traced
from jaxqn.linalg import general_solve, iterative_solve, symmetric_solve, vectors

__all__ = [
    "MAX_DIRECT",
    "Equations",
    "Held",
    "constant",
    "follow",
    "of_data",
    "refused",
    "solution",
    "transformed",
    "value_at",
]

MAX_DIRECT = 256
"""Variables up to which the matrix of the linear system is formed."""


class Held(NamedTuple):
    """Which bound holds each variable, −1, 1 or 0 for none, and the bounds; all like x."""

    side: ArrayTree
    lower: ArrayTree
    upper: ArrayTree


class Equations(NamedTuple):
    """What vanishes at a solution; fixed when a program is compiled.

    Attributes:
      fun: ``(x, data) -> F``, like x.
      symmetric: whether ∂F/∂x is.
      preconditioner: ``(memory, v) -> `` about (∂F/∂x)⁻¹ v, or ``None``.
    """

    fun: Callable[[ArrayTree, Any], ArrayTree]
    symmetric: bool = True
    preconditioner: Callable[[Any, ArrayTree], ArrayTree] | None = None


def transformed() -> bool:
    """Whether a transformation of JAX is at work, so that somebody may differentiate."""
    return get_opaque_trace_state() != _EAGER


_EAGER = get_opaque_trace_state()


@jax.custom_jvp
def refused(point: Any) -> Any:
    """The point itself, of a run whose host takes derivatives in no way that is right."""
    return point


@refused.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "the steps of a run of jaxqn have no derivative: take that of the solution, by the "
        "implicit function theorem, or put jax.lax.stop_gradient around what goes into the run"
    )


def constant(tree: Any) -> Any:
    """The same without derivatives."""

    def of_leaf(leaf: Any) -> Any:
        return jax.lax.stop_gradient(leaf) if is_traced(leaf) else leaf

    return jax.tree.map(of_leaf, tree)


def of_data(fun: Callable[..., Any], x: ArrayTree, args: Any) -> tuple[Callable[..., Any], Any]:
    """``fun`` as a function of x and its data, and these: ``args`` and all that it closes over.

    Cost: one trace of ``fun``.
    """
    closed, shape = jax.make_jaxpr(lambda x, args: fun(x, *args), return_shape=True)(x, args)
    structure, jaxpr = jax.tree.structure(shape), closed.jaxpr

    def at(x: ArrayTree, data: Any) -> Any:
        args, constants = data
        out = jaxpr_as_fun(ClosedJaxpr(jaxpr, constants))(*jax.tree.leaves((x, args)))
        return jax.tree.unflatten(structure, out)

    return at, (args, list(closed.consts))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _known(derivative: Callable[..., Any], value: Any, operands: Any) -> Any:  # noqa: ARG001
    """A value, a constant, that moves by ``derivative(value, operands, change of operands)``."""
    return value


@_known.defjvp
def _known_jvp(derivative: Callable[..., Any], primals: Any, tangents: Any) -> tuple[Any, Any]:
    value = _known(derivative, *primals)  # again, for its own derivatives
    return value, derivative(value, primals[1], tangents[1])


def solution(
    equations: Equations, x: ArrayTree, data: Any, held: Held | None, memory: Any, trust: Array
) -> ArrayTree:
    """x, which solves the equations, with its derivatives by their data and by bounds that hold.

    Args:
      equations: F.
      x: the solution, a constant.
      data: θ.
      held: what bounds hold.
      memory: what the preconditioner is made from, a constant.
      trust: 1, or NaN for derivatives that are NaN.
    """

    def derivative(x: ArrayTree, operands: Any, change: Any) -> ArrayTree:
        data, held, memory, trust = operands
        moved = _moved(held, change[1], x)
        b = _derivative(equations.fun, (x, data), (moved, change[0]))
        free = None if held is None else jax.tree.map(lambda side: side == 0, held.side)
        dx = _solved(equations, x, data, free, memory, vectors.masked(free, b))
        return jax.tree.map(lambda dx, moved: (moved - dx) * trust.astype(dx.dtype), dx, moved)

    return _known(derivative, x, (data, held, memory, trust))


def value_at(
    fun: Callable[..., Any], f: Array, x: ArrayTree, data: Any, held: Held | None, trust: Array
) -> Array:
    """f, the value of ``fun(x, data)`` at a minimum, with its derivative by the data."""

    def derivative(_: Array, operands: Any, change: Any) -> Array:
        x, data, held, trust = operands
        return trust * _derivative(fun, (x, data), (_moved(held, change[2], x), change[1]))

    return _known(derivative, f, (x, data, held, trust))


def follow(fun: Callable[..., Any], value: Any, x: ArrayTree, data: Any) -> Any:
    """A known value of ``fun(x, data)``, with the derivatives of the function."""
    return _known(lambda _, at, along: _derivative(fun, at, along), value, (x, data))


def _moved(held: Held | None, change: Any, x: ArrayTree) -> ArrayTree:
    """The change of the variables that bounds hold, for a ``change`` of the bounds; 0 elsewhere."""
    if held is None:
        return jax.tree.map(jnp.zeros_like, x)

    def of_leaf(side: Array, low: Array, up: Array) -> Array:
        return jnp.where(side < 0, low, jnp.where(side > 0, up, jnp.zeros_like(low)))

    return jax.tree.map(of_leaf, held.side, change.lower, change.upper)


def _solved(
    equations: Equations, x: ArrayTree, data: Any, free: Any, memory: Any, b: ArrayTree
) -> ArrayTree:
    """(∂F/∂x)⁻¹ b over the free variables, 0 elsewhere."""

    def product(v: ArrayTree) -> ArrayTree:
        image = _derivative(lambda x: equations.fun(x, data), (x,), (vectors.masked(free, v),))
        return image if free is None else jax.tree.map(jnp.where, free, image, v)

    vector, back = jax.flatten_util.ravel_pytree(b)
    if vector.size <= MAX_DIRECT:
        columns = jax.vmap(lambda v: jax.flatten_util.ravel_pytree(product(back(v)))[0])
        A = columns(jnp.eye(vector.size, dtype=vector.dtype)).T
        return back(symmetric_solve(A, vector) if equations.symmetric else general_solve(A, vector))
    inverse = equations.preconditioner

    def preconditioner(v: ArrayTree) -> ArrayTree:
        assert inverse is not None
        Hv = inverse(memory, vectors.masked(free, v))
        return Hv if free is None else jax.tree.map(jnp.where, free, Hv, v)

    return iterative_solve(
        product,
        b,
        symmetric=equations.symmetric,
        preconditioner=None if inverse is None else preconditioner,
    )


def _derivative(fun: Callable[..., Any], at: Any, along: Any) -> Any:
    """The derivative of ``fun`` along a direction, also of one with a derivative backwards only."""
    if not _only_backwards(jax.make_jaxpr(fun)(*at).jaxpr):
        return jax.jvp(fun, at, along)[1]
    leaves, structure = jax.tree.flatten(at)
    counts = [jnp.issubdtype(jax.typeof(leaf).dtype, jnp.inexact) for leaf in leaves]

    def of_counting(counting: list[Array]) -> Any:
        rest = iter(counting)
        chosen = [next(rest) if one else leaf for one, leaf in zip(counts, leaves, strict=True)]
        return fun(*jax.tree.unflatten(structure, chosen))

    chosen = [leaf for one, leaf in zip(counts, leaves, strict=True) if one]
    moves = [dot for one, dot in zip(counts, jax.tree.leaves(along), strict=True) if one]
    out, pull_back = jax.vjp(of_counting, chosen)
    (change,) = jax.linear_transpose(lambda v: pull_back(v)[0], out)(moves)
    return change


def _only_backwards(jaxpr: Any) -> bool:
    """Whether a function somewhere in it has a rule for its derivative backwards only."""
    return any(
        eqn.primitive.name.startswith("custom_vjp")
        or any(_only_backwards(inner) for inner in jaxprs_in_params(eqn.params))
        for eqn in jaxpr.eqns
    )
