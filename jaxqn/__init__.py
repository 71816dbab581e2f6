"""Quasi-Newton minimisation for JAX: formulas, drivers and optax transformations."""

from jaxqn import derivatives as derivatives
from jaxqn.aliases import (
    bfgs,
    broyden,
    dfp,
    lbfgs,
    lsr1,
    newton,
    osbfgs,
    sr1,
    ssbfgs,
    ssbroyden,
)
from jaxqn.batch import BatchState, MultiStartResult, minimize_batch, multi_start
from jaxqn.curvature import powell_damping
from jaxqn.damping import damped
from jaxqn.eigenpairs import Eigenpairs, eigenpairs, hessian_eigenpairs
from jaxqn.linesearch import LineSearch, backtracking, wolfe
from jaxqn.memory import lbfgs_memory
from jaxqn.memory_sr1 import lsr1_memory
from jaxqn.methods import METHODS as _METHODS
from jaxqn.minimize import MinimizeResult, minimize
from jaxqn.newton import corrected_newton
from jaxqn.pairs import inverse_hessian_product, stored_pairs
from jaxqn.quasi_newton import QuasiNewton, dense
from jaxqn.spectral import (
    SpectralCorrection,
    correct_inverse,
    rank_one_correction,
    spectral_correction,
    spectral_inverse,
    wedderburn,
)
from jaxqn.stochastic import same_batch_pair
from jaxqn.stream import minimize_stream
from jaxqn.termination import MESSAGES, Status
from jaxqn.transforms import (
    scale_by_bfgs,
    scale_by_broyden,
    scale_by_corrected_adam,
    scale_by_dfp,
    scale_by_kronecker,
    scale_by_lbfgs,
    scale_by_linesearch,
    scale_by_lsr1,
    scale_by_newton,
    scale_by_osbfgs,
    scale_by_quasi_newton,
    scale_by_spectral_correction,
    scale_by_sr1,
    scale_by_ssbfgs,
    scale_by_ssbroyden,
    scale_by_stochastic_lbfgs,
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
    "BatchState",
    "Eigenpairs",
    "LineSearch",
    "MinimizeResult",
    "MultiStartResult",
    "QuasiNewton",
    "SpectralCorrection",
    "Status",
    "backtracking",
    "bfgs",
    "bfgs_update",
    "broyden",
    "broyden_update",
    "correct_inverse",
    "corrected_newton",
    "damped",
    "dense",
    "dfp",
    "dfp_update",
    "eigenpairs",
    "hessian_eigenpairs",
    "inverse_hessian_product",
    "lbfgs",
    "lbfgs_memory",
    "lsr1",
    "lsr1_memory",
    "minimize",
    "minimize_batch",
    "minimize_stream",
    "multi_start",
    "newton",
    "osbfgs",
    "osbfgs_update",
    "powell_damping",
    "rank_one",
    "rank_one_correction",
    "rank_two",
    "same_batch_pair",
    "scale_by_bfgs",
    "scale_by_broyden",
    "scale_by_corrected_adam",
    "scale_by_dfp",
    "scale_by_kronecker",
    "scale_by_lbfgs",
    "scale_by_linesearch",
    "scale_by_lsr1",
    "scale_by_newton",
    "scale_by_osbfgs",
    "scale_by_quasi_newton",
    "scale_by_spectral_correction",
    "scale_by_sr1",
    "scale_by_ssbfgs",
    "scale_by_ssbroyden",
    "scale_by_stochastic_lbfgs",
    "sherman_morrison",
    "spectral_correction",
    "spectral_inverse",
    "sr1",
    "sr1_update",
    "ssbfgs",
    "ssbfgs_update",
    "ssbroyden",
    "ssbroyden_update",
    "stored_pairs",
    "wedderburn",
    "wolfe",
]
