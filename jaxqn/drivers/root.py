"""The front door for equations: ``root(fun, x0, args)``."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import answered, check_callback, check_x0
from jaxqn.drivers.progress import observed
from jaxqn.drivers.resume import check_state
from jaxqn.drivers.root_result import RootResult, like_returned
from jaxqn.drivers.small_programs import eager_program
from jaxqn.loop import (
    LoopState,
    RootOptions,
    RootProblem,
    Tally,
    Tolerances,
    constant,
    lowest_point,
    root_as_function,
    root_problem,
    root_tolerances,
    run,
    straight,
)

__all__ = ["root", "solve"]


@answered
def root(
    fun: Callable[..., Any],
    x0: ArrayTree,
    args: tuple[Any, ...] = (),
    *,
    method: str = "broyden",
    jac0: Any = None,
    tol: Any = None,
    xtol: Any = 0.0,
    maxiter: Any = None,
    maxfun: Any = None,
    has_aux: bool = False,
    x_scale: Any = None,
    memory: int = 10,
    implicit: bool | str = True,
    state: LoopState | None = None,
    callback: Callable[[RootResult], Any] | None = None,
    progress: bool = False,
) -> RootResult:
    """Solve n equations F(x) = 0 for n unknowns, a pytree.

    Iterates x₊ = x − H F with H ≈ J⁻¹, which pairs s = x₊ − x, y = F₊ − F correct by rank one so
    that H y = s. Far from a root a trust region or a line search keeps steps short; neither needs
    a derivative. Called eagerly it compiles once per function, shapes and method; new numbers
    compile nothing. It may be called under ``jit`` and ``vmap``.

    Args:
      fun: ``fun(x, *args) -> F``, a pytree of as many numbers as x has, or ``(F, aux)`` with
        ``has_aux``. Keep it one function object and pass data through ``args``, see
        :func:`jaxqn.minimize`.
      x0: first point, a pytree of real floating arrays of one dtype.
      args: further arguments of ``fun``, pytrees of arrays.
      method: "broyden", the good update of a dense H, in Powell's hybrid method, over unknowns
        measured by the columns of the Jacobian; "broyden-bad", the same with the bad update;
        "newton", the Jacobian at every point in the same method; "lbroyden", the good update from
        the newest ``memory`` pairs; "lbroyden-bad" and "anderson", likewise; "newton-krylov",
        Newton's step by GMRES. The last four hold no matrix, do not ravel x, and take an F with the
        structure of x only.
      jac0: the Jacobian to start from, shape ``(n, n)``, over ravelled unknowns; for limited
        memory a number c, for c I. By default a dense method evaluates it at x0, by one derivative
        per unknown, and limited memory takes products with it there. Where progress stops, both
        do so again, with ``jac0`` as well.
      tol: stop when max|Fᵢ| is at most this. By default a run stops where F is as small as rounding
        of x leaves it, |Fᵢ| ≤ r Σⱼ |Jᵢⱼ xⱼ| with r = max(1e-12, 8 eps), which depends on the scale
        of neither F nor x. Limited memory knows |Fᵢ| ≤ r ‖x‖ |yᵢ|/‖s‖ of its steps.
      xtol: stop when a step is at most this fraction of x long; 0 is off.
      maxiter: steps allowed in all; by default max(1000, 200 n).
      maxfun: evaluations of F allowed in all; by default unlimited.
      has_aux: whether ``fun`` returns auxiliary data beside F.
      x_scale: sizes of the unknowns, like ``x0`` or one number. The dense methods measure by the
        columns of the Jacobian and need none; limited memory does.
      memory: pairs of limited memory.
      implicit: of which results there are derivatives, by ``args`` and all that ``fun`` closes
        over, in either mode and to any order: of those with ``success``; any other has NaN. With
        "model" they are those of the equations where the run ended, with False there are none. Up
        to 256 unknowns the Jacobian is formed; for more, GMRES solves with products.
      state: ``result.state`` of an earlier call, to continue exactly where it stopped.
      callback: called after every step with the result so far; a true return value stops the run.
        Eager calls only.
      progress: print a line to standard error about every second. Eager calls only.

    Returns:
      A :class:`RootResult`. A run that ends badly is a status, never an exception: STALLED where
      no step brings F closer to 0, as at a local minimum of ‖F‖ without a root; SINGULAR where an
      unknown has lost its effect, or x0 is a stationary point of ‖F‖.

    Raises:
      TypeError: a leaf of ``x0`` is not real floating, ``fun`` cannot be hashed, or an option is of
        the wrong type.
      ValueError: an unknown method, F with another number of entries than x, a negative tolerance,
        a ``jac0`` of the wrong shape or for a method that takes none.

    Cost: one evaluation of F per trip. Dense: O(n²) per trip, 2 n² numbers, and O(n³) per Jacobian.
    Limited memory: 2 ``memory`` n numbers, read a few times per trip.

    Example:
      >>> import jax.numpy as jnp
      >>> def circle_and_line(x):
      ...     return jnp.stack([x[0] ** 2 + x[1] ** 2 - 1.0, x[0] - x[1]])
      >>> result = root(circle_and_line, jnp.array([2.0, 1.0]))
      >>> bool(result.success), [round(float(v), 4) for v in result.x]
      (True, [0.7071, 0.7071])

    References:
      Broyden, Math. Comp. 19 (1965); Powell, A hybrid method for nonlinear equations (1970);
      Li & Fukushima, Optim. Methods Softw. 13 (2000); Dennis & Schnabel, 1983, chapters 6 and 8.
    """
    options = RootOptions(
        method=method,
        jac0=jac0,
        tol=tol,
        xtol=xtol,
        maxiter=maxiter,
        maxfun=maxfun,
        has_aux=has_aux,
        x_scale=x_scale,
        memory=memory,
        implicit=implicit,
    )
    problem = root_problem(fun, args, options)
    if state is not None and jac0 is not None:
        raise ValueError("jac0 is for a new run, but this one continues a state")
    return solve(problem, x0, args, options, state, callback, progress)


def solve(
    problem: RootProblem,
    x0: ArrayTree,
    args: Any,
    options: RootOptions,
    state: LoopState | None,
    callback: Any,
    progress: bool,
) -> RootResult:
    """Check, and run to a status."""
    check_callback(callback)
    x0, dtype, n = check_x0(x0)
    tol = root_tolerances(dtype, n, options)
    J0, x_scale = problem.starts(options, x0)
    data = args
    x0, tol, J0, x_scale, state, args = constant((x0, tol, J0, x_scale, state, args))
    begin = functools.partial(_start, problem=problem)
    if state is None:
        state = begin(x0, args, J0, x_scale)
    else:
        check_state(state, jax.eval_shape(begin, x0, args, J0, x_scale))
    go = functools.partial(_run, args=args, problem=problem)
    if callback is None and not progress:
        result = go(x0, state, tol)
    else:
        result = observed(go, x0, state, tol, callback, 1, progress, _numbers)
    return _differentiable(result, data, problem=problem) if problem.has_derivatives else result


def _numbers(result: RootResult) -> str:
    size = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(result.fun))
    return f"Jacobians {int(result.njev)}  max|F| {size:.3e}"


@eager_program("problem")
def _start(x0: ArrayTree, args: Any, J0: Any, x_scale: Any, *, problem: RootProblem) -> LoopState:
    """The state before the first evaluation."""
    return problem.start(x0, args, J0, x_scale)


@eager_program("problem")
def _run(
    x0: ArrayTree, state: LoopState, tol: Tolerances, *, args: Any, problem: RootProblem
) -> RootResult:
    """Run the loop to a status."""
    state = run(state, functools.partial(problem.on_vectors, x0, args, None), problem.method, tol)
    best = lowest_point(state, problem.method, straight, alone=True)
    nit, nfev, _, _ = Tally(*state.counts)
    back = problem.vector(x0)[1]
    return RootResult(
        x=back(best.x),
        fun=values(problem, state.point.g, x0, args),
        status=state.status,
        nit=nit,
        nfev=nfev,
        njev=cast(Any, state.approx).njev,
        state=state,
        aux=best.aux,
    )


@functools.partial(jax.jit, static_argnames=("problem",))
def _differentiable(result: RootResult, args: Any, *, problem: RootProblem) -> RootResult:
    """The result as a function of the data of the equations."""
    x, F, aux = root_as_function(problem, *result_parts(result), args)
    return result._replace(x=x, fun=F, aux=aux)


def result_parts(result: RootResult) -> tuple[ArrayTree, ArrayTree, Any, Array]:
    """What of a result has derivatives, and its status."""
    return result.x, result.fun, result.aux, result.status


def values(problem: RootProblem, F: ArrayTree, x0: ArrayTree, args: Any) -> ArrayTree:
    """F as the equations return it, of a vector of the method or of many."""
    if not problem.method.qn.dense:
        return problem.vector(x0)[1](F)
    like: Any = jax.eval_shape(lambda: problem.values_at(x0, args)[0])
    return like_returned(cast(Array, F), like)
