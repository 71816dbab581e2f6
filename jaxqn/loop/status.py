"""How a run ended, in a number and in words."""

import enum
from typing import Any

from jaxqn._typing import Array

__all__ = ["MESSAGES", "Messages", "Status", "succeeded"]


class Status(enum.IntEnum):
    """How a run ended; one per problem of a batch. :data:`MESSAGES` says what to do about each."""

    RUNNING = 0
    CONVERGED = 1
    FTOL = 2
    XTOL = 3
    STALLED = 4
    MAX_ITER = 5
    MAX_FUN = 6
    LINE_SEARCH_FAILED = 7
    NON_FINITE = 8
    STOPPED = 9
    UNBOUNDED = 10
    SINGULAR = 11


class Messages(dict[Status, str]):
    """Messages by status; an array of one status, as a result has it, is a key too."""

    def __getitem__(self, status: Any) -> str:
        """What a status means and what to do."""
        return super().__getitem__(Status(int(status)))


_WORDS = {
    Status.RUNNING: "Still running: continue it with minimize(..., state=result.state).",
    Status.CONVERGED: "Converged: the gradient is within gtol, or without a gtol as small as "
    "rounding leaves it.",
    Status.FTOL: "Stopped: the last decrease of the objective is within ftol.",
    Status.XTOL: "Stopped: the last step is within xtol.",
    Status.STALLED: "Stalled: no step lowers the objective by more than its rounding, but the "
    "gradient is larger than rounding explains. Often fun is at its minimum for its precision; "
    "compare it with other starts. For more digits use float64, give x_scale, and on a GPU or TPU "
    "jax.default_matmul_precision('highest').",
    Status.MAX_ITER: "Stopped at maxiter, which counts all iterations of a run: continue with "
    "state=result.state and a larger maxiter.",
    Status.MAX_FUN: "Stopped at maxfun, which counts all evaluations of a run: continue with "
    "state=result.state and a larger maxfun.",
    Status.LINE_SEARCH_FAILED: "No decrease along the negative gradient, although its slope "
    "promises one: the gradient does not match the objective, or the objective jumps or has a "
    "kink. Ask derivatives.check_gradient(fun, x, *args), and look for stopped gradients, rounding "
    "and branches in fun.",
    Status.NON_FINITE: "The objective or its gradient is not finite at x0. Start elsewhere, or "
    "look for log, sqrt or division by zero in the objective.",
    Status.STOPPED: "Stopped by the callback, or by the target of multi_start.",
    Status.UNBOUNDED: "The objective falls without bound: it is negative and beyond any scale that "
    "the run began with. Look for a sign, a missing penalty or constraint, or a pole in fun.",
    Status.SINGULAR: "Some parameter has lost its effect on the residuals: its column of the "
    "Jacobian is nothing beside what it was, so that the residuals do not determine it. Start "
    "elsewhere, give bounds, or hold it by a lower bound equal to the upper.",
}

MESSAGES = Messages(_WORDS)
"""What each :class:`Status` means and what to do, as one or two sentences."""


def succeeded(status: Array) -> Array:
    """Whether a tolerance was met: CONVERGED, FTOL or XTOL. Boolean, like ``status``."""
    return (status >= Status.CONVERGED) & (status <= Status.XTOL)
