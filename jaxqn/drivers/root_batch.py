"""Many systems of equations at once: ``root_batch``."""

import functools
from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.flatten_util

from jaxqn._typing import ArrayTree
from jaxqn.checks import check_keywords, check_x0
from jaxqn.drivers.batch_solve import solve_batch
from jaxqn.drivers.in_axes import Layout, split
from jaxqn.drivers.root_result import RootResult, like_returned
from jaxqn.loop import (
    ROOT_DEFAULTS,
    RootOptions,
    RootProblem,
    options_of_the_loop,
    root_as_function,
    root_problem,
    root_tolerances,
)

__all__ = ["root_batch"]


def root_batch(
    fun: Callable[..., Any],
    x0: ArrayTree,
    args: tuple[Any, ...] = (),
    *,
    in_axes: Any = 0,
    lanes: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    **options: Unpack[RootOptions],
) -> RootResult:
    """Solve the same equations for many starting points or data sets.

    The problems share lanes, see :func:`jaxqn.minimize_batch`. Every one has the result, status and
    counters that :func:`jaxqn.root` gives it alone, up to rounding.

    Args:
      fun: equations ``fun(x, *args)`` of one problem; see :func:`jaxqn.root`.
      x0: first points, a pytree of real floating arrays of one dtype.
      args: further arguments of ``fun``.
      in_axes: which axis of ``(x0, *args)`` runs over problems; see :func:`jaxqn.minimize_batch`.
      lanes: problems under way at once; see there.
      mesh: devices to share the problems; see there.
      **options: those of :func:`jaxqn.root` from ``method`` to ``implicit``, the same for all.

    Returns:
      A :class:`jaxqn.RootResult` with a leading axis of problems.

    Raises:
      TypeError: see :func:`jaxqn.root`.
      ValueError: see there; and no axis of problems, or axes of different sizes.

    Cost: a Jacobian that one lane needs is evaluated in all of them.

    Example:
      >>> import jax.numpy as jnp
      >>> def kepler(E, M, e):
      ...     return E - e * jnp.sin(E) - M
      >>> M = jnp.linspace(0.1, 3.0, 5)
      >>> result = root_batch(kepler, M, (M, 0.3), in_axes=(0, 0, None))
      >>> bool(result.success.all()), round(float(result.x[0]), 3)
      (True, 0.143)
    """
    check_keywords("root_batch", options, ROOT_DEFAULTS)
    settings: RootOptions = {**ROOT_DEFAULTS, **options}
    problem = root_problem(fun, args, settings)
    x0, dtype, _ = check_x0(x0)
    tol = settings["tol"]
    root_tolerances(dtype, 1, settings)
    numbers: Any = {**settings, **options_of_the_loop(settings, tol)}
    arguments = (x0, *args)
    alone = problem._replace(implicit=False)
    found = solve_batch(alone, numbers, arguments, in_axes=in_axes, lanes=lanes, mesh=mesh)
    result = RootResult(
        x=found.x,
        fun=_values(problem, found.jac, arguments, in_axes),
        status=found.status,
        nit=found.nit,
        nfev=found.nfev,
        njev=found.state.njev,
        state=found.state,
        aux=found.aux,
    )
    if not problem.has_derivatives:
        return result
    mapped, shared, layout = split(in_axes, arguments)
    return _differentiable(result, mapped, shared, problem=problem, layout=layout)


@functools.partial(jax.jit, static_argnames=("problem", "layout"))
def _differentiable(
    result: RootResult,
    mapped: list[Any],
    shared: list[Any],
    *,
    problem: RootProblem,
    layout: Layout,
) -> RootResult:
    """Every result as a function of its own data and of those that all share."""

    def one(parts: Any, mapped: list[Any]) -> Any:
        _, *args = layout.join(mapped, shared)
        x, F, aux, status = parts
        return root_as_function(problem, x, F, aux, status, tuple(args))

    x, F, aux = jax.vmap(one)((result.x, result.fun, result.aux, result.status), mapped)
    return result._replace(x=x, fun=F, aux=aux)


def _values(problem: RootProblem, F: ArrayTree, arguments: Any, in_axes: Any) -> ArrayTree:
    """F of every problem as the equations return it, from arrays like x."""
    if not problem.inverse.dense:
        return F
    mapped, shared, layout = split(in_axes, arguments)

    def one() -> Any:
        x, *args = layout.join([leaf[0] for leaf in mapped], shared)
        return problem.values_at(x, args)[0]

    flat = jax.vmap(lambda F: jax.flatten_util.ravel_pytree(F)[0])(F)
    return like_returned(flat, jax.eval_shape(one))
