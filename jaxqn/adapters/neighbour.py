"""What the adapters share: the error for a missing library, and gradients by forward mode."""

from collections.abc import Callable
from typing import Any

import jax

__all__ = ["by_forward_mode", "missing"]


def missing(package: str, error: ImportError) -> ImportError:
    """What to raise where a library cannot be imported: the command that installs it.

    Args:
      package: what pip calls the library.
      error: what its import raised.

    Example:
      >>> print(missing("numpyro", ImportError("No module named 'numpyro'")))
      No module named 'numpyro': this adapter needs it, python -m pip install numpyro
    """
    text = f"{error}: this adapter needs it, python -m pip install {package}"
    return type(error)(text, name=error.name, path=error.path)


def by_forward_mode(fun: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``fun``, whose gradient in reverse is made by forward mode: for loops without a transpose.

    Args:
      fun: ``x -> (value, aux)``.

    Returns:
      The same function. Cost of a gradient: n derivatives along coordinates.

    Example:
      >>> import jax.numpy as jnp
      >>> halved = lambda x: (jax.lax.while_loop(lambda v: v > 1, lambda v: v / 2, x), None)
      >>> float(jax.grad(lambda x: by_forward_mode(halved)(x)[0])(jnp.array(3.0)))
      0.25
    """

    def twice(x: Any) -> Any:
        value, aux = fun(x)
        return value, (value, aux)

    @jax.custom_vjp
    def forward(x: Any) -> Any:
        return fun(x)

    def with_gradient(x: Any) -> Any:
        gradient, out = jax.jacfwd(twice, has_aux=True)(x)
        return out, gradient

    def pull_back(gradient: Any, cotangent: Any) -> Any:
        along, _ = cotangent
        return (jax.tree.map(lambda g: along.astype(g.dtype) * g, gradient),)

    forward.defvjp(with_gradient, pull_back)
    return forward
