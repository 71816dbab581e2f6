"""Quasi-Newton minimisation for JAX: formulas, drivers and optax transformations."""

from jaxqn import derivatives as derivatives
from jaxqn.aliases import bfgs, broyden, dfp, osbfgs, sr1, ssbfgs, ssbroyden
from jaxqn.curvature import powell_damping
from jaxqn.linesearch import LineSearch, backtracking, wolfe
from jaxqn.minimize import MinimizeResult, minimize
from jaxqn.quasi_newton import METHODS as _METHODS
from jaxqn.quasi_newton import QuasiNewton, dense
from jaxqn.termination import MESSAGES, Status
from jaxqn.transforms import (
    scale_by_bfgs,
    scale_by_broyden,
    scale_by_dfp,
    scale_by_linesearch,
    scale_by_osbfgs,
    scale_by_quasi_newton,
    scale_by_sr1,
    scale_by_ssbfgs,
    scale_by_ssbroyden,
)
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

__version__ = "0.1.0"

METHODS: tuple[str, ...] = tuple(_METHODS)
"""Names that ``minimize(method=...)`` knows."""

__all__ = [
    "MESSAGES",
    "METHODS",
    "LineSearch",
    "MinimizeResult",
    "QuasiNewton",
    "Status",
    "backtracking",
    "bfgs",
    "bfgs_update",
    "broyden",
    "broyden_update",
    "dense",
    "dfp",
    "dfp_update",
    "minimize",
    "osbfgs",
    "osbfgs_update",
    "powell_damping",
    "rank_one",
    "rank_two",
    "scale_by_bfgs",
    "scale_by_broyden",
    "scale_by_dfp",
    "scale_by_linesearch",
    "scale_by_osbfgs",
    "scale_by_quasi_newton",
    "scale_by_sr1",
    "scale_by_ssbfgs",
    "scale_by_ssbroyden",
    "sherman_morrison",
    "sr1",
    "sr1_update",
    "ssbfgs",
    "ssbfgs_update",
    "ssbroyden",
    "ssbroyden_update",
    "wolfe",
]
