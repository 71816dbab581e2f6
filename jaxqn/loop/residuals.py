"""Sums of squares as objectives, and their residuals linearised at a trial."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import (
    called,
    check_hashable,
    check_loss,
    check_number,
    check_residuals,
    described,
    is_traced,
    split_aux,
)
from jaxqn.formulas import LOSSES, Loss, rho_and_weight
from jaxqn.linalg import dot, vectors
from jaxqn.loop.state import Point
from jaxqn.quasi_newton import Normal, Wide

__all__ = [
    "SumOfSquares",
    "both_ways",
    "curvature_along",
    "linearised",
    "nothing_linearised",
    "sum_of_squares",
]

Linear = Normal | Wide

LARGE = 2**26
"""Entries of a Jacobian above which JᵀJ is made from a block of its columns at a time."""

BLOCK = 64
"""Columns of such a block."""


@dataclasses.dataclass(frozen=True)
class SumOfSquares:
    """An objective that is a function, and that drivers can look into: see ``sum_of_squares``.

    Attributes:
      residuals: ``(x, *args) -> r``, a pytree, or ``(r, aux)``.
      loss: a name, or a function rho(z), entry by entry.
      f_scale: the size of residual above which a robust loss takes it for an outlier.
      has_aux: whether ``residuals`` returns auxiliary data.
      jac: ``(x, *args) -> `` the Jacobian of ``residuals``, or ``None``.
    """

    residuals: Callable[..., Any]
    loss: str | Loss = "linear"
    f_scale: float = 1.0
    has_aux: bool = False
    jac: Callable[..., Any] | None = None

    def __call__(self, x: ArrayTree, *args: Any, **kwargs: Any) -> Any:
        """The value, or ``(value, aux)``."""
        r, aux = self.flat(self.residuals(x, *args, **kwargs))
        value = self.cost(r)[0]
        return (value, aux) if self.has_aux else value

    def flat(self, out: Any) -> tuple[Array, Any]:
        """The residuals as one vector, and the auxiliary data, of what ``residuals`` returned."""
        r, aux = split_aux(out, "residuals") if self.has_aux else (out, None)
        check_residuals(r)
        return jax.flatten_util.ravel_pytree(r)[0], aux

    def jacobian(self, x: ArrayTree, args: Any) -> Array:
        """What ``jac`` returns, as a matrix of shape ``(m, n)``."""
        assert self.jac is not None
        shapes = [leaf.shape for leaf in jax.tree.leaves(x)]
        parts = jax.tree.leaves(called(self.jac, x, args))
        if len(parts) % len(shapes):
            raise ValueError(
                "jac must return the Jacobian as jax.jacobian(residuals) lays it out: for every "
                f"array of residuals one for each of the {len(shapes)} arrays of x"
            )
        rows = []
        for start in range(0, len(parts), len(shapes)):
            row = zip(parts[start : start + len(shapes)], shapes, strict=True)
            rows.append([part.reshape(-1, math.prod(shape)) for part, shape in row])
        return jnp.concatenate([jnp.concatenate(row, axis=1) for row in rows])

    def cost(self, r: Array) -> tuple[Array, Array | None]:
        """The value of flat residuals, and their weights; ``None`` for weights of 1."""
        loss, C = LOSSES[self.loss] if isinstance(self.loss, str) else self.loss, self.f_scale
        if loss is None:
            return 0.5 * dot(r, r), None
        rho, weights = rho_and_weight(loss, (r / C) ** 2)
        return 0.5 * C**2 * jnp.sum(rho), weights


def sum_of_squares(
    residuals: Callable[..., Any],
    loss: str | Loss = "linear",
    f_scale: float = 1.0,
    *,
    has_aux: bool = False,
    jac: Callable[..., Any] | None = None,
) -> SumOfSquares:
    """The objective ½ Σ C² rho((rᵢ/C)²) of residuals r(x), which every driver takes for ``fun``.

    It is a function of x. :func:`jaxqn.minimize`, :func:`jaxqn.minimize_batch`,
    :func:`jaxqn.multi_start` and :func:`jaxqn.minimize_stream` also look into it: their default
    method is then "structured", made from the Jacobian of the residuals.

    Args:
      residuals: ``residuals(x, *args) -> r``, a pytree of real floating arrays, one residual per
        entry; divide them by their standard deviations where those differ.
      loss: rho(z) of z = (r/C)²: "linear" (z), "huber", "soft_l1", "cauchy" or "arctan" as in
        SciPy, or a function of z, entry by entry, with rho(0) = 0 and rho'(0) = 1.
      f_scale: C, positive: the size of residual above which a robust loss takes it for an outlier.
        A program is compiled for it; divide the residuals to make it an argument.
      has_aux: whether ``residuals`` returns ``(r, aux)``.
      jac: ``jac(x, *args) -> `` the Jacobian, laid out as by ``jax.jacobian(residuals)``, if there
        is a faster way to it than one product for every column or row. For residuals at points,
        ``jax.vmap(f, (None, 0))``, that is ``jax.vmap(jax.grad(f), (None, 0))``.

    Returns:
      A function ``(x, *args) -> value``, or ``(value, aux)``. Two of equal residuals, loss and
      scale share their compiled programs.

    Raises:
      TypeError: ``residuals`` is no function, or cannot be hashed; ``f_scale`` is traced.
      ValueError: an unknown loss; an ``f_scale`` that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxqn import minimize
      >>> def misfit(p, t, y):
      ...     return p[0] * jnp.exp(-p[1] * t) - y
      >>> t = jnp.linspace(0.0, 4.0, 20)
      >>> result = minimize(sum_of_squares(misfit), jnp.ones(2), (t, 3 * jnp.exp(-0.7 * t)))
      >>> [round(float(value), 3) for value in result.x]
      [3.0, 0.7]

    References:
      Triggs et al., Bundle Adjustment (2000), appendix, for the losses.
    """
    check_hashable(residuals, "residuals")
    if is_traced(f_scale) or not isinstance(f_scale, int | float | np.number):
        raise TypeError(
            "f_scale must be a number known when compiling, but it is "
            f"{described(f_scale)}: to make it an argument, divide the residuals by it"
        )
    check_loss(loss, LOSSES)
    if jac is not None:
        check_hashable(jac, "jac")
    return SumOfSquares(residuals, loss, check_number("f_scale", f_scale, "positive"), has_aux, jac)


def nothing_linearised(objective: SumOfSquares, x: ArrayTree, args: Any, wide: bool) -> Linear:
    """Zeros in the shapes of the linearised residuals."""
    r = jax.eval_shape(lambda: objective.flat(called(objective.residuals, x, args))[0])
    dtype, n, m = jax.tree.leaves(x)[0].dtype, vectors.size(x), r.size
    kind = Wide if wide else Normal
    shapes = ((m,), (m,), (m, n), (m, m), (n,)) if wide else ((m,), (n, n), (n,))
    return kind(*(jnp.zeros(shape, dtype) for shape in shapes))


def linearised(
    objective: SumOfSquares,
    fun: Callable[[Array], tuple[Array, Any]],
    jacobian: Callable[[Array], Array] | None,
    z: Array,
    point: Point,
    may_accept: Callable[[Array], Array],
) -> Point:
    """A trial with its residuals linearised: r, and if it may be accepted what its Jacobian says.

    Args:
      objective: the sum of squares.
      fun: ``z -> (flat residuals, aux)``.
      jacobian: ``z -> `` their Jacobian, shape ``(m, n)``, if the caller has given one.
      z: the trial, flat.
      point: where the step began.
      may_accept: says of a value whether the trial may be accepted.
    """
    if jacobian is None:
        r, push, pull, aux = both_ways(fun, z)
    else:
        r, aux = fun(z)
    f, weights = objective.cost(r)
    n, m = z.size, r.size

    def transposed() -> Array:
        """The transposed Jacobian, shape ``(n, m)``."""
        if jacobian is not None:
            return jacobian(z).T
        by_columns = n <= m
        identity = jnp.eye(n if by_columns else m, dtype=z.dtype)
        return jax.vmap(push)(identity) if by_columns else jax.vmap(pull)(identity).T

    def weigh(v: Array) -> Array:
        return v if weights is None else jnp.broadcast_to(weights, v.shape) * v

    def wide() -> tuple[Array, Linear]:
        root = jnp.ones_like(r) if weights is None else jnp.sqrt(weights)
        J = root[:, None] * transposed().T
        return dot(root * r, J), Wide(r, root, J, dot(J, J.T), jnp.sum(J**2, axis=0))

    def normal() -> tuple[Array, Linear]:
        both = jnp.stack([weigh(r), weigh(point.linear.r)])
        if n * m > LARGE and jacobian is None:
            H = jax.lax.map(
                lambda e: pull(weigh(push(e))), jnp.eye(n, dtype=z.dtype), batch_size=BLOCK
            )
            g, pulled = jax.vmap(pull)(both)
            return g, Normal(r, 0.5 * (H + H.T), pulled)
        Jt = transposed()
        g, pulled = dot(both, Jt.T)
        return g, Normal(r, dot(weigh(Jt), Jt.T), pulled)

    of_kind = wide if isinstance(point.linear, Wide) else normal
    refused = jnp.zeros_like(z), point.linear
    g, linear = jax.lax.cond(may_accept(f), of_kind, lambda: refused)
    return Point(z, f, g, aux, linear)


def curvature_along(fun: Callable[[Array], tuple[Array, Any]], z: Array, v: Array) -> Array:
    """The second derivative of the residuals along v."""

    def slope(z: Array) -> Array:
        return jax.jvp(lambda z: fun(z)[0], (z,), (v,))[1]

    return jax.jvp(slope, (z,), (v,))[1]


def both_ways(fun: Callable[..., Any], z: ArrayTree) -> tuple[ArrayTree, Any, Any, Any]:
    """Residuals, products with J, products with Jᵀ, and auxiliary data; fun is called once."""
    try:
        r, push, aux = jax.linearize(fun, z, has_aux=True)
        many = jax.tree.map(lambda leaf: leaf[None], z)
        jax.eval_shape(jax.vmap(push), many)  # some functions refuse only here
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        r, pull_back, aux = jax.vjp(fun, z, has_aux=True)  # only backwards
        pull = lambda v: pull_back(v)[0]  # noqa: E731
        transposed = jax.linear_transpose(pull, r)
        return r, lambda v: transposed(v)[0], pull, aux
    transposed = jax.linear_transpose(push, z)
    return r, push, lambda v: transposed(v)[0], aux
