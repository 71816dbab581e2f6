"""What every workload asks of a solver: options in, an outcome out."""

from collections.abc import Callable
from typing import Any, NamedTuple

UNKNOWN = -1


class Options(NamedTuple):
    """When to stop; None leaves a solver's own default.

    Attributes:
      gtol: tolerance on the gradient. Solvers without a gradient test take it
        as their relative and absolute tolerance on the step and the value.
      maxiter: largest number of iterations.
      maxfun: largest number of evaluations, honoured by those that can.
      bounds: ``(lower, upper)``, arrays like x; for the bounded solvers only.
    """

    gtol: float | None = None
    maxiter: int | None = None
    maxfun: int | None = None
    bounds: tuple[Any, Any] | None = None


class Outcome(NamedTuple):
    """What a solve returned, as the solver itself reports it.

    Attributes:
      x: final point.
      fun: objective there.
      nit: iterations (accepted steps), -1 where not reported.
      nfev: evaluations, -1 where not reported.
      success: the solver's own claim of convergence.
      status: the library's status code, -1 where there is none.
    """

    x: Any
    fun: Any
    nit: Any
    nfev: Any
    success: Any
    status: Any = UNKNOWN


class Solver(NamedTuple):
    """A named way to minimise.

    Attributes:
      name: as printed and as given to ``--solvers``.
      needs: module that must be importable.
      compiled: whether ``solve`` can be traced by JAX.
      make: ``(fun, options) -> solve``.
    """

    name: str
    needs: str
    compiled: bool
    make: Callable[[Callable, Options], Callable[..., Outcome]]

    @property
    def ours(self) -> bool:
        return self.needs == "jaxqn"


def says(solver: Solver, outcome: Outcome) -> str:
    """How a solver says it ended: jaxqn's status, a yes or no of the others."""
    if solver.ours:
        import jaxqn

        return jaxqn.Status(int(outcome.status)).name
    return "success" if outcome.success else "failure"
