"""The formulas: arrays in, arrays out. They know no loop, no pytrees and no optax.

Other folders may import the names below, and the modules ``rules`` and ``updates``.
"""

from jaxqn.formulas import rules, updates
from jaxqn.formulas.broyden import (
    JacobianCorrection,
    broyden_bad_update,
    broyden_good_update,
    jacobian_correction,
)
from jaxqn.formulas.covariance import (
    InverseCurvature,
    gram_inverse,
    hessian_inverse,
    inverse_gram,
    profiled_square,
    sandwich,
)
from jaxqn.formulas.curvature import has_curvature, in_range, powell_damping, powell_fraction
from jaxqn.formulas.kronecker import (
    Side,
    kronecker_direction,
    side_by_factorisation,
    side_by_rank_one,
    white_side,
)
from jaxqn.formulas.losses import LOSSES, Loss, rho_and_weight
from jaxqn.formulas.low_rank import rank_one, rank_two, sherman_morrison
from jaxqn.formulas.profile import (
    ProfilePoint,
    normal_quantile,
    profile_trial,
    student_quantile,
)
from jaxqn.formulas.rank_one_corrections import rank_one_correction, wedderburn
from jaxqn.formulas.rules import (
    Correction,
    Pair,
    Rule,
    bfgs_rule,
    broyden_rule,
    correction_vectors,
    dfp_rule,
    osbfgs_rule,
    sr1_rule,
    ssbfgs_rule,
    ssbroyden_rule,
)
from jaxqn.formulas.spectral import (
    SpectralCorrection,
    check_choices,
    correct_inverse,
    spectral_correction,
    spectral_inverse,
)
from jaxqn.formulas.spectral_step import SpectralStep, spectral_step
from jaxqn.formulas.structured import structured_update
from jaxqn.formulas.subproblem import TrustRegionStep, hebden, trust_region_step
from jaxqn.formulas.updates import (
    bfgs_update,
    broyden_update,
    dfp_update,
    osbfgs_update,
    sr1_update,
    ssbfgs_update,
    ssbroyden_update,
)

__all__ = [
    "LOSSES",
    "Correction",
    "InverseCurvature",
    "JacobianCorrection",
    "Loss",
    "Pair",
    "ProfilePoint",
    "Rule",
    "Side",
    "SpectralCorrection",
    "SpectralStep",
    "TrustRegionStep",
    "bfgs_rule",
    "bfgs_update",
    "broyden_bad_update",
    "broyden_good_update",
    "broyden_rule",
    "broyden_update",
    "check_choices",
    "correct_inverse",
    "correction_vectors",
    "dfp_rule",
    "dfp_update",
    "gram_inverse",
    "has_curvature",
    "hebden",
    "hessian_inverse",
    "in_range",
    "inverse_gram",
    "jacobian_correction",
    "kronecker_direction",
    "normal_quantile",
    "osbfgs_rule",
    "osbfgs_update",
    "powell_damping",
    "powell_fraction",
    "profile_trial",
    "profiled_square",
    "rank_one",
    "rank_one_correction",
    "rank_two",
    "rho_and_weight",
    "rules",
    "sandwich",
    "sherman_morrison",
    "side_by_factorisation",
    "side_by_rank_one",
    "spectral_correction",
    "spectral_inverse",
    "spectral_step",
    "sr1_rule",
    "sr1_update",
    "ssbfgs_rule",
    "ssbfgs_update",
    "ssbroyden_rule",
    "ssbroyden_update",
    "structured_update",
    "student_quantile",
    "trust_region_step",
    "updates",
    "wedderburn",
    "white_side",
]
