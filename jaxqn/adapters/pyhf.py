"""pyhf's fits by jaxqn: one compiled program for all fits of a model, fixed and free.

pyhf compiles value and gradient, and its optimizers call them from Python. Here the whole fit is
compiled, with bounds and fixed values as data, so that a scan of a parameter, toys and the fits
behind a CLs value share one program.

Example:
  >>> import pyhf
  >>> pyhf.set_backend("jax", jaxqn_optimizer())
  >>> model = pyhf.simplemodels.uncorrelated_background(
  ...     signal=[5.0, 10.0], bkg=[50.0, 60.0], bkg_uncertainty=[5.0, 12.0]
  ... )
  >>> data = [53.0, 65.0, *model.config.auxdata]
  >>> fit = pyhf.infer.mle.fit(data, model, return_uncertainties=True)
  >>> [(round(float(value), 2), round(float(error), 2)) for value, error in fit]
  [(0.54, 1.12), (1.0, 0.09), (1.0, 0.17)]
  >>> round(float(pyhf.infer.hypotest(1.0, data, model, test_stat="qtilde")), 3)
  0.496
"""

import dataclasses
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from jaxqn._typing import Array
from jaxqn.adapters.neighbour import missing
from jaxqn.drivers import covariance, minimize

try:
    import pyhf
    from pyhf.optimize.mixins import OptimizerMixin
    from scipy.optimize import OptimizeResult
except ImportError as error:
    raise missing("pyhf", error) from error

__all__ = ["jaxqn_optimizer"]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The objective of a fit: of equal ones the compiled programs are shared.

    Attributes:
      objective: ``(pars, data, pdf) -> `` an array of one value: twice the negative log-likelihood.
      pdf: the model.
    """

    objective: Callable[..., Any]
    pdf: Any

    def __call__(self, pars: Array, data: Array) -> Array:
        """The value for these parameters and data."""
        return self.objective(pars, data, self.pdf)[0]


class jaxqn_optimizer(OptimizerMixin):
    """An optimizer of pyhf for its JAX backend: ``pyhf.set_backend("jax", jaxqn_optimizer())``.

    Fixed parameters are held by equal bounds. Uncertainties and correlations, computed where they
    are asked for, are those of the inverse Hessian over the parameters that neither a fixed value
    nor a bound holds. Those of a fixed parameter are 0, as pyhf has them, and those of one at its
    bound NaN: a curvature says nothing of it.

    Args:
      method: see :func:`jaxqn.minimize`; by default "osbfgs".
      tolerance: the largest entry of the gradient of a solution; by default what rounding leaves.
      errordef: by how much the objective rises at one standard error: 1 for twice a negative
        log-likelihood, as in ``pyhf.optimize.minuit_optimizer``.
      maxiter: iterations allowed; 100000 by default.
      verbose: whether to print a line about every second.

    ``method``, ``tolerance``, ``maxiter`` and ``verbose`` may be given to a single fit as well:
    ``pyhf.infer.mle.fit(data, model, method="lbfgs")``.

    Raises:
      pyhf.exceptions.Unsupported: another backend than JAX's, or an unknown option.
      pyhf.exceptions.FailedMinimization: a fit that did not succeed; its result has the ``message``
        and the ``status``, a :class:`jaxqn.Status`.
    """

    __slots__ = ["errordef", "method", "name", "problem", "tolerance"]

    def __init__(self, **options: Any):
        self.name = "jaxqn"
        self.method = options.pop("method", None)
        self.tolerance = options.pop("tolerance", None)
        self.errordef = options.pop("errordef", 1.0)
        super().__init__(**options)

    def minimize(self, objective: Any, data: Any, pdf: Any, *args: Any, **options: Any) -> Any:
        """See ``pyhf.optimize.mixins.OptimizerMixin.minimize``.

        ``do_stitch`` is not needed: a fixed parameter takes part in nothing but the model.
        """
        tensorlib, _ = pyhf.get_backend()
        if tensorlib.name != "jax":
            raise pyhf.exceptions.Unsupported(
                f"jaxqn_optimizer needs the backend 'jax', but it is {tensorlib.name!r}: "
                "pyhf.set_backend('jax', jaxqn_optimizer())"
            )
        wants = ("return_uncertainties", "return_correlations", "return_result_obj")
        errors = any(options.get(name) for name in wants)
        self.problem = Likelihood(objective, pdf), tensorlib.astensor(data), errors
        return super().minimize(objective, data, pdf, *args, **{**options, "do_stitch": False})

    def _get_minimizer(
        self,
        objective_and_grad: Any,
        init_pars: Any,
        init_bounds: Any,
        fixed_vals: Any = None,
        do_grad: bool = False,
        par_names: Any = None,
    ) -> Any:
        del objective_and_grad, init_pars, init_bounds, fixed_vals, do_grad, par_names
        return self.problem

    def _minimize(
        self,
        minimizer: Any,
        func: Any,
        x0: Any,
        do_grad: bool = False,
        bounds: Any = None,
        fixed_vals: Any = None,
        options: Any = None,
    ) -> OptimizeResult:
        """One fit, as a result of SciPy's kind."""
        del func, do_grad
        options = dict(options or {})
        given = {
            "method": options.pop("method", self.method),
            "gtol": options.pop("tolerance", self.tolerance),
            "maxiter": options.pop("maxiter", self.maxiter),
            "progress": bool(options.pop("verbose", self.verbose)),
        }
        if options:
            raise pyhf.exceptions.Unsupported(
                f"Unsupported options were passed in: {list(options)}."
            )
        likelihood, data, errors = minimizer
        tensorlib, _ = pyhf.get_backend()
        lower, upper = np.array(bounds, float).T
        x0, fixed = np.array(x0, float), np.zeros(len(x0), bool)
        for index, value in fixed_vals or []:
            fixed[index] = True
            x0[index] = lower[index] = upper[index] = value
        start = tensorlib.astensor(x0)
        result = minimize(likelihood, start, (data,), bounds=(lower, upper), **given)
        unc = corr = cov = None
        if errors:
            found = covariance(likelihood, result.x, (data,), bounds=(lower, upper), profile=False)
            if not bool(found.reliable):
                log.warning("errors: %s", found.reason)
            square = 2 * self.errordef
            cov = square * np.asarray(found.matrix, float)
            unc = np.sqrt(square) * np.asarray(found.standard_errors, float)
            corr = np.where(fixed | fixed[:, None], 0.0, np.asarray(found.correlation, float))
        return OptimizeResult(
            x=result.x,
            fun=result.fun,
            jac=result.jac,
            success=bool(result.success),
            status=int(result.status),
            message=result.message,
            nit=int(result.nit),
            nfev=int(result.nfev),
            njev=int(result.nfev),
            unc=unc,
            corr=corr,
            hess_inv=cov,
            minuit=SimpleNamespace(fixed=fixed),  # pyhf asks which parameters are fixed there
        )
