"""An objective as the loop sees it: value and gradient over the vector that a method wants."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from jaxqn import _stacks
from jaxqn._checks import (
    check_hashable,
    check_initial,
    check_values,
    nonnegative,
    scalar_value,
    split_aux,
    whole_number,
)
from jaxqn._numerics import power_of_two
from jaxqn._packing import packing, unpacked
from jaxqn._scaling import MODEL, automatic, in_units, out_of_units
from jaxqn._typing import Array, ArrayTree
from jaxqn.linesearch import LineSearch, wolfe
from jaxqn.loop import LoopState, Point, start
from jaxqn.methods import method_by_name
from jaxqn.quasi_newton import QuasiNewton
from jaxqn.termination import Tolerances, default_rtol, stall_rtol

__all__ = ["Problem", "problem_of", "tolerances"]


class Problem(NamedTuple):
    """Everything about a run that is fixed when it is compiled.

    Attributes:
      objective: ``(x, *args) -> value``, or ``(value, aux)``.
      qn: the inverse-Hessian approximation.
      linesearch: the line search.
      has_aux: whether the objective returns auxiliary data.
    """

    objective: Callable[..., Any]
    qn: QuasiNewton
    linesearch: LineSearch
    has_aux: bool

    def vector(self, x: ArrayTree) -> tuple[ArrayTree, Callable[[ArrayTree], ArrayTree]]:
        """``x`` as the method wants it, flat or in large pieces, and the way back."""
        if self.qn.dense:
            return jax.flatten_util.ravel_pytree(x)
        return packing(x)(x), lambda v: unpacked(v, x)

    def initial(self, hess_inv0: Any, x0: ArrayTree) -> Any:
        """A given H0, checked for this method; ``None`` for none."""
        if hess_inv0 is not None and self.qn.renew is not None:
            raise ValueError(
                "hess_inv0 starts a quasi-Newton method; this one takes the Hessian at x0"
            )
        return None if hess_inv0 is None else check_initial(hess_inv0, x0, self.qn.dense)

    def start(self, x0: ArrayTree, args: Any, H0: Any, x_scale: Any) -> LoopState:
        """The state before the first evaluation, in the units given or in those of ``x0``."""
        aux = None
        if self.has_aux:
            shapes = split_aux(jax.eval_shape(self.objective, x0, *args))[1]
            aux = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        x = self.vector(x0)[0]
        if x_scale is not None:
            x_scale = jax.tree.map(power_of_two, self.vector(x_scale)[0])
        elif _stacks.size(x) <= MODEL:
            x_scale = automatic(x) if H0 is None else jax.tree.map(jnp.ones_like, x)
        if H0 is not None and self.qn.dense:
            H0 = H0 if x_scale is None else H0 / jnp.outer(x_scale, x_scale)
        elif H0 is not None:
            H0 = in_units(in_units(packing(x0)(H0), x_scale), x_scale)
        z = in_units(x, x_scale)
        return start(z, aux, self.qn, self.linesearch, H0, x_scale)

    def on_vectors(
        self, x0: ArrayTree, args: Any, x_scale: Any
    ) -> tuple[Callable[[ArrayTree, Array], Point], Callable[[Array], Array]]:
        """``(z, unit) -> Point``, its gradient over the unit, and ``z -> Hessian``."""
        vector, back = self.vector(x0)
        dtype = jax.tree.leaves(vector)[0].dtype

        def fun(z: ArrayTree) -> tuple[Array, Any]:
            out = self.objective(back(out_of_units(z, x_scale)), *args)
            value, aux = split_aux(out) if self.has_aux else (out, None)
            return scalar_value(value).astype(dtype), aux

        def evaluate(z: ArrayTree, unit: Array) -> Point:
            f, pull_back, aux = jax.vjp(fun, z, has_aux=True)
            (g,) = pull_back(1 / unit)
            return _without_derivative(Point(z, f, g, aux))

        return evaluate, jax.hessian(lambda z: fun(z)[0])


@jax.custom_jvp
def _without_derivative(point: Point) -> Point:
    """A point of a run, in which all shows that the run depends on, closures included."""
    return point


@_without_derivative.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "a run of jaxqn has no derivative. For that of the solution by the data, put the run into "
        "jax.lax.custom_root, as the README does under 'Coming from elsewhere'; for a solution "
        "that counts as a constant, put jax.lax.stop_gradient around what goes into the run"
    )


def problem_of(
    fun: Any, method: str | QuasiNewton, linesearch: LineSearch | None, has_aux: bool, args: Any
) -> Problem:
    """The problem that a front door was given, checked."""
    qn = method_by_name(method) if isinstance(method, str) else method
    linesearch = wolfe() if linesearch is None else linesearch
    check_values(qn, linesearch, args)
    check_hashable(fun)
    return Problem(fun, qn, linesearch, has_aux)


def tolerances(
    dtype: np.dtype, n: int, gtol: Any, ftol: Any, xtol: Any, maxiter: Any, maxfun: Any
) -> Tolerances:
    """Check the numbers and give them their types; the defaults depend on dtype and size."""
    limit = np.iinfo(np.int32).max
    return Tolerances(
        gtol=nonnegative("gtol", 0.0 if gtol is None else gtol, dtype),
        grtol=np.asarray(default_rtol(dtype) if gtol is None else 0.0, dtype),
        stall_rtol=np.asarray(stall_rtol(dtype) if gtol is None else 0.0, dtype),
        ftol=nonnegative("ftol", ftol, dtype),
        xtol=nonnegative("xtol", xtol, dtype),
        maxiter=whole_number(
            "maxiter", max(1000, 200 * n) if maxiter is None else maxiter, least=0
        ),
        maxfun=whole_number("maxfun", limit if maxfun is None else maxfun, least=1),
    )
