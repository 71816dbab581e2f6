"""Powell's damping around any quasi-Newton approximation.

In inverse form (Nocedal & Wright, procedure 18.2, by duality) it replaces a step s that shows too
little curvature by t s + (1 − t) H y.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.checks import check_number
from jaxqn.formulas import powell_fraction
from jaxqn.linalg.vectors import vdot
from jaxqn.quasi_newton.protocol import QuasiNewton, check_quasi_newton

__all__ = ["damped", "damped_step"]


def damped_step(s: ArrayTree, Hy: ArrayTree, t: Array) -> ArrayTree:
    """The step t s + (1 − t) H y over pytrees; s itself, bit for bit, where t is 1.

    Args:
      s: step, any pytree.
      Hy: product of H with the gradient change y, likewise.
      t: of :func:`jaxqn.formulas.powell_fraction`, shape ``()``.

    Example:
      >>> s, Hy = {"a": jnp.array([-1.0])}, {"a": jnp.array([1.0])}
      >>> damped_step(s, Hy, jnp.array(0.25))["a"].tolist()
      [0.5]
    """

    def of_leaf(s: Array, Hy: Array) -> Array:
        u = t.astype(s.dtype)
        return jnp.where(u < 1, u * s + (1 - u) * Hy, s)

    return jax.tree.map(of_leaf, s, Hy)


@functools.cache
def damped(qn: QuasiNewton, *, theta: float = 0.2) -> QuasiNewton:
    """The same approximation, fed with damped pairs.

    A step with sᵀy < ``theta`` yᵀH y is moved towards H y until both are equal, as in
    :func:`jaxqn.powell_damping`, so that the update refuses no pair for its curvature.

    Args:
      qn: an approximation that keeps H positive definite.
      theta: fraction of yᵀH y to keep, in (0, 1).

    Returns:
      A :class:`jaxqn.QuasiNewton` over whatever vectors ``qn`` takes.

    Raises:
      TypeError: ``qn`` is no :class:`jaxqn.QuasiNewton`.
      ValueError: ``theta`` is not in (0, 1).

    Cost: one more product with H per pair.

    Example:
      >>> from jaxqn import lbfgs_memory
      >>> qn = damped(lbfgs_memory(m=2), theta=0.25)
      >>> s, y = jnp.array([-1.0]), jnp.array([1.0])
      >>> qn.apply(qn.update(qn.init(s), s, y), y).tolist()  # sᵀy = −1 becomes 1/4
      [0.25]
    """
    check_quasi_newton(qn)
    theta = check_number("theta", theta, "between 0 and 1")

    def step(state: Any, s: ArrayTree, y: ArrayTree, **options: Any) -> ArrayTree:
        Hy = qn.apply(state, y, **options)
        return damped_step(s, Hy, powell_fraction(vdot(s, y), vdot(y, Hy), theta))

    def update(state: Any, s: ArrayTree, y: ArrayTree) -> Any:
        return qn.update(state, step(state, s, y), y)

    def advance(
        state: Any,
        s: ArrayTree,
        y: ArrayTree,
        g: ArrayTree,
        Hg: ArrayTree,
        moved: Array,
        **options: Any,
    ) -> tuple[Any, ArrayTree]:
        s = jax.lax.cond(moved, lambda: step(state, s, y, **options), lambda: s)
        return qn.advance(state, s, y, g, Hg, moved, **options)

    return qn._replace(update=update, advance=advance, advance_on_face=None)
