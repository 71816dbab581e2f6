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

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import Array
from jaxqn.adapters.neighbour import by_forward_mode, missing
from jaxqn.adapters.steps import Run
from jaxqn.linesearch import LineSearch
from jaxqn.loop import DEFAULTS, LoopState, MinimizeOptions, Status, succeeded, sum_of_squares
from jaxqn.quasi_newton import QuasiNewton as Approximation

try:
    import equinox as eqx
    import optimistix as optx
except ImportError as error:
    raise missing("optimistix", error) from error

__all__ = ["LeastSquares", "QuasiNewton"]

RUNTIME = {"autodiff_mode", "hess_inv0", "lower", "upper", "x_scale"}
"""The ``options`` of a call of optimistix that a solver here understands."""

NEVER = np.iinfo(np.int32).max
"""A budget that no run exhausts: optimistix counts the steps."""


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


class _OneTripAStep(optx.AbstractIterativeSolver):
    """``init``, ``step``, ``terminate`` and ``postprocess`` by the loop of jaxqn.

    optimistix hands over the objective, its arguments and its options at every call, and lets a
    solver keep arrays only.
    """

    method: eqx.AbstractVar[Any]
    gtol: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def objective(self, fn: Any, args: Any, autodiff_mode: str) -> Callable[..., Any]:
        """The objective as a function of y alone, ``y -> (value, aux)``."""

    def _run(self, fn: Any, y: Any, args: Any, options: dict[str, Any]) -> Run:
        """What is fixed along a run; raises errors for the options before anything is traced."""
        unknown = sorted(set(options) - RUNTIME)
        if unknown:
            raise ValueError(
                f"unknown option {unknown[0]!r}; a solver of jaxqn takes {sorted(RUNTIME)}"
            )
        lower, upper = options.get("lower"), options.get("upper")
        given: MinimizeOptions = {
            **DEFAULTS,
            "bounds": None if lower is None and upper is None else (lower, upper),
            "method": self.method,
            "linesearch": getattr(self, "linesearch", None),
            "gtol": self.gtol,
            "maxiter": NEVER,
            "has_aux": True,
            "hess_inv0": options.get("hess_inv0"),
            "x_scale": options.get("x_scale"),
        }
        return Run(self.objective(fn, args, options.get("autodiff_mode", "bwd")), y, given)

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
        run = self._run(fn, y, args, options)
        loop = run.start()
        f_info = optx.FunctionInfo.EvalGrad(*run.here(loop)[1:])
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
        run = self._run(fn, y, args, options)
        loop = run.trip(state.loop)
        x, f, g = run.here(loop)
        small = (loop.nit > state.loop.nit) & self._is_small(run.x0, x, state.f_info.f, f)
        terminate = succeeded(loop.status) | (small & (loop.status == Status.RUNNING))
        f_info = optx.FunctionInfo.EvalGrad(f, g)
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
        x, aux = self._run(fn, y, args, options).lowest(state.loop)
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
