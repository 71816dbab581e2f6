"""Type aliases shared by every room."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

Array = jax.Array
ArrayTree = Any
"""A pytree of arrays: parameters, gradients, or a bare array."""

Objective = Callable[..., Any]
"""``fun(x, *args) -> scalar``, or ``(scalar, aux)`` with ``has_aux=True``."""

F = TypeVar("F", bound=Callable[..., Any])


def compiled(fun: F) -> F:
    """``jax.jit``, as a decorator that keeps the function's type."""
    return cast(F, jax.jit(fun))
