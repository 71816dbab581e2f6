"""Quasi-Newton minimisation for JAX: fits with error bars, batches, roots and optax chains.

Minimise a function of any pytree; the status says how the run ended:

>>> import jax.numpy as jnp
>>> import jaxqn
>>> def loss(p, a):
...     return (p["x"] - a) ** 2 + (p["y"] - p["x"] ** 2) ** 2
>>> start = {"x": jnp.array(0.5), "y": jnp.array(0.0)}
>>> result = jaxqn.minimize(loss, start, (1.0,))
>>> result.status_name, {name: round(float(value), 2) for name, value in result.x.items()}
('CONVERGED', {'x': 1.0, 'y': 1.0})

Fit a curve, with error bars:

>>> def decay(t, scale, rate):
...     return scale * jnp.exp(-rate * t)
>>> t = jnp.linspace(0.0, 4.0, 30)
>>> popt, pcov = jaxqn.curve_fit(decay, t, decay(t, 3.0, 0.7) + 0.1 * jnp.cos(40 * t), [1.0, 1.0])
>>> [f"{value:.2f} ± {error:.2f}" for value, error in zip(popt, jnp.sqrt(jnp.diag(pcov)))]
['3.03 ± 0.04', '0.71 ± 0.02']

Do a hundred fits in one call:

>>> fits = jaxqn.minimize_batch(loss, start, (jnp.linspace(1.0, 2.0, 100),), in_axes=(None, 0))
>>> fits.x["x"].shape, bool(fits.success.all())
((100,), True)

The front doors, each with a ``help`` of its own: ``minimize``, ``least_squares``, ``curve_fit``,
``root``, ``fixed_point``; for many problems ``minimize_batch``, ``root_batch``,
``minimize_stream``, ``multi_start``; for error bars ``covariance``, ``profile_intervals``;
``sum_of_squares`` makes an objective of residuals. For optax chains there are ``bfgs``, ``lbfgs``
and the like, and ``scale_by_bfgs`` and the like; ``bfgs_update`` and the like are the corrections
by themselves. ``Status`` says how a run may end, and ``derivatives`` checks gradients.
"""

from jaxqn import derivatives as derivatives
from jaxqn.drivers import (
    ENDS,
    REASONS,
    BatchState,
    Covariance,
    Intervals,
    LeastSquaresResult,
    MinimizeResult,
    MultiStartResult,
    RootResult,
    Transformed,
    covariance,
    curve_fit,
    fixed_point,
    least_squares,
    minimize,
    minimize_batch,
    minimize_stream,
    multi_start,
    profile_intervals,
    root,
    root_batch,
)
from jaxqn.formulas import (
    SpectralCorrection,
    bfgs_update,
    broyden_bad_update,
    broyden_good_update,
    broyden_update,
    correct_inverse,
    dfp_update,
    osbfgs_update,
    powell_damping,
    rank_one,
    rank_one_correction,
    rank_two,
    sherman_morrison,
    spectral_correction,
    spectral_inverse,
    sr1_update,
    ssbfgs_update,
    ssbroyden_update,
    structured_update,
    trust_region_step,
    wedderburn,
)
from jaxqn.formulas import rules as rules
from jaxqn.formulas import updates as updates
from jaxqn.linalg import Eigenpairs, eigenpairs, hessian_eigenpairs
from jaxqn.linesearch import LineSearch, backtracking, wolfe
from jaxqn.loop import MESSAGES, History, Status, sum_of_squares
from jaxqn.quasi_newton import METHODS as _METHODS
from jaxqn.quasi_newton import (
    QuasiNewton,
    corrected_newton,
    damped,
    dense,
    inverse_hessian_product,
    lbfgs_memory,
    lsr1_memory,
    lsr1_trust_region,
    newton_trust_region,
    same_batch_pair,
    sr1_trust_region,
    stored_pairs,
    structured,
)
from jaxqn.transforms import (
    bfgs,
    broyden,
    dfp,
    lbfgs,
    lsr1,
    newton,
    osbfgs,
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
    sr1,
    ssbfgs,
    ssbroyden,
)

__version__ = "0.2.0"

METHODS: tuple[str, ...] = tuple(_METHODS)
"""Names that ``minimize(method=...)`` knows."""

__all__ = [  # noqa: RUF022 -- in the order in which they are wanted
    # front doors, and what belongs to them
    "minimize",
    "least_squares",
    "curve_fit",
    "root",
    "fixed_point",
    "minimize_batch",
    "root_batch",
    "minimize_stream",
    "multi_start",
    "covariance",
    "profile_intervals",
    "sum_of_squares",
    "derivatives",
    # what they return and say
    "Status",
    "MESSAGES",
    "METHODS",
    "MinimizeResult",
    "LeastSquaresResult",
    "RootResult",
    "MultiStartResult",
    "BatchState",
    "History",
    "Covariance",
    "Transformed",
    "Intervals",
    "REASONS",
    "ENDS",
    # optax: optimisers, and parts of a chain
    "bfgs",
    "broyden",
    "dfp",
    "lbfgs",
    "lsr1",
    "newton",
    "osbfgs",
    "sr1",
    "ssbfgs",
    "ssbroyden",
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
    # methods and line searches as values
    "QuasiNewton",
    "dense",
    "lbfgs_memory",
    "lsr1_memory",
    "structured",
    "corrected_newton",
    "damped",
    "sr1_trust_region",
    "lsr1_trust_region",
    "newton_trust_region",
    "inverse_hessian_product",
    "stored_pairs",
    "same_batch_pair",
    "LineSearch",
    "wolfe",
    "backtracking",
    # corrections by themselves
    "bfgs_update",
    "broyden_bad_update",
    "broyden_good_update",
    "broyden_update",
    "correct_inverse",
    "dfp_update",
    "osbfgs_update",
    "powell_damping",
    "rank_one",
    "rank_one_correction",
    "rank_two",
    "sherman_morrison",
    "sr1_update",
    "ssbfgs_update",
    "ssbroyden_update",
    "structured_update",
    "trust_region_step",
    "wedderburn",
    # eigenpairs, and Hessians without a useful inverse
    "spectral_correction",
    "SpectralCorrection",
    "spectral_inverse",
    "eigenpairs",
    "hessian_eigenpairs",
    "Eigenpairs",
]
