"""The front door: ``minimize(fun, x0, args)``."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxqn._typing import ArrayTree, Objective
from jaxqn.checks import answered, check_callback, check_count, check_x0, notice_function
from jaxqn.drivers.progress import observed
from jaxqn.drivers.result import MinimizeResult
from jaxqn.drivers.resume import check_state, given_of, repacked
from jaxqn.drivers.small_programs import eager_program
from jaxqn.linalg import vectors
from jaxqn.linesearch import LineSearch
from jaxqn.loop import (
    Box,
    History,
    LoopState,
    MinimizeOptions,
    Minimum,
    Problem,
    Tally,
    Tolerances,
    active,
    box_of,
    constant,
    differentiable,
    inside,
    lowest_point,
    memory_of,
    no_history,
    problem_of,
    run,
    run_watched,
    tolerances,
    transformed,
    watched,
)
from jaxqn.quasi_newton import QuasiNewton

__all__ = ["minimize"]


@answered
def minimize(
    fun: Objective,
    x0: ArrayTree,
    args: tuple[Any, ...] = (),
    *,
    bounds: Any = None,
    method: str | QuasiNewton | None = None,
    linesearch: LineSearch | None = None,
    gtol: Any = None,
    ftol: Any = 0.0,
    xtol: Any = 0.0,
    maxiter: Any = None,
    maxfun: Any = None,
    has_aux: bool = False,
    hess_inv0: Any = None,
    x_scale: Any = None,
    implicit: bool | str = True,
    state: LoopState | None = None,
    callback: Callable[[MinimizeResult], Any] | None = None,
    callback_every: int = 1,
    progress: bool = False,
    history: int = 0,
) -> MinimizeResult:
    """Minimise a differentiable function of a pytree by a quasi-Newton method.

    Iterates x₊ = x − alpha H g, where H is corrected by the pairs s = x₊ − x, y = g₊ − g so that
    H y = s, and alpha comes from a line search. Called eagerly it compiles once per objective,
    shapes, method and search; new numbers (``x0``, ``args``, tolerances, budgets) compile nothing.
    An eager call of a small problem is compiled with quicker options than one under ``jit``: last
    digits may differ.
    It may be called under ``jit`` and ``vmap``, and be differentiated: by ``args``, by bounds that
    hold and by all that ``fun`` closes over, in either mode and to any order. The derivatives are
    those of the solution, by the implicit function theorem; no memory grows with iterations.

    Args:
      fun: objective ``fun(x, *args) -> scalar``, or ``(scalar, aux)`` with ``has_aux``. Keep it one
        function object and pass data through ``args``: a new lambda per call compiles anew. As
        under ``jax.jit``, what it reads elsewhere counts as constant: after a change of an object
        whose bound method it is, or of a global, the compiled program still has the old value.
      x0: first point, a pytree of real floating arrays of one dtype. The driver forms inner
        products of steps in that dtype: in float32 keep steps within 1e-15 to 1e18, or pass
        ``x_scale``.
      args: further arguments of ``fun``, pytrees of arrays.
      bounds: ``(lower, upper)``, each a number, ``None``, or a pytree like ``x0`` or a prefix of
        it; for a flat ``x0`` also SciPy's ``Bounds`` or a list of pairs. ``None`` and infinities
        are free, and equal ones fix a parameter. ``x0`` is moved into the box, and ``fun`` is never
        called outside of it, not by a last digit; at a bound it may be infinite or NaN. Steps bend
        at bounds, P(x − alpha d) with d = H_FF g_F over the variables F that may move
        (:mod:`jaxqn.loop.box`). New numbers compile nothing.
      method: a name or a :class:`jaxqn.QuasiNewton`. The default is "osbfgs": BFGS with Oren and
        Spedicato's test for self-scaling. The others are "ssbfgs", "ssbroyden", "bfgs", "broyden",
        "dfp", "lbfgs", "sr1", "lsr1" and "newton". "sr1" and "lsr1" step within a trust region
        (:func:`jaxqn.sr1_trust_region`, :func:`jaxqn.lsr1_trust_region`); with ``bounds``, a
        ``linesearch`` or ``hess_inv0`` these names stand for their forms that search along lines.
        Of a :func:`jaxqn.sum_of_squares` the default is "structured", and "lm" and "residual" are
        others: see :func:`jaxqn.least_squares`.
      linesearch: a :class:`jaxqn.LineSearch`; by default :func:`jaxqn.wolfe`.
      gtol: stop when the largest entry of the gradient is at most this; with bounds, of
        P(x − g) − x. By default a run stops
        where the gradient is as small as rounding of x leaves it, √(Σ gᵢ²/Dᵢ) ≤ r √(Σ Dᵢ xᵢ²)
        with r = max(1e-10, 8 eps) and the curvature Dᵢ that the run has met, and where neither the
        model nor a change of a parameter by its own size promises more
        (:mod:`jaxqn.loop.termination`). That depends on the scale of neither ``fun`` nor x. A start
        at an exactly stationary point is believed, except by "newton".
      ftol: stop when an iteration decreases the objective by at most this fraction; 0 is off.
      xtol: stop when a step is at most this fraction of x long; 0 is off.
      maxiter: iterations allowed in all; by default max(1000, 200 n).
      maxfun: evaluations allowed in all, checked before every one; by default unlimited.
      has_aux: whether ``fun`` returns auxiliary data beside its value.
      hess_inv0: initial inverse Hessian over ravelled parameters, positive definite: a symmetric
        matrix of shape ``(n, n)``, or a diagonal of shape ``(n,)``. For a limited-memory method,
        a diagonal as a pytree like ``x0``.
      x_scale: sizes of the parameters, a pytree like ``x0`` of positive entries or one number. The
        driver minimises over z = x / x_scale, with every size rounded to a power of two; ``gtol``
        and all results stay in the units of x. By default, up to 256 entries and without
        ``hess_inv0``: |x0| if the parameters spread over decades there (log10|x0| has a standard
        deviation above 0.9), else 1; and |fun/∂fun/∂x| for a parameter that is 0 beside it, if
        that is below √eps of its unit.
      implicit: of which results there are derivatives. By default of those with ``success`` or
        STALLED; of any other, which solves nothing, a derivative is NaN. With "model" it is that of
        the minimum of the quadratic model where the run ended. With False results count as
        constants. Where the Hessian is singular, a derivative is the shortest one. Up to 256
        parameters its matrix is formed; for more, conjugate gradients solve with Hessian-vector
        products, and the H of the run is their preconditioner.
      state: ``result.state`` of an earlier call, to continue exactly where it stopped; ``x0`` then
        only gives the structure. Counters and budgets go on from there. ``args`` and
        ``bounds`` must be the same: for new data start anew from ``result.x``, with
        ``hess_inv0=result.hess_inv`` if you like.
      callback: called after every iteration with the result so far; a true return value stops the
        run. Eager calls only.
      callback_every: iterations between two calls of it. A call of Python after every iteration may
        take longer than the iterations do.
      progress: show value, gradient and rate about every second, on tqdm's bar if that is
        installed, else in lines; on standard error. Eager calls only.
      history: iterations of which ``result.history`` keeps value, gradient and step length: the
        last so many.

    Returns:
      A :class:`MinimizeResult`. A run that ends badly is a status, never an exception.

    Raises:
      TypeError: a leaf of ``x0`` is not real floating, ``fun`` cannot be hashed, or an option is
        of the wrong type; with ``bounds``, a method or a linesearch that takes none.
      ValueError: ``bounds`` with a lower above the upper, NaN, or not like ``x0``; an unknown
        method, a negative tolerance, mixed dtypes, a ``hess_inv0`` of the wrong shape or not
        symmetric positive definite, an ``x_scale`` not like ``x0`` or not positive, an objective
        that is not scalar.

    Cost: one evaluation of value and gradient per trip, and O(n²) per iteration: one product with
    H and the share of writing it (see :func:`jaxqn.dense`). Memory: n² + O(n). With "lbfgs", two
    passes over a history of 20 vectors, which are not ravelled and stay sharded as ``x0`` is.

    Example:
      >>> import jax.numpy as jnp
      >>> rosenbrock = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
      >>> result = minimize(rosenbrock, jnp.zeros(2))
      >>> bool(result.success), [round(float(v), 3) for v in result.x]
      (True, [1.0, 1.0])

      The solution of (x − a)² moves with a:

      >>> distance = lambda x, a: jnp.sum((x - a) ** 2)
      >>> round(float(jax.grad(lambda a: minimize(distance, jnp.zeros(1), (a,)).x[0])(2.0)), 4)
      1.0

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, algorithm 6.1; the updates are in
      :mod:`jaxqn.updates`, the search in :func:`jaxqn.wolfe`. Bounds: Bertsekas, SIAM J. Control
      Optim. 20 (1982); Ferry, Gill, Wong & Zhang, projected-search methods, 2020.
    """
    options = MinimizeOptions(
        bounds=bounds,
        method=method,
        linesearch=linesearch,
        gtol=gtol,
        ftol=ftol,
        xtol=xtol,
        maxiter=maxiter,
        maxfun=maxfun,
        has_aux=has_aux,
        hess_inv0=hess_inv0,
        x_scale=x_scale,
        implicit=implicit,
    )
    problem = problem_of(fun, args, options)
    check_callback(callback)
    if not transformed():
        notice_function(getattr(fun, "residuals", fun))
    every = check_count("callback_every", callback_every)
    rows = check_count("history", history, least=0)
    x0, dtype, n = check_x0(x0)
    tol = tolerances(dtype, n, options)
    H0, x_scale = problem.starts(options, x0)
    data = args, box_of(options, x0)
    x0, tol, H0, x_scale, state, (args, box) = constant((x0, tol, H0, x_scale, state, data))
    state = _first_state(state, problem, x0, args, H0, x_scale, box)
    go = functools.partial(_run, args=args, box=box, problem=problem, rows=rows)
    if callback is None and not progress:
        result = go(x0, state, tol)
    else:
        result = observed(go, x0, state, tol, callback, every, progress)
    return _differentiable(result, *data, problem=problem) if problem.has_derivatives else result


def _first_state(
    state: LoopState | None,
    problem: Problem,
    x0: ArrayTree,
    args: Any,
    H0: Any,
    x_scale: Any,
    box: Box | None,
) -> LoopState:
    """A new state, or the one of an earlier run, checked."""
    begin = functools.partial(_start, problem=problem)
    if state is None:
        return begin(x0, args, H0, x_scale, box)
    if H0 is not None or x_scale is not None:
        given = "hess_inv0" if x_scale is None else "x_scale"
        raise ValueError(f"{given} is for a new run, but this one continues a state")
    if not problem.method.qn.dense:
        state = repacked(state, x0)
    like = [None if part is None else x0 for part in given_of(state)]
    check_state(state, jax.eval_shape(begin, x0, args, *like, box))
    return state


@eager_program("problem")
def _start(
    x0: ArrayTree, args: Any, H0: Any, x_scale: Any, box: Box | None, *, problem: Problem
) -> LoopState:
    """The state before the first evaluation."""
    return problem.start(x0, args, H0, x_scale, box)


@eager_program("problem", "rows")
def _run(
    x0: ArrayTree,
    state: LoopState,
    tol: Tolerances,
    *,
    args: Any,
    box: Box | None,
    problem: Problem,
    rows: int,
) -> MinimizeResult:
    """Run the loop to a status."""
    on_vectors, table = functools.partial(problem.on_vectors, x0, args, box), None
    if rows:
        table = no_history(rows, vectors.tree_dtype(x0))
        state, table = run_watched(state, on_vectors, problem.method, tol, table, watched)
    else:
        state = run(state, on_vectors, problem.method, tol)
    path = problem.path(box, state.x_scale)
    best = lowest_point(state, problem.method, path, alone=True)
    nit, nfev, _, _ = Tally(*state.counts)
    back = problem.vector(x0)[1]
    x, jac = back(best.x), back(best.g)
    x = x if box is None else inside(x, box)
    return MinimizeResult(
        x=x,
        fun=best.f,
        jac=jac,
        status=state.status,
        nit=nit,
        nfev=nfev,
        state=state,
        aux=best.aux,
        active=None if box is None else active(x, jac, box),
        history=None if table is None else History(table, nit),
    )


@functools.partial(jax.jit, static_argnames=("problem",))
def _differentiable(
    result: MinimizeResult, args: Any, box: Box | None, *, problem: Problem
) -> MinimizeResult:
    """The result as a function of the data of the problem."""
    point = result.state.point
    r = None if point.linear is None else point.linear.r
    ended = Minimum(result.x, result.fun, result.jac, result.aux, r, result.status)
    x, f, g, aux, r, _ = differentiable(problem, ended, args, box, memory_of(problem, result.state))
    if r is not None:
        point = point._replace(linear=point.linear._replace(r=r))
    return result._replace(x=x, fun=f, jac=g, aux=aux, state=result.state._replace(point=point))
