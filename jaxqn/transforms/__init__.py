"""The optax host: quasi-Newton approximations and line searches as gradient transformations.

The approximations and searches of :func:`jaxqn.minimize` behind optax's protocol: one call of
``update`` per step, with the line search as a separate transformation.
"""

from jaxqn.transforms.aliases import (
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
from jaxqn.transforms.dense_methods import (
    scale_by_bfgs,
    scale_by_broyden,
    scale_by_dfp,
    scale_by_osbfgs,
    scale_by_sr1,
    scale_by_ssbfgs,
    scale_by_ssbroyden,
)
from jaxqn.transforms.kronecker import KroneckerFactors, ScaleByKroneckerState, scale_by_kronecker
from jaxqn.transforms.limited_memory import (
    ScaleByCorrectedAdamState,
    scale_by_corrected_adam,
    scale_by_lbfgs,
    scale_by_lsr1,
)
from jaxqn.transforms.linesearch import LinesearchInfo, ScaleByLinesearchState, scale_by_linesearch
from jaxqn.transforms.newton import ScaleByNewtonState, scale_by_newton
from jaxqn.transforms.quasi_newton import ScaleByQuasiNewtonState, scale_by_quasi_newton
from jaxqn.transforms.spectral import ScaleBySpectralCorrectionState, scale_by_spectral_correction
from jaxqn.transforms.stochastic import ScaleByStochasticLBFGSState, scale_by_stochastic_lbfgs

__all__ = [
    "KroneckerFactors",
    "LinesearchInfo",
    "ScaleByCorrectedAdamState",
    "ScaleByKroneckerState",
    "ScaleByLinesearchState",
    "ScaleByNewtonState",
    "ScaleByQuasiNewtonState",
    "ScaleBySpectralCorrectionState",
    "ScaleByStochasticLBFGSState",
    "bfgs",
    "broyden",
    "dfp",
    "lbfgs",
    "lsr1",
    "newton",
    "osbfgs",
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
    "sr1",
    "ssbfgs",
    "ssbroyden",
]
