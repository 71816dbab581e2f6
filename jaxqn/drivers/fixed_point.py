"""The front door for fixed points: ``fixed_point(fun, x0, args)``."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxqn._typing import ArrayTree
from jaxqn.checks import answered, check_hashable
from jaxqn.drivers.root import solve
from jaxqn.drivers.root_result import RootResult
from jaxqn.loop import LoopState, RootOptions, root_problem

__all__ = ["fixed_point"]


@answered
def fixed_point(
    fun: Callable[..., Any],
    x0: ArrayTree,
    args: tuple[Any, ...] = (),
    *,
    method: str = "anderson",
    memory: int = 5,
    tol: Any = None,
    xtol: Any = 0.0,
    maxiter: Any = None,
    maxfun: Any = None,
    has_aux: bool = False,
    implicit: bool | str = True,
    state: LoopState | None = None,
    callback: Callable[[RootResult], Any] | None = None,
    progress: bool = False,
) -> RootResult:
    """Solve x = g(x), accelerated by the newest pairs.

    The equation is F(x) = g(x) − x = 0, and H = −I without pairs, which is the plain iteration
    x₊ = g(x). Anderson's method is the bad Broyden method with all pairs of its memory at once: of
    all H with the least change from −I it takes the one that meets H Y = S by least squares, and
    "lbroyden-bad" the one that meets the newest pair exactly. Unlike both, a run here tests ‖F‖
    before it takes a step, and is sound far from a fixed point.

    Args:
      fun: ``fun(x, *args) -> g(x)``, like x, or ``(g(x), aux)`` with ``has_aux``.
      x0: see :func:`root`.
      args: see :func:`root`.
      method: "anderson", "lbroyden-bad" or "lbroyden"; or any other of :func:`root`.
      memory: pairs to keep.
      tol: see :func:`root`, for F = g(x) − x.
      xtol: see :func:`root`.
      maxiter: see :func:`root`.
      maxfun: see :func:`root`.
      implicit: see :func:`root`.
      has_aux: see :func:`root`.
      state: see :func:`root`.
      callback: see :func:`root`.
      progress: see :func:`root`.

    Returns:
      A :class:`RootResult`; its ``fun`` is g(x) − x.

    Raises:
      TypeError: see :func:`root`, also for ValueError.

    Cost: one evaluation of g per trip; memory for 2 ``memory`` vectors.

    Example:
      >>> import jax.numpy as jnp
      >>> result = fixed_point(jnp.cos, jnp.ones(3))
      >>> bool(result.success), round(float(result.x[0]), 4)
      (True, 0.7391)

    References:
      Anderson, J. ACM 12 (1965); Fang & Saad, Numer. Linear Algebra Appl. 16 (2009), for its place
      in the family of the bad Broyden method; Walker & Ni, SIAM J. Numer. Anal. 49 (2011).
    """
    check_hashable(fun)
    limited = method in ("anderson", "lbroyden", "lbroyden-bad")
    options = RootOptions(
        method=method,
        jac0=-1.0 if limited else None,
        tol=tol,
        xtol=xtol,
        maxiter=maxiter,
        maxfun=maxfun,
        has_aux=has_aux,
        x_scale=None,
        memory=memory,
        implicit=implicit,
    )
    problem = root_problem(FixedPoint(fun, has_aux), args, options)
    return solve(problem, x0, args, options, state, callback, progress)


@dataclasses.dataclass(frozen=True)
class FixedPoint:
    """The equations g(x) − x = 0 of a function g."""

    g: Callable[..., Any]
    has_aux: bool

    def __call__(self, x: ArrayTree, *args: Any) -> Any:
        """F, or ``(F, aux)``."""
        out = self.g(x, *args)
        image, aux = out if self.has_aux else (out, None)
        F = jax.tree.map(jnp.subtract, image, x)
        return (F, aux) if self.has_aux else F
