"""Derivatives of functions of pytrees, thin over JAX's own transformations."""

from typing import Any

import jax
import jax.flatten_util

from jaxqn._typing import Array, ArrayTree, Objective

__all__ = ["gradient", "hessian", "hvp", "value_and_grad"]


def value_and_grad(fun: Objective, *, has_aux: bool = False) -> Any:
    """``jax.value_and_grad`` with respect to the first argument.

    Args:
      fun: ``fun(x, *args) -> scalar``, or ``(scalar, aux)`` with ``has_aux``.
      has_aux: whether ``fun`` returns auxiliary data beside its value.

    Returns:
      ``(x, *args) -> (value, gradient)``, or ``((value, aux), gradient)``.

    Example:
      >>> value, grad = value_and_grad(lambda x: x**2 + 2 * x + 1)(1.0)
      >>> float(value), float(grad)
      (4.0, 4.0)
    """
    return jax.value_and_grad(fun, has_aux=has_aux)


def gradient(fun: Objective) -> Any:
    """``jax.grad`` with respect to the first argument.

    Example:
      >>> float(gradient(lambda x: x**2 + 2 * x + 1)(1.0))
      4.0
    """
    return jax.grad(fun)


def hessian(fun: Objective) -> Any:
    """Dense Hessian of a function of a pytree, over the ravelled parameters.

    Args:
      fun: ``fun(x, *args) -> scalar``.

    Returns:
      ``(x, *args) -> B`` with B of shape ``(n, n)``, n the total number of entries of ``x``, in the
      order of :func:`jax.flatten_util.ravel_pytree`. Cost: n Hessian-vector products.

    Example:
      >>> import jax.numpy as jnp
      >>> B = hessian(lambda p: p["a"] * p["b"] ** 2)
      >>> B({"a": jnp.array(1.0), "b": jnp.array(3.0)}).tolist()
      [[0.0, 6.0], [6.0, 2.0]]
    """

    def at(x: ArrayTree, *args: Any) -> Array:
        flat, unravel = jax.flatten_util.ravel_pytree(x)
        return jax.hessian(lambda v: fun(unravel(v), *args))(flat)

    return at


def hvp(fun: Objective) -> Any:
    """Hessian-vector product, forward over reverse; the Hessian is never formed.

    Args:
      fun: ``fun(x, *args) -> scalar``.

    Returns:
      ``(x, v, *args) -> ∇²fun(x) v``, a pytree like ``x``. Cost: about two gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> hvp(lambda x: jnp.sum(x**3))(jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0])).tolist()
      [6.0, 12.0]
    """

    def at(x: ArrayTree, v: ArrayTree, *args: Any) -> ArrayTree:
        return jax.jvp(lambda p: jax.grad(fun)(p, *args), (x,), (v,))[1]

    return at
