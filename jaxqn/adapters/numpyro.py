"""The methods of jaxqn inside NumPyro's SVI: one update fits to the end.

``numpyro.optim.Minimize`` hands its loss to ``jax.scipy.optimize.minimize``; :class:`Minimize` here
hands it to :func:`jaxqn.minimize`. Take it for guides whose loss has no noise: an empty guide,
``AutoDelta`` and ``AutoLaplaceApproximation``. Of any other guide it minimises the loss for the one
sample that the key of the update draws.

Example:
  >>> import jax
  >>> import jax.numpy as jnp
  >>> import numpyro
  >>> from numpyro.distributions import Gamma, Poisson
  >>> from numpyro.infer import SVI, Trace_ELBO
  >>> from numpyro.infer.autoguide import AutoDelta
  >>> def model(counts):
  ...     rate = numpyro.sample("rate", Gamma(3.0, 0.5))
  ...     with numpyro.plate("observations", counts.size):
  ...         numpyro.sample("counts", Poisson(rate), obs=counts)
  >>> svi = SVI(model, AutoDelta(model), Minimize(), Trace_ELBO())
  >>> fit = svi.run(jax.random.key(0), 1, jnp.array([2, 5, 3, 4]), progress_bar=False)
  >>> round(float(fit.params["rate_auto_loc"]), 3)  # (3 + 14 - 1) / (0.5 + 4)
  3.556
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.adapters.neighbour import by_forward_mode, missing
from jaxqn.drivers import minimize
from jaxqn.loop import MinimizeOptions, Status, completed

try:
    from numpyro import optim
except ImportError as error:
    raise missing("numpyro", error) from error

__all__ = ["Fit", "Minimize"]


class Fit(NamedTuple):
    """What :class:`Minimize` keeps: the second entry of ``svi_state.optim_state``.

    Attributes:
      params: the parameters, unconstrained.
      status: how the last fit ended, a :class:`jaxqn.Status`; ``RUNNING`` before the first.
      nit: its iterations, int32.
      nfev: its evaluations of loss and gradient, int32.
    """

    params: ArrayTree
    status: Array
    nit: Array
    nfev: Array


class Minimize(optim.Minimize):
    """NumPyro's interface of a minimiser, by :func:`jaxqn.minimize`.

    Args:
      method: see :func:`jaxqn.minimize`; by default "osbfgs".
      **options: further options of :func:`jaxqn.minimize`: ``gtol``, ``maxiter``, ``linesearch``
        and so on; ``has_aux`` is taken.

    Raises:
      TypeError: an option that :func:`jaxqn.minimize` has not.

    A model with mutable state keeps what it computes at the solution. ``svi.run`` compiles a fit
    once; eager calls of ``svi.update`` compile it every time, so wrap them in ``jax.jit``.
    """

    def __init__(self, method: Any = None, **options: Any):
        super().__init__()
        given: MinimizeOptions = {"method": method, **options}  # type: ignore[typeddict-item]
        self.options: dict[str, Any] = {**completed("Minimize", given), "has_aux": True}
        self.init_fn = _begun
        self.update_fn = _unchanged
        self.get_params_fn = _params

    def eval_and_update(
        self,
        fn: Callable[[Any], tuple[Any, Any]],
        state: tuple[Any, Fit],
        forward_mode_differentiation: bool = False,
    ) -> tuple[tuple[Any, Any], tuple[Any, Fit]]:
        """A fit from the parameters in ``state``.

        Args:
          fn: ``params -> (loss, mutable_state)``.
          state: the number of updates so far, and the last fit.
          forward_mode_differentiation: whether gradients are made by forward mode.

        Returns:
          ``((loss, mutable_state), state)`` at the lowest point that was evaluated.
        """
        count, fit = state
        objective = by_forward_mode(fn) if forward_mode_differentiation else fn
        result = minimize(objective, fit.params, **self.options)
        fit = Fit(result.x, result.status, result.nit, result.nfev)
        return (result.fun, result.aux), (count + 1, fit)

    def eval_and_stable_update(
        self,
        fn: Callable[[Any], tuple[Any, Any]],
        state: tuple[Any, Fit],
        forward_mode_differentiation: bool = False,
    ) -> tuple[tuple[Any, Any], tuple[Any, Fit]]:
        """The same; a loss that is not finite where the fit begins is NaN, and nothing moves."""
        (loss, aux), state = self.eval_and_update(fn, state, forward_mode_differentiation)
        return (jnp.where(jnp.isfinite(loss), loss, jnp.nan), aux), state


def _begun(params: ArrayTree) -> Fit:
    """Before the first fit."""
    nothing = jnp.int32(0)
    return Fit(params, jnp.int32(Status.RUNNING), nothing, nothing)


def _unchanged(count: Any, gradient: ArrayTree, fit: Fit) -> Fit:
    """An update by one gradient, which a fit does not take."""
    del count, gradient
    return fit


def _params(fit: Fit) -> ArrayTree:
    return fit.params
