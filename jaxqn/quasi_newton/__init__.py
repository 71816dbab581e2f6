"""Inverse-Hessian approximations as values: dense, in limited memory, or made of Hessians."""

from jaxqn.quasi_newton.damping import damped
from jaxqn.quasi_newton.dense import dense
from jaxqn.quasi_newton.dense_state import DenseState, inverse_hessian
from jaxqn.quasi_newton.inverse_jacobian import (
    InverseJacobian,
    JacobianState,
    broyden_jacobian,
    newton_jacobian,
)
from jaxqn.quasi_newton.lbfgs import lbfgs_memory
from jaxqn.quasi_newton.lsr1 import lsr1_memory
from jaxqn.quasi_newton.lsr1_region import RegionMemoryState, lsr1_trust_region
from jaxqn.quasi_newton.memory_state import MemoryState
from jaxqn.quasi_newton.methods import METHODS, method_by_name
from jaxqn.quasi_newton.newton import corrected_newton, spectrum_of
from jaxqn.quasi_newton.newton_region import newton_trust_region
from jaxqn.quasi_newton.noisy_pairs import (
    absorb_noisy_pair,
    bounded_direction,
    same_batch_pair,
)
from jaxqn.quasi_newton.protocol import (
    Descent,
    Face,
    Model,
    Normal,
    Quadratic,
    QuasiNewton,
    Trial,
    Wide,
    check_method,
    check_quasi_newton,
)
from jaxqn.quasi_newton.root_methods import ROOT_METHODS, root_method
from jaxqn.quasi_newton.secant_memory import SecantState, newton_krylov, secant_memory
from jaxqn.quasi_newton.sr1_region import RegionState, known_matrix, sr1_trust_region
from jaxqn.quasi_newton.stored_pairs import inverse_hessian_product, stored_pairs
from jaxqn.quasi_newton.structured import (
    StructuredState,
    gauss_newton,
    model_matrix,
    residual_space,
    structured,
)

__all__ = [
    "METHODS",
    "ROOT_METHODS",
    "DenseState",
    "Descent",
    "Face",
    "InverseJacobian",
    "JacobianState",
    "MemoryState",
    "Model",
    "Normal",
    "Quadratic",
    "QuasiNewton",
    "RegionMemoryState",
    "RegionState",
    "SecantState",
    "StructuredState",
    "Trial",
    "Wide",
    "absorb_noisy_pair",
    "bounded_direction",
    "broyden_jacobian",
    "check_method",
    "check_quasi_newton",
    "corrected_newton",
    "damped",
    "dense",
    "gauss_newton",
    "inverse_hessian",
    "inverse_hessian_product",
    "known_matrix",
    "lbfgs_memory",
    "lsr1_memory",
    "lsr1_trust_region",
    "method_by_name",
    "model_matrix",
    "newton_jacobian",
    "newton_krylov",
    "newton_trust_region",
    "residual_space",
    "root_method",
    "same_batch_pair",
    "secant_memory",
    "spectrum_of",
    "sr1_trust_region",
    "stored_pairs",
    "structured",
]
