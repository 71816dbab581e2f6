"""Line searches as scalar state machines.

A search sees phi(alpha) = f(x + alpha d) and its slope, never x and never the objective, so a host
may run it in any loop: one trip of :func:`jaxqn.minimize`, or inside an optax update.
"""

from jaxqn.linesearch.backtracking import backtracking
from jaxqn.linesearch.base import LineSearch
from jaxqn.linesearch.wolfe import wolfe

__all__ = ["LineSearch", "backtracking", "wolfe"]
