"""The one loop: what a run carries, a trip through it, and when it ends."""

from jaxqn.loop.problem import (
    DEFAULTS,
    MinimizeOptions,
    Problem,
    completed,
    problem_of,
    tolerances,
)
from jaxqn.loop.protocol import Method
from jaxqn.loop.state import LoopState, Scales, Tally
from jaxqn.loop.status import MESSAGES, Status, succeeded
from jaxqn.loop.termination import Tolerances
from jaxqn.loop.trip import lowest_point, run, trip
from jaxqn.loop.units import from_scaled, gradient_from_scaled, gradient_to_scaled

__all__ = [
    "DEFAULTS",
    "MESSAGES",
    "LoopState",
    "Method",
    "MinimizeOptions",
    "Problem",
    "Scales",
    "Status",
    "Tally",
    "Tolerances",
    "completed",
    "from_scaled",
    "gradient_from_scaled",
    "gradient_to_scaled",
    "lowest_point",
    "problem_of",
    "run",
    "succeeded",
    "tolerances",
    "trip",
]
