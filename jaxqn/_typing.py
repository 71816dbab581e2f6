"""Type aliases shared by every room."""

from collections.abc import Callable
from typing import Any

import jax

Array = jax.Array
ArrayTree = Any
"""A pytree of arrays: parameters, gradients, or a bare array."""

Objective = Callable[..., Any]
"""``fun(x, *args) -> scalar``, or ``(scalar, aux)`` with ``has_aux=True``."""
