"""Checks of matrices and vectors that callers pass to the formulas."""

from typing import Any

import jax.numpy as jnp

from jaxqn._typing import Array

__all__ = ["floating", "square_matrix"]


def floating(name: str, value: Any) -> Array:
    """The value as an array of float32 or float64."""
    array = jnp.asarray(value)
    if array.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"{name} must be float32 or float64, but it is {array.dtype}: cast it")
    return array


def square_matrix(name: str, value: Any) -> Array:
    """The value as one square matrix of float32 or float64, not empty."""
    array = floating(name, value)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.size == 0:
        raise ValueError(
            f"{name} must be one square matrix, but its shape is {array.shape}: jax.vmap takes more"
        )
    return array
