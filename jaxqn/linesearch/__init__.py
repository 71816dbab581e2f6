"""Line searches as scalar state machines.

A search sees phi(alpha) = f(x + alpha d) and its slope, never x and never the objective, so a host
may run it in any loop: one trip of :func:`jaxqn.minimize`, or inside an optax update.
"""

from jaxqn.linesearch.backtracking import backtracking
from jaxqn.linesearch.conditions import agreement, noise_shown, rounding_noise
from jaxqn.linesearch.first_trial import (
    expected_decrease,
    parabola_step,
    stopped_short,
    trial_along_gradient,
)
from jaxqn.linesearch.protocol import Bend, LineSearch, check_linesearch
from jaxqn.linesearch.wolfe import wolfe

__all__ = [
    "Bend",
    "LineSearch",
    "agreement",
    "backtracking",
    "check_linesearch",
    "expected_decrease",
    "noise_shown",
    "parabola_step",
    "rounding_noise",
    "stopped_short",
    "trial_along_gradient",
    "wolfe",
]
