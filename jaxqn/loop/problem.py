"""An objective as the loop sees it: value and gradient over the vector that a method wants."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import (
    called,
    check_args,
    check_aux,
    check_bounds,
    check_hashable,
    check_implicit,
    check_initial,
    check_keywords,
    check_x_scale,
    nonnegative,
    scalar_value,
    split_aux,
    whole_number,
)
from jaxqn.linalg import packing, power_of_two, unpacked, vectors
from jaxqn.linesearch import LineSearch, check_linesearch, wolfe
from jaxqn.loop.box import Box, bent, finite_multipliers, inside
from jaxqn.loop.implicit import refused, transformed
from jaxqn.loop.line import line
from jaxqn.loop.path import Path, straight
from jaxqn.loop.protocol import Method
from jaxqn.loop.residuals import SumOfSquares, curvature_along, linearised, nothing_linearised
from jaxqn.loop.state import LoopState, Point
from jaxqn.loop.termination import Tolerances, noise_rtol
from jaxqn.loop.trip import Evaluate, Second, start
from jaxqn.loop.trust_region import within
from jaxqn.loop.units import (
    MAX_AUTOMATIC,
    automatic,
    from_scaled,
    inverse_hessian_to_scaled,
    to_scaled,
)
from jaxqn.quasi_newton import Model, QuasiNewton, check_method, method_by_name

__all__ = [
    "DEFAULTS",
    "MinimizeOptions",
    "Problem",
    "box_of",
    "completed",
    "default_method",
    "problem_of",
    "tolerances",
]


class MinimizeOptions(TypedDict, total=False):
    """The options that every driver takes; :func:`jaxqn.minimize` documents them."""

    bounds: Any
    method: str | QuasiNewton | None
    linesearch: LineSearch | None
    gtol: Any
    ftol: Any
    xtol: Any
    maxiter: Any
    maxfun: Any
    has_aux: bool
    hess_inv0: Any
    x_scale: Any
    implicit: Any


DEFAULT_METHOD = "osbfgs"
"""The method of an objective of which only values are known."""

DEFAULTS: MinimizeOptions = {
    "bounds": None,
    "method": None,
    "linesearch": None,
    "gtol": None,
    "ftol": 0.0,
    "xtol": 0.0,
    "maxiter": None,
    "maxfun": None,
    "has_aux": False,
    "hess_inv0": None,
    "x_scale": None,
    "implicit": True,
}
"""What each option is unless the caller gives it."""


def completed(caller: str, given: MinimizeOptions) -> MinimizeOptions:
    """The options with defaults for those not given; an unknown one raises an error."""
    check_keywords(caller, given, DEFAULTS)
    return {**DEFAULTS, **given}


class Problem(NamedTuple):
    """Everything about a run that is fixed when it is compiled.

    Attributes:
      objective: ``(x, *args) -> value``, or ``(value, aux)``.
      method: the inverse-Hessian approximation, and the line search around it.
      has_aux: whether the objective returns auxiliary data.
      bounded: whether there are bounds.
      implicit: whether the solution has derivatives: True, False, or "model" for those of a run
        that did not converge, too; ``None`` for a host without, to which the steps refuse theirs.
    """

    objective: Any
    method: Method
    has_aux: bool
    bounded: bool
    implicit: bool | str | None

    @property
    def has_derivatives(self) -> bool:
        """Whether somebody may ask for a derivative of the solution."""
        return bool(self.implicit) and transformed()

    @property
    def residuals(self) -> Any:
        """The function of residuals, where the method looks into the objective; else ``None``."""
        looks = self.method.qn.needs == "jacobian"
        return self.objective.residuals if looks else None

    @property
    def wide(self) -> bool:
        """Whether the method works in the space of the residuals."""
        model = self.method.qn.model
        return isinstance(model, Model) and model.matrix is None

    def vector(self, x: ArrayTree) -> tuple[ArrayTree, Callable[[ArrayTree], ArrayTree]]:
        """``x`` as the method wants it, flat or in large pieces, and the way back."""
        if self.method.qn.dense:
            return jax.flatten_util.ravel_pytree(x)
        return packing(x)(x), lambda v: unpacked(v, x)

    def box_of_vectors(self, box: Box | None, x_scale: Any) -> Box | None:
        """The box over z."""
        if box is None:
            return None
        lower, upper = (to_scaled(self.vector(bound)[0], x_scale) for bound in box)
        return Box(lower, upper)

    def path(self, box: Box | None, x_scale: Any) -> Path:
        """How steps over z become points: straight, or in the box."""
        box = self.box_of_vectors(box, x_scale)
        return straight if box is None else bent(box)

    def starts(self, options: MinimizeOptions, x0: ArrayTree) -> tuple[Any, Any]:
        """The options ``hess_inv0`` and ``x_scale``, checked for this method and ``x0``."""
        H0, x_scale = options["hess_inv0"], check_x_scale(options["x_scale"], x0)
        if H0 is not None and self.method.qn.needs != "nothing":
            raise ValueError(
                "hess_inv0 starts a quasi-Newton method; this one takes the Hessian at x0"
            )
        return None if H0 is None else check_initial(H0, x0, self.method.qn.dense), x_scale

    def start(self, x0: ArrayTree, args: Any, H0: Any, x_scale: Any, box: Box | None) -> LoopState:
        """The state before the first evaluation, in units of ``x_scale`` or of the sizes in x0."""
        aux = linear = None
        x0 = x0 if box is None else inside(x0, box)
        if self.has_aux:

            def output() -> Any:
                out = called(self.residuals or self.objective, x0, args)
                aux = split_aux(out)[1]
                check_aux(aux)
                return aux

            shapes = jax.eval_shape(output)
            aux = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        x, given = self.vector(x0)[0], x_scale is not None
        if x_scale is not None:
            x_scale = jax.tree.map(power_of_two, self.vector(x_scale)[0])
        elif vectors.size(x) <= MAX_AUTOMATIC and self.residuals is None:
            x_scale = automatic(x) if H0 is None else jax.tree.map(jnp.ones_like, x)
        if H0 is not None:
            dense = self.method.qn.dense
            H0 = inverse_hessian_to_scaled(H0 if dense else packing(x0)(H0), x_scale, dense=dense)
        path, z = self.path(box, x_scale), to_scaled(x, x_scale)
        if box is not None:  # where the first trip evaluates
            zeros = jax.tree.map(jnp.zeros_like, z)
            z = path.at(z, jnp.zeros((), vectors.tree_dtype(z)), path.join(zeros, zeros))
        if self.residuals is not None:
            linear = nothing_linearised(self.objective, x0, args, self.wide)
        nothing = jnp.zeros((), vectors.tree_dtype(z))
        first = Point(z, nothing, jax.tree.map(jnp.zeros_like, z), aux, linear)
        return start(first, self.method, H0, x_scale, path, given=given)

    def on_vectors(
        self, x0: ArrayTree, args: Any, box: Box | None, x_scale: Any
    ) -> tuple[Evaluate, Second, Path]:
        """``(z, g_scale) -> Point``, its gradient over g_scale; ``z -> Hessian``; the path."""
        vector, back = self.vector(x0)
        dtype, box_z = jax.tree.leaves(vector)[0].dtype, self.box_of_vectors(box, x_scale)

        def at(fun: Callable[..., Any], z: ArrayTree) -> Any:
            x = back(from_scaled(z, x_scale))
            if box is not None and x_scale is not None:
                x = inside(x, box)  # to the last bit, also where a bound over a unit is subnormal
            return called(fun, x, args)

        def fun(z: ArrayTree) -> tuple[Array, Any]:
            out = at(self.objective, z)
            value, aux = split_aux(out) if self.has_aux else (out, None)
            return scalar_value(value).astype(dtype), aux

        def residuals(z: Array) -> tuple[Array, Any]:
            r, aux = self.objective.flat(at(self.residuals, z))
            return r.astype(dtype), aux

        def jacobian(z: Array) -> Array:
            J = at(lambda x, *args: self.objective.jacobian(x, args), z).astype(dtype)
            return J if x_scale is None else J * x_scale[None]

        def evaluate(z: ArrayTree, point: Point, g_scale: Array, may_accept: Any) -> Point:
            if self.residuals is not None:
                own = None if self.objective.jac is None else jacobian
                trial = linearised(self.objective, residuals, own, z, point, may_accept)
                return held(trial)
            f, pull_back, aux = jax.vjp(fun, z, has_aux=True)
            (g,) = pull_back(1 / g_scale)
            point = Point(z, f, g, aux)
            point = point if box_z is None else finite_multipliers(point, box_z)
            return held(point)

        held = refused if self.implicit is None else jax.lax.stop_gradient
        second: Any = functools.partial(curvature_along, residuals)
        if self.residuals is None:
            second = jax.hessian(lambda z: fun(z)[0])
        return evaluate, second, self.path(box, x_scale)


def default_method(fun: Any) -> str:
    """The method where the caller names none."""
    return "structured" if isinstance(fun, SumOfSquares) else DEFAULT_METHOD


def problem_of(fun: Any, args: Any, options: MinimizeOptions) -> Problem:
    """The problem that a front door was given, checked."""
    method, linesearch = options["method"], options["linesearch"]
    squares, has_aux = isinstance(fun, SumOfSquares), options["has_aux"]
    if squares:
        fun = dataclasses.replace(fun, has_aux=(has_aux := has_aux or fun.has_aux))
    method = default_method(fun) if method is None else method
    along = (linesearch, options["bounds"], options["hess_inv0"])
    in_line = any(option is not None for option in along)
    qn = method_by_name(method, in_line=in_line) if isinstance(method, str) else method
    bounded = options["bounds"] is not None
    check_method(qn, bounded=bounded)
    check_args(args)
    check_hashable(fun)
    if qn.needs == "jacobian" and not squares:
        raise TypeError(
            "this method is made from residuals: hand over jaxqn.sum_of_squares(residuals) for fun"
        )
    if qn.model is not None and linesearch is not None:
        raise ValueError("this method steps within a trust region: it takes no linesearch")
    linesearch = wolfe() if linesearch is None else linesearch
    check_linesearch(linesearch, bends=bounded)
    globalization = line(linesearch) if qn.model is None else within(qn.model)
    implicit = check_implicit(options["implicit"])
    return Problem(fun, Method(qn, globalization), has_aux, bounded, implicit)


def box_of(options: MinimizeOptions, x0: ArrayTree) -> Box | None:
    """The option ``bounds``, checked, over the parameters of one problem."""
    bounds = options["bounds"]
    return None if bounds is None else Box(*check_bounds(bounds, x0))


def tolerances(dtype: np.dtype, n: int, options: MinimizeOptions) -> Tolerances:
    """The numbers checked and given their types; the defaults depend on dtype and size."""
    gtol, maxiter, maxfun = options["gtol"], options["maxiter"], options["maxfun"]
    limit = np.iinfo(np.int32).max
    return Tolerances(
        gtol=nonnegative("gtol", 0.0 if gtol is None else gtol, dtype),
        noise_rtol=np.asarray(noise_rtol(dtype) if gtol is None else 0.0, dtype),
        ftol=nonnegative("ftol", options["ftol"], dtype),
        xtol=nonnegative("xtol", options["xtol"], dtype),
        maxiter=whole_number(
            "maxiter", max(1000, 200 * n) if maxiter is None else maxiter, least=0
        ),
        maxfun=whole_number("maxfun", limit if maxfun is None else maxfun, least=1),
    )
