"""The front doors for equations: ``root(fun, x0, args)`` and ``fixed_point(fun, x0, args)``."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import check_callback, check_hashable, check_x0
from jaxqn.drivers.progress import observed
from jaxqn.drivers.resume import check_state
from jaxqn.drivers.root_result import RootResult, like_returned
from jaxqn.loop import (
    LoopState,
    RootOptions,
    RootProblem,
    Tally,
    Tolerances,
    lowest_point,
    root_problem,
    root_tolerances,
    run,
    straight,
)

__all__ = ["FixedPoint", "fixed_point", "root"]


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
      method: "broyden", the good update of a dense H, in Powell's hybrid method; "broyden-bad", the
        same with the bad update; "newton", the Jacobian at every point in the same method;
        "lbroyden", the good update from the newest ``memory`` pairs; "lbroyden-bad" and "anderson",
        likewise; "newton-krylov", Newton's step by GMRES. The last four hold no matrix, do not
        ravel x, and take an F with the structure of x only.
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
      NotImplementedError: it is being differentiated.

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
    )
    problem = root_problem(fun, args, options)
    return solve(problem, x0, args, options, state, callback, progress)


def fixed_point(
    fun: Callable[..., Any],
    x0: ArrayTree,
    args: tuple[Any, ...] = (),
    *,
    method: str = "anderson",
    memory: int = 5,
    tol: Any = None,
    xtol: Any = 0.0,
    maxiter: Any = None,
    maxfun: Any = None,
    has_aux: bool = False,
    state: LoopState | None = None,
    callback: Callable[[RootResult], Any] | None = None,
    progress: bool = False,
) -> RootResult:
    """Solve x = g(x), accelerated by the newest pairs.

    The equation is F(x) = g(x) − x = 0, and H = −I without pairs, which is the plain iteration
    x₊ = g(x). Anderson's method is the bad Broyden method with all pairs of its memory at once: of
    all H with the least change from −I it takes the one that meets H Y = S by least squares, and
    "lbroyden-bad" the one that meets the newest pair exactly. Unlike both, a run here tests ‖F‖
    before it takes a step, and is sound far from a fixed point.

    Args:
      fun: ``fun(x, *args) -> g(x)``, like x, or ``(g(x), aux)`` with ``has_aux``.
      x0: see :func:`root`.
      args: see :func:`root`.
      method: "anderson", "lbroyden-bad" or "lbroyden"; or any other of :func:`root`.
      memory: pairs to keep.
      tol: see :func:`root`, for F = g(x) − x.
      xtol: see :func:`root`.
      maxiter: see :func:`root`.
      maxfun: see :func:`root`.
      has_aux: see :func:`root`.
      state: see :func:`root`.
      callback: see :func:`root`.
      progress: see :func:`root`.

    Returns:
      A :class:`RootResult`; its ``fun`` is g(x) − x.

    Raises:
      TypeError: see :func:`root`, also for ValueError.

    Cost: one evaluation of g per trip; memory for 2 ``memory`` vectors.

    Example:
      >>> import jax.numpy as jnp
      >>> result = fixed_point(jnp.cos, jnp.ones(3))
      >>> bool(result.success), round(float(result.x[0]), 4)
      (True, 0.7391)

    References:
      Anderson, J. ACM 12 (1965); Fang & Saad, Numer. Linear Algebra Appl. 16 (2009), for its place
      in the family of the bad Broyden method; Walker & Ni, SIAM J. Numer. Anal. 49 (2011).
    """
    check_hashable(fun)
    limited = method in ("anderson", "lbroyden", "lbroyden-bad")
    options = RootOptions(
        method=method,
        jac0=-1.0 if limited else None,
        tol=tol,
        xtol=xtol,
        maxiter=maxiter,
        maxfun=maxfun,
        has_aux=has_aux,
        x_scale=None,
        memory=memory,
    )
    problem = root_problem(FixedPoint(fun, has_aux), args, options)
    return solve(problem, x0, args, options, state, callback, progress)


@dataclasses.dataclass(frozen=True)
class FixedPoint:
    """The equations g(x) − x = 0 of a function g."""

    g: Callable[..., Any]
    has_aux: bool

    def __call__(self, x: ArrayTree, *args: Any) -> Any:
        """F, or ``(F, aux)``."""
        out = self.g(x, *args)
        image, aux = out if self.has_aux else (out, None)
        F = jax.tree.map(jnp.subtract, image, x)
        return (F, aux) if self.has_aux else F


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
    begin = functools.partial(_start, problem=problem)
    if state is None:
        state = begin(x0, args, J0, x_scale)
    elif options["jac0"] is not None and not isinstance(problem.equations, FixedPoint):
        raise ValueError("jac0 is for a new run, but this one continues a state")
    else:
        check_state(state, jax.eval_shape(begin, x0, args, J0, x_scale))
    go = functools.partial(_run, args=args, problem=problem)
    if callback is None and not progress:
        return go(x0, state, tol)
    return observed(go, x0, state, tol, callback, 1, progress, _numbers)


def _numbers(result: RootResult) -> str:
    size = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(result.fun))
    return f"Jacobians {int(result.njev)}  max|F| {size:.3e}"


@functools.partial(jax.jit, static_argnames=("problem",))
def _start(x0: ArrayTree, args: Any, J0: Any, x_scale: Any, *, problem: RootProblem) -> LoopState:
    """The state before the first evaluation."""
    return problem.start(x0, args, J0, x_scale)


@functools.partial(jax.jit, static_argnames=("problem",))
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


def values(problem: RootProblem, F: ArrayTree, x0: ArrayTree, args: Any) -> ArrayTree:
    """F as the equations return it, of a vector of the method or of many."""
    if not problem.method.qn.dense:
        return problem.vector(x0)[1](F)
    like: Any = jax.eval_shape(lambda: problem.values_at(x0, args)[0])
    return like_returned(cast(Array, F), like)
