"""Equations F(x) = 0 as the loop sees them: F over the vector that a method wants.

The value of a point is ½‖F‖², and F stands where an objective has its gradient: both vanish at a
solution.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict, cast

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import (
    called,
    check_args,
    check_aux,
    check_equations,
    check_hashable,
    check_implicit,
    check_jacobian,
    check_x_scale,
    nonnegative,
    split_aux,
)
from jaxqn.linalg import packing, power_of_two, unpacked, vectors
from jaxqn.loop.derivative_free import derivative_free
from jaxqn.loop.hybrid import hybrid
from jaxqn.loop.implicit import Equations, constant, follow, of_data, solution, transformed
from jaxqn.loop.path import Path, straight
from jaxqn.loop.problem import MinimizeOptions, tolerances
from jaxqn.loop.protocol import Method
from jaxqn.loop.residuals import both_ways
from jaxqn.loop.state import LoopState, Point
from jaxqn.loop.status import succeeded
from jaxqn.loop.termination import Tolerances
from jaxqn.loop.trip import Evaluate, Second, start
from jaxqn.loop.units import from_scaled, to_scaled
from jaxqn.quasi_newton import InverseJacobian, root_method

__all__ = [
    "ROOT_DEFAULTS",
    "RootOptions",
    "RootProblem",
    "options_of_the_loop",
    "root_as_function",
    "root_problem",
    "root_tolerances",
]


class RootOptions(TypedDict, total=False):
    """The options that every driver of roots takes; :func:`jaxqn.root` documents them."""

    method: str
    jac0: Any
    tol: Any
    xtol: Any
    maxiter: Any
    maxfun: Any
    has_aux: bool
    x_scale: Any
    memory: int
    implicit: Any


ROOT_DEFAULTS: RootOptions = {
    "method": "broyden",
    "jac0": None,
    "tol": None,
    "xtol": 0.0,
    "maxiter": None,
    "maxfun": None,
    "has_aux": False,
    "x_scale": None,
    "memory": 10,
    "implicit": True,
}
"""What each option is unless the caller gives it."""


class RootProblem(NamedTuple):
    """Everything about a search for a root that is fixed when it is compiled.

    Attributes:
      equations: ``(x, *args) -> F``, or ``(F, aux)``.
      method: the inverse Jacobian, and how its steps are made safe.
      has_aux: whether the equations return auxiliary data.
      implicit: see :class:`jaxqn.loop.Problem`.
      bounded: whether there are bounds: never.
    """

    equations: Any
    method: Method
    has_aux: bool
    implicit: bool | str | None = True
    bounded: bool = False

    @property
    def inverse(self) -> InverseJacobian:
        """The inverse Jacobian of the method."""
        return cast(InverseJacobian, self.method.qn)

    @property
    def has_derivatives(self) -> bool:
        """Whether somebody may ask for a derivative of the root."""
        return bool(self.implicit) and transformed()

    def vector(self, x: ArrayTree) -> tuple[ArrayTree, Callable[[ArrayTree], ArrayTree]]:
        """``x`` as the method wants it, flat or in large pieces, and the way back."""
        if self.inverse.dense:
            return jax.flatten_util.ravel_pytree(x)
        return packing(x)(x), lambda v: unpacked(v, x)

    def path(self, box: Any, x_scale: Any) -> Path:
        """Steps are straight: there are no bounds."""
        del box, x_scale
        return straight

    def values_at(self, x: ArrayTree, args: Any) -> tuple[ArrayTree, Any]:
        """F and auxiliary data at a point."""
        out = called(self.equations, x, args)
        F, aux = split_aux(out) if self.has_aux else (out, None)
        check_equations(F, x, alike=not self.inverse.dense)
        return F, aux

    def starts(self, options: Any, x0: ArrayTree) -> tuple[Any, Any]:
        """The options ``jac0`` and ``x_scale``, checked for this method and ``x0``."""
        J0, x_scale = options["jac0"], check_x_scale(options["x_scale"], x0)
        if J0 is None:
            return None, x_scale
        if self.inverse.every_step:
            raise ValueError("jac0 starts a Broyden method; this one takes the Jacobian at x0")
        if x_scale is not None and not self.inverse.dense:
            raise ValueError("with limited memory jac0 is a number, in one unit: leave out x_scale")
        return check_jacobian(J0, x0, dense=self.inverse.dense), x_scale

    def start(self, x0: ArrayTree, args: Any, J0: Any, x_scale: Any, box: Any = None) -> LoopState:
        """The state before the first evaluation, in units of ``x_scale``."""
        del box

        def output() -> Any:
            aux = self.values_at(x0, args)[1]
            check_aux(aux)
            return aux

        aux = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(output))
        x, given = self.vector(x0)[0], x_scale is not None
        if given:
            x_scale = jax.tree.map(power_of_two, self.vector(x_scale)[0])
            J0 = None if J0 is None else J0 * x_scale[None]
        z = to_scaled(x, x_scale)
        nothing = jnp.zeros((), vectors.tree_dtype(z))
        first = Point(z, nothing, jax.tree.map(jnp.zeros_like, z), aux)
        return start(first, self.method, J0, x_scale, straight, given=given)

    def on_vectors(
        self, x0: ArrayTree, args: Any, box: Any, x_scale: Any
    ) -> tuple[Evaluate, Second, Path]:
        """The objective of the loop, what a method takes of the Jacobian, and the path.

        The former gives a :class:`Point` with F for a gradient. The latter gives of z the Jacobian
        for a dense method, else the functions v ↦ J v and w ↦ Jᵀw.
        """
        del box
        vector, back = self.vector(x0)
        dtype = jax.tree.leaves(vector)[0].dtype

        def fun(z: ArrayTree) -> tuple[ArrayTree, Any]:
            F, aux = self.values_at(back(from_scaled(z, x_scale)), args)
            return jax.tree.map(lambda a: a.astype(dtype), self.vector(F)[0]), aux

        def evaluate(z: ArrayTree, point: Point, g_scale: Array, may_accept: Any) -> Point:
            del point, g_scale, may_accept
            F, aux = fun(z)
            return jax.lax.stop_gradient(Point(z, 0.5 * vectors.vdot(F, F), F, aux))

        def jacobian(z: Array) -> Array:
            return _jacobian(lambda z: fun(z)[0], z)

        def products(z: ArrayTree) -> tuple[Any, Any]:
            _, push, pull, _ = both_ways(fun, z)
            return push, pull

        second: Any = jacobian if self.inverse.dense else products
        return evaluate, second, straight


def _jacobian(fun: Callable[[Array], Array], z: Array) -> Array:
    """The Jacobian, column by column; row by row of a function that has derivatives backwards."""
    try:
        return jax.jacfwd(fun)(z)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        return jax.jacrev(fun)(z)


def root_problem(fun: Any, args: Any, options: RootOptions) -> RootProblem:
    """The problem that a front door was given, checked."""
    inverse = root_method(options["method"], options["memory"])
    check_args(args)
    check_hashable(fun)
    safe = hybrid if inverse.dense else derivative_free
    globalization = safe(evaluates_first=options["jac0"] is None)
    implicit = check_implicit(options["implicit"])
    return RootProblem(fun, Method(cast(Any, inverse), globalization), options["has_aux"], implicit)


def root_as_function(
    problem: RootProblem, x: ArrayTree, F: ArrayTree, aux: Any, status: Array, args: Any
) -> tuple[ArrayTree, ArrayTree, Any]:
    """A root, F there and auxiliary data as functions of ``args`` and all that F closes over."""
    x, F, aux, status = constant((x, F, aux, status))
    fun, data = of_data(lambda x, *args: problem.values_at(x, args), x, args)
    ok = succeeded(status) | (problem.implicit == "model")
    trust = jnp.where(ok, 1.0, jnp.nan).astype(vectors.tree_dtype(x))

    def equations(x: ArrayTree, data: Any) -> ArrayTree:
        values = fun(x, data)[0]
        if not problem.inverse.dense:
            return values
        return jax.flatten_util.ravel_pytree(x)[1](jax.flatten_util.ravel_pytree(values)[0])

    x = solution(Equations(equations, symmetric=False), x, data, None, None, trust)
    return x, *follow(fun, (F, aux), x, data)


def root_tolerances(dtype: np.dtype, n: int, options: RootOptions) -> Tolerances:
    """The numbers checked and given their types; ``gtol`` is a bound on the entries of F."""
    tol = options["tol"]
    tol = None if tol is None else nonnegative("tol", tol, dtype)
    return tolerances(dtype, n, options_of_the_loop(options, tol))


def options_of_the_loop(options: RootOptions, tol: Any) -> MinimizeOptions:
    """The numbers by the names that they have in the loop."""
    return {
        "gtol": tol,
        "ftol": 0.0,
        "xtol": options["xtol"],
        "maxiter": options["maxiter"],
        "maxfun": options["maxfun"],
    }
