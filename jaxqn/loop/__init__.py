"""The one loop: what a run carries, a trip through it, and when it ends."""

from jaxqn.loop.box import Box, active, bent, inside
from jaxqn.loop.equations import (
    ROOT_DEFAULTS,
    RootOptions,
    RootProblem,
    options_of_the_loop,
    root_as_function,
    root_problem,
    root_tolerances,
)
from jaxqn.loop.history import History, merged, no_history, watched
from jaxqn.loop.implicit import constant, transformed
from jaxqn.loop.minimum import Minimum, differentiable, memory_of
from jaxqn.loop.path import Path, face_of, straight
from jaxqn.loop.problem import (
    DEFAULTS,
    MinimizeOptions,
    Problem,
    box_of,
    completed,
    default_method,
    problem_of,
    tolerances,
)
from jaxqn.loop.protocol import Method
from jaxqn.loop.residuals import SumOfSquares, sum_of_squares
from jaxqn.loop.state import LoopState, Point, Scales, Tally
from jaxqn.loop.status import MESSAGES, Messages, Status, succeeded
from jaxqn.loop.termination import Tolerances
from jaxqn.loop.trip import lowest_point, run, run_watched, trip
from jaxqn.loop.units import from_scaled, gradient_from_scaled, gradient_to_scaled

__all__ = [
    "DEFAULTS",
    "MESSAGES",
    "ROOT_DEFAULTS",
    "Box",
    "History",
    "LoopState",
    "Messages",
    "Method",
    "MinimizeOptions",
    "Minimum",
    "Path",
    "Point",
    "Problem",
    "RootOptions",
    "RootProblem",
    "Scales",
    "Status",
    "SumOfSquares",
    "Tally",
    "Tolerances",
    "active",
    "bent",
    "box_of",
    "completed",
    "constant",
    "default_method",
    "differentiable",
    "face_of",
    "from_scaled",
    "gradient_from_scaled",
    "gradient_to_scaled",
    "inside",
    "lowest_point",
    "memory_of",
    "merged",
    "no_history",
    "options_of_the_loop",
    "problem_of",
    "root_as_function",
    "root_problem",
    "root_tolerances",
    "run",
    "run_watched",
    "straight",
    "succeeded",
    "sum_of_squares",
    "tolerances",
    "transformed",
    "trip",
    "watched",
]
