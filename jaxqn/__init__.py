"""Quasi-Newton minimisation for JAX."""

from jaxqn.linesearch import LineSearch, backtracking, wolfe
from jaxqn.minimize import MinimizeResult, minimize
from jaxqn.quasi_newton import METHODS as _METHODS
from jaxqn.quasi_newton import QuasiNewton, dense
from jaxqn.termination import MESSAGES, Status
from jaxqn.updates import (
    bfgs_update,
    broyden_update,
    dfp_update,
    osbfgs_update,
    rank_one,
    rank_two,
    sherman_morrison,
    sr1_update,
    ssbfgs_update,
    ssbroyden_update,
)

METHODS = tuple(_METHODS)
__version__ = "0.1.0"
