"""Sums of squares as objectives, and their residuals linearised at a trial."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import (
    called,
    check_hashable,
    check_loss,
    check_number,
    check_residuals,
    is_traced,
    split_aux,
)
from jaxqn.formulas import LOSSES, Loss, rho_and_weight
from jaxqn.linalg import dot
from jaxqn.loop.state import Point
from jaxqn.quasi_newton import Normal

__all__ = ["SumOfSquares", "linearised", "nothing_linearised", "sum_of_squares"]

LARGE = 2**26
"""Entries of a Jacobian above which JᵀJ is made from a block of its columns at a time."""

BLOCK = 64
"""Columns of such a block."""


class SumOfSquares(NamedTuple):
    """An objective that is a function, and that drivers can look into: see ``sum_of_squares``.

    Attributes:
      residuals: ``(x, *args) -> r``, a pytree, or ``(r, aux)``.
      loss: a name, or a function rho(z), entry by entry.
      f_scale: the size of residual above which a robust loss takes it for an outlier.
      has_aux: whether ``residuals`` returns auxiliary data.
    """

    residuals: Callable[..., Any]
    loss: str | Loss = "linear"
    f_scale: float = 1.0
    has_aux: bool = False

    def __call__(self, x: ArrayTree, *args: Any) -> Any:
        """The value, or ``(value, aux)``."""
        r, aux = self.flat(self.residuals(x, *args))
        value = self.cost(r)[0]
        return (value, aux) if self.has_aux else value

    def flat(self, out: Any) -> tuple[Array, Any]:
        """The residuals as one vector, and the auxiliary data, of what ``residuals`` returned."""
        r, aux = split_aux(out, "residuals") if self.has_aux else (out, None)
        check_residuals(r)
        return jax.flatten_util.ravel_pytree(r)[0], aux

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
      >>> result.x.round(3).tolist()
      [3.0, 0.7]

    References:
      Triggs et al., Bundle Adjustment (2000), appendix, for the losses.
    """
    check_hashable(residuals, "residuals")
    if is_traced(f_scale):
        raise TypeError("f_scale must be a number known when compiling: divide the residuals by it")
    check_loss(loss, LOSSES)
    return SumOfSquares(residuals, loss, check_number("f_scale", f_scale, "positive"), has_aux)


def nothing_linearised(objective: SumOfSquares, x: ArrayTree, args: Any, n: int) -> Normal:
    """Zeros in the shapes of the linearised residuals."""
    r = jax.eval_shape(lambda: objective.flat(called(objective.residuals, x, args))[0])
    dtype = jax.tree.leaves(x)[0].dtype
    shapes = Normal(r=r.shape, H=(n, n), pulled=(n,))
    return jax.tree.map(
        lambda shape: jnp.zeros(shape, dtype), shapes, is_leaf=lambda leaf: type(leaf) is tuple
    )


def linearised(
    objective: SumOfSquares,
    fun: Callable[[Array], tuple[Array, Any]],
    z: Array,
    point: Point,
    may_accept: Callable[[Array], Array],
) -> Point:
    """A trial with its residuals linearised: r, and if it may be accepted g = JᵀW r and JᵀW J.

    Args:
      objective: the sum of squares.
      fun: ``z -> (flat residuals, aux)``.
      z: the trial, flat.
      point: where the step began.
      may_accept: says of a value whether the trial may be accepted.
    """
    r, push, pull, aux = _both_ways(fun, z)
    f, weights = objective.cost(r)
    weigh = (lambda v: v) if weights is None else (lambda v: weights * v)
    pulled = jnp.stack([weigh(r), weigh(point.linear.r)])

    def products() -> tuple[Array, Array]:
        """The rows JᵀW r and JᵀW r₋, and JᵀW J."""
        n, m = z.size, r.size
        identity = jnp.eye(n, dtype=z.dtype)
        if n * m > LARGE:
            H = jax.lax.map(lambda e: pull(weigh(push(e))), identity, batch_size=BLOCK)
            return jax.vmap(pull)(pulled), 0.5 * (H + H.T)
        if m < n:
            J = jax.vmap(pull)(jnp.eye(m, dtype=z.dtype)).T
        else:
            J = jax.vmap(push)(identity)
        return dot(pulled, J.T), dot(weigh(J), J.T)

    n = z.size
    zeros = jnp.zeros((2, n), z.dtype), jnp.zeros((n, n), z.dtype)
    (g, before), H = jax.lax.cond(may_accept(f), products, lambda: zeros)
    return Point(z, f, g, aux, Normal(r, H, before))


def _both_ways(fun: Callable[..., Any], z: Array) -> tuple[Array, Any, Any, Any]:
    """Residuals, products with J, products with Jᵀ, and auxiliary data; fun is called once."""
    try:
        r, push, aux = jax.linearize(fun, z, has_aux=True)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        r, pull_back, aux = jax.vjp(fun, z, has_aux=True)  # only backwards
        pull = lambda v: pull_back(v)[0]  # noqa: E731
        transposed = jax.linear_transpose(pull, r)
        return r, lambda v: transposed(v)[0], pull, aux
    transposed = jax.linear_transpose(push, z)
    return r, push, lambda v: transposed(v)[0], aux
