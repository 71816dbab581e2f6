"""The methods of jaxqn as solvers of NeMoS, registered under the names of its own algorithms.

NeMoS asks of every regularizer which algorithms suit it, by name. So :func:`register` adds a
backend to "BFGS" and "LBFGS", the algorithms for smooth penalties, and
``nemos.glm.GLM(solver_name="BFGS[jaxqn]")`` takes it.

Example:
  >>> import jax
  >>> import jax.numpy as jnp
  >>> import nemos
  >>> register()
  >>> X = jnp.sin(jnp.arange(60.0)).reshape(30, 2)
  >>> counts = jnp.round(jnp.exp(1.0 + X @ jnp.array([0.5, -0.5])))
  >>> model = nemos.glm.GLM(solver_name="BFGS[jaxqn]").fit(X, counts)
  >>> [round(float(v), 2) for v in model.coef_], model.optim_info_.converged
  ([0.43, -0.42], True)
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax

from jaxqn.adapters.neighbour import missing
from jaxqn.drivers import minimize
from jaxqn.loop import LoopState, Status, succeeded

try:
    from nemos import solvers
except ImportError as error:
    raise missing("nemos", error) from error

__all__ = ["BFGS", "LBFGS", "register"]

BACKEND = "jaxqn"


class BFGS(solvers.AbstractSolver):
    """A method of :func:`jaxqn.minimize` behind NeMoS's interface of a solver.

    Args:
      unregularized_loss: ``(params, *data) -> loss``, or ``(loss, aux)`` with ``has_aux``.
      regularizer: NeMoS's; its penalty has to be smooth.
      regularizer_strength: the strength of the penalty.
      has_aux: whether the loss returns auxiliary data.
      init_params: parameters, for the structure of the penalty.
      tol: the largest entry of the gradient of a solution, ``gtol`` of :func:`jaxqn.minimize`; by
        default what rounding leaves.
      maxiter: iterations allowed; by default max(1000, 200 n).
      method: see :func:`jaxqn.minimize`; by default "osbfgs", here.
      linesearch: see :func:`jaxqn.minimize`.
      x_scale: see :func:`jaxqn.minimize`.

    A solver belongs to one model and one fit, and compiles its program once.
    """

    METHOD: ClassVar[str] = "osbfgs"

    def __init__(
        self,
        unregularized_loss: Callable[..., Any],
        regularizer: Any,
        regularizer_strength: Any,
        has_aux: bool,
        init_params: Any = None,
        tol: float | None = None,
        maxiter: int | None = None,
        method: Any = None,
        linesearch: Any = None,
        x_scale: Any = None,
    ):
        self.fun = regularizer.penalized_loss(
            unregularized_loss, params=init_params, strength=regularizer_strength
        )
        self.options: dict[str, Any] = {
            "gtol": tol,
            "method": self.METHOD if method is None else method,
            "linesearch": linesearch,
            "has_aux": has_aux,
        }
        self.maxiter, self.x_scale = maxiter, x_scale
        self.dtypes: Any = None

    def init_state(self, init_params: Any, *args: Any) -> LoopState:
        """The state after one evaluation, which is that of ``init_params``."""
        return self._fit(init_params, args, maxiter=0, x_scale=self.x_scale)[1]

    def update(self, params: Any, state: LoopState, *args: Any) -> tuple[Any, LoopState, Any]:
        """One more iteration, on the data of the iterations before; ``params`` are in ``state``.

        The ``update`` of a model of NeMoS makes floats of all arrays that it is given, and so of
        the counts in the state; here they become what they were.
        """
        if self.dtypes is not None:
            state = jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), state, self.dtypes)
        return self._fit(params, args, maxiter=state.nit + 1, state=state)

    def run(self, init_params: Any, *args: Any) -> tuple[Any, LoopState, Any]:
        """A fit: parameters, state and auxiliary output at the lowest point evaluated."""
        return self._fit(init_params, args, maxiter=self.maxiter, x_scale=self.x_scale)

    def _fit(self, params: Any, args: Any, **options: Any) -> tuple[Any, LoopState, Any]:
        result = minimize(self.fun, params, args, **self.options, **options)
        self.dtypes = jax.tree.map(lambda leaf: leaf.dtype, result.state)
        return result.x, result.state, result.aux

    @classmethod
    def get_accepted_arguments(cls) -> set[str]:
        """What ``solver_kwargs`` of a model may hold."""
        return {"linesearch", "maxiter", "method", "tol", "x_scale"}

    def get_optim_info(self, state: LoopState) -> solvers.OptimizationInfo:
        """NeMoS's summary of a state; ``num_steps`` counts iterations."""
        return solvers.OptimizationInfo(
            function_val=float(state.point.f),
            num_steps=int(state.nit),
            converged=bool(succeeded(state.status)),
            reached_max_steps=bool(state.status == Status.MAX_ITER),
        )


class LBFGS(BFGS):
    """The same by ``method="lbfgs"``, for many parameters."""

    METHOD = "lbfgs"


def register() -> None:
    """Adds the backend "jaxqn" to NeMoS's "BFGS" and "LBFGS"; a second call changes nothing."""
    for algorithm in (BFGS, LBFGS):
        solvers.register(algorithm.__name__, algorithm, backend=BACKEND, replace=True)
