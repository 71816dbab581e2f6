"""The methods of jaxqn as solvers of optimistix: one trip of the loop is one step.

optimistix runs the loop, stops it, and differentiates the solution; a step evaluates the objective
and its gradient once. :class:`QuasiNewton` goes wherever an ``optimistix.AbstractMinimiser`` goes,
:class:`LeastSquares` wherever an ``optimistix.AbstractLeastSquaresSolver`` does.

How a run ended is ``solution.stats["status"]``, a :class:`jaxqn.Status`. optimistix has fewer words
for it:

    jaxqn                                 optimistix
    CONVERGED                             successful
    RUNNING, steps within rtol and atol   successful
    RUNNING                               nonlinear_max_steps_reached
    STALLED                               stagnation
    LINE_SEARCH_FAILED, UNBOUNDED         nonlinear_divergence
    NON_FINITE                            nonfinite
    SINGULAR                              singular

Example:
  >>> import jax.numpy as jnp
  >>> import optimistix
  >>> def valley(y, a):
  ...     return 100 * (y[1] - y[0] ** 2) ** 2 + (a - y[0]) ** 2
  >>> solution = optimistix.minimise(valley, QuasiNewton(), jnp.zeros(2), jnp.array(1.5))
  >>> [round(float(v), 3) for v in solution.value], int(solution.stats["status"])
  ([1.5, 2.25], 1)
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import Array, ArrayTree
from jaxqn.adapters.neighbour import by_forward_mode, missing
from jaxqn.checks import check_x0
from jaxqn.linesearch import LineSearch
from jaxqn.loop import (
    DEFAULTS,
    Box,
    LoopState,
    MinimizeOptions,
    Problem,
    Status,
    Tolerances,
    box_of,
    from_scaled,
    gradient_from_scaled,
    inside,
    lowest_point,
    problem_of,
    succeeded,
    sum_of_squares,
    tolerances,
    trip,
)
from jaxqn.quasi_newton import QuasiNewton as Approximation

try:
    import equinox as eqx
    import optimistix as optx
except ImportError as error:
    raise missing("optimistix", error) from error

__all__ = ["LeastSquares", "QuasiNewton"]

RUNTIME = {"autodiff_mode", "hess_inv0", "lower", "upper", "x_scale"}
"""The ``options`` of a call of optimistix that a solver here understands."""


class SolverState(eqx.Module):
    """What optimistix carries from step to step.

    Attributes:
      loop: the :class:`jaxqn.loop.LoopState`.
      f_info: value and gradient at the current point, an ``optimistix.FunctionInfo.EvalGrad``:
        ``state.f_info.f``, ``state.f_info.grad``.
      terminate: whether the run has succeeded.
      result: how it ended, ``optimistix.RESULTS``.
    """

    loop: LoopState
    f_info: Any
    terminate: Array
    result: Any


class Run:
    """A run as the loop of jaxqn sees it, made anew for every step from what optimistix hands over.

    optimistix gives a solver the objective, its arguments and its options at every call, and lets
    it keep arrays only.
    """

    def __init__(self, solver: Any, fn: Any, y: Any, args: Any, options: dict[str, Any]):
        """Raise errors for the options, before anything is traced."""
        unknown = sorted(set(options) - RUNTIME)
        if unknown:
            raise ValueError(
                f"unknown option {unknown[0]!r}; a solver of jaxqn takes {sorted(RUNTIME)}"
            )
        y, dtype, n = check_x0(y)
        lower, upper = options.get("lower"), options.get("upper")
        bounds = None if lower is None and upper is None else (lower, upper)
        limit = np.iinfo(np.int32).max  # optimistix counts the steps
        given: MinimizeOptions = {
            **DEFAULTS,
            "bounds": bounds,
            "method": solver.method,
            "linesearch": getattr(solver, "linesearch", None),
            "gtol": solver.gtol,
            "maxiter": limit,
            "has_aux": True,
            "hess_inv0": options.get("hess_inv0"),
            "x_scale": options.get("x_scale"),
        }
        self.y, self.options = y, given
        objective = solver.objective(fn, args, options.get("autodiff_mode", "bwd"))
        self.problem: Problem = problem_of(objective, (), given)
        self.tol: Tolerances = tolerances(dtype, n, given)
        self.box: Box | None = box_of(given, y)

    def start(self) -> LoopState:
        """The state before the first evaluation."""
        H0, x_scale = self.problem.starts(self.options, self.y)
        return self.problem.start(self.y, (), H0, x_scale, self.box)

    def trip(self, state: LoopState) -> LoopState:
        """One evaluation, and what follows from it."""
        on_vectors = functools.partial(self.problem.on_vectors, self.y, (), self.box)
        return trip(state, on_vectors, self.problem.method, self.tol)

    def here(self, state: LoopState) -> tuple[ArrayTree, Any]:
        """The current point, with value and gradient there."""
        point, back = state.point, self.problem.vector(self.y)[1]
        x = back(from_scaled(point.x, state.x_scale))
        g = jax.tree.map(lambda g: state.g_scale.astype(g.dtype) * g, point.g)
        g = back(gradient_from_scaled(g, state.x_scale))
        x = x if self.box is None else inside(x, self.box)
        return x, optx.FunctionInfo.EvalGrad(point.f, g)

    def lowest(self, state: LoopState) -> tuple[ArrayTree, Any]:
        """The lowest finite point seen, and the auxiliary output there."""
        path = self.problem.path(self.box, state.x_scale)
        best = lowest_point(state, self.problem.method, path)
        x = self.problem.vector(self.y)[1](best.x)
        return x if self.box is None else inside(x, self.box), best.aux


class _OneTripAStep(optx.AbstractIterativeSolver):
    """``init``, ``step``, ``terminate`` and ``postprocess`` by the loop of jaxqn."""

    def init(
        self,
        fn: Any,
        y: Any,
        args: Any,
        options: dict[str, Any],
        f_struct: Any,
        aux_struct: Any,
        tags: frozenset[object],
    ) -> SolverState:
        """The state before the first evaluation, which is that of the first step."""
        del f_struct, aux_struct, tags
        run = Run(self, fn, y, args, options)
        loop = run.start()
        _, f_info = run.here(loop)
        return SolverState(loop, f_info, jnp.array(False), optx.RESULTS.successful)

    def step(
        self,
        fn: Any,
        y: Any,
        args: Any,
        options: dict[str, Any],
        state: SolverState,
        tags: frozenset[object],
    ) -> tuple[Any, SolverState, Any]:
        """One trip: the next point, or the same one where its trial was refused."""
        del tags
        run = Run(self, fn, y, args, options)
        loop = run.trip(state.loop)
        x, f_info = run.here(loop)
        moved = loop.nit > state.loop.nit
        small = moved & self._is_small(run.y, x, state.f_info.f, f_info.f)
        terminate = succeeded(loop.status) | (small & (loop.status == Status.RUNNING))
        return x, SolverState(loop, f_info, terminate, _result(loop.status)), loop.point.aux

    def _is_small(self, y: Any, y_next: Any, f: Array, f_next: Array) -> Array:
        """Optimistix's own stop: the steps of y and of f are within ``rtol`` and ``atol``."""

        def of(old: Array, new: Array) -> Array:
            scale = jnp.asarray(self.atol + self.rtol * jnp.abs(new), new.dtype)
            change = jnp.abs(new - old)
            return jnp.where(change == 0, jnp.where(scale > 0, 0, jnp.inf), change / scale)

        return (self.norm(jax.tree.map(of, y, y_next)) < 1) & (self.norm(of(f, f_next)) < 1)

    def terminate(
        self,
        fn: Any,
        y: Any,
        args: Any,
        options: dict[str, Any],
        state: SolverState,
        tags: frozenset[object],
    ) -> tuple[Any, Any]:
        """Whether the run has succeeded, and how it ended."""
        del fn, y, args, options, tags
        return state.terminate, state.result

    def postprocess(
        self,
        fn: Any,
        y: Any,
        aux: Any,
        args: Any,
        options: dict[str, Any],
        state: SolverState,
        tags: frozenset[object],
        result: Any,
    ) -> tuple[Any, Any, dict[str, Any]]:
        """The lowest point seen, and in ``stats`` the status, ``nit`` and ``nfev``."""
        del aux, tags, result
        x, aux = Run(self, fn, y, args, options).lowest(state.loop)
        counts = {"status": state.loop.status, "nit": state.loop.nit, "nfev": state.loop.nfev}
        return x, aux, counts


def _result(status: Array) -> Any:
    """The word of optimistix for a status."""
    words = {
        Status.STALLED: optx.RESULTS.stagnation,
        Status.LINE_SEARCH_FAILED: optx.RESULTS.nonlinear_divergence,
        Status.UNBOUNDED: optx.RESULTS.nonlinear_divergence,
        Status.NON_FINITE: optx.RESULTS.nonfinite,
        Status.SINGULAR: optx.RESULTS.singular,
    }
    result: Any = optx.RESULTS.successful
    for ended, word in words.items():
        result = optx.RESULTS.where(status == ended, word, result)
    return result


class QuasiNewton(_OneTripAStep, optx.AbstractMinimiser):
    """A method of :func:`jaxqn.minimize` as an ``optimistix.AbstractMinimiser``.

    A run ends where jaxqn's own rule says so, which needs no tolerance, or where a step is within
    ``rtol`` and ``atol`` as optimistix means them: of y and of the value. The solution is the
    lowest finite point that was evaluated. ``max_steps`` counts evaluations, trials of a search
    included.

    Of ``options`` it takes ``lower`` and ``upper``, the bounds, each like y or one number;
    ``x_scale`` and ``hess_inv0``, see :func:`jaxqn.minimize`; and ``autodiff_mode``, "bwd" or
    "fwd". Where a bound holds at the solution, ``optimistix.ImplicitAdjoint`` gives the derivative
    of a solution without bounds, which is not that of this one.

    Attributes:
      rtol: relative tolerance of a step and of the decrease; with ``atol`` 0, off.
      atol: absolute tolerance of both.
      norm: what measures a step against the tolerances.
      method: see :func:`jaxqn.minimize`; by default "osbfgs".
      linesearch: :func:`jaxqn.wolfe` by default.
      gtol: stop where the largest entry of the gradient is at most this; by default where it is as
        small as rounding leaves it.

    Example:
      >>> import jax.numpy as jnp
      >>> import optimistix
      >>> bowl = lambda y, a: jnp.sum((y - a) ** 2)
      >>> box = {"lower": 0.0, "upper": 1.0}
      >>> y0, a = jnp.full(2, 0.5), jnp.array([0.25, 3.0])
      >>> optimistix.minimise(bowl, QuasiNewton(), y0, a, box).value.tolist()
      [0.25, 1.0]

    References:
      Rader, Lyons & Kidger, Optimistix, arXiv:2402.09983.
    """

    rtol: float = 0.0
    atol: float = 0.0
    norm: Callable[[Any], Any] = optx.max_norm
    method: str | Approximation | None = eqx.field(default=None, static=True)
    linesearch: LineSearch | None = eqx.field(default=None, static=True)
    gtol: float | None = None

    def objective(self, fn: Any, args: Any, autodiff_mode: str) -> Callable[[Any], Any]:
        """The objective as a function of y alone."""

        def of_y(y: Any) -> Any:
            return fn(y, args)

        if autodiff_mode not in ("bwd", "fwd"):
            raise ValueError(f"autodiff_mode must be 'bwd' or 'fwd', but it is {autodiff_mode!r}")
        return of_y if autodiff_mode == "bwd" else by_forward_mode(of_y)


class LeastSquares(_OneTripAStep, optx.AbstractLeastSquaresSolver):
    """A method of :func:`jaxqn.least_squares` as an ``optimistix.AbstractLeastSquaresSolver``.

    See :class:`QuasiNewton`. ``state.f_info.f`` is half the sum of squares.

    Attributes:
      rtol: relative tolerance of a step and of the decrease; with ``atol`` 0, off.
      atol: absolute tolerance of both.
      norm: what measures a step against the tolerances.
      method: "structured" by default, "lm" or "residual"; see :func:`jaxqn.least_squares`.
      gtol: stop where the largest entry of the gradient of half the sum of squares is at most this;
        by default where residuals and Jacobian are at right angles.

    Example:
      >>> import jax.numpy as jnp
      >>> import optimistix
      >>> t = jnp.linspace(0.0, 2.0, 20)
      >>> decay = lambda y, data: y["scale"] * jnp.exp(-y["rate"] * t) - data
      >>> y0 = {"scale": jnp.array(1.0), "rate": jnp.array(1.0)}
      >>> fit = optimistix.least_squares(decay, LeastSquares(), y0, 3 * jnp.exp(-0.7 * t))
      >>> {name: round(float(v), 3) for name, v in fit.value.items()}
      {'rate': 0.7, 'scale': 3.0}
    """

    rtol: float = 0.0
    atol: float = 0.0
    norm: Callable[[Any], Any] = optx.max_norm
    method: str | Approximation | None = eqx.field(default=None, static=True)
    gtol: float | None = None

    def objective(self, fn: Any, args: Any, autodiff_mode: str) -> Any:
        """The residuals as a function of y alone."""
        del autodiff_mode  # the Jacobian is made in the mode that costs less

        def of_y(y: Any) -> Any:
            return fn(y, args)

        return sum_of_squares(of_y, has_aux=True)
