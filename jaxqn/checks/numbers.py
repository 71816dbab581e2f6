"""Checks of numbers: counts, hyperparameters, tolerances and budgets."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import ArrayTree

__all__ = [
    "check_count",
    "check_number",
    "described",
    "is_traced",
    "nonnegative",
    "whole_number",
]

_RANGES = {
    "a fraction in [0, 1)": lambda number: 0 <= number < 1,
    "a fraction in (0, 1]": lambda number: 0 < number <= 1,
    "between 0 and 1": lambda number: 0 < number < 1,
    "positive": lambda number: number > 0,
    "at least 0": lambda number: number >= 0,
}


def is_traced(tree: ArrayTree) -> bool:
    """Whether any leaf is a tracer, so that its numbers cannot be looked at."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number that a program is compiled for: pairs, trials, lanes."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, but it is {value!r}")
    return int(value)


def check_number(name: str, value: Any, expected: str) -> Any:
    """A hyperparameter as a float; a traced value, as in a schedule, passes unchecked."""
    if isinstance(value, jax.core.Tracer):
        return value
    if not _RANGES[expected](value):
        raise ValueError(f"{name} must be {expected}, but it is {value}")
    return float(value)


def nonnegative(name: str, value: Any, dtype: np.dtype) -> Any:
    """A tolerance as a scalar of ``dtype``."""
    value = _number(name, value)
    if not is_traced(value) and not value >= 0:
        raise ValueError(f"{name} must be at least 0, but it is {value}")
    return value.astype(dtype)


def whole_number(name: str, value: Any, *, least: int) -> Any:
    """A budget as an int32 scalar."""
    value = _number(name, value)
    if is_traced(value):
        return value.astype(jnp.int32)
    if not (np.isfinite(value) and value == np.floor(value) and value >= least):
        raise ValueError(f"{name} must be a whole number of at least {least}, but it is {value}")
    return np.int32(min(int(value), np.iinfo(np.int32).max))


def _number(name: str, value: Any) -> Any:
    """A real scalar."""
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.number) or jnp.iscomplexobj(array):
        raise TypeError(f"{name} must be a real number, but it is {value!r}")
    if array.shape != ():
        raise ValueError(f"{name} must be one number, but it has shape {array.shape}")
    return array


def described(value: Any) -> str:
    """What a value is, in words for an error message."""
    if value is None:
        return "None"
    if isinstance(value, np.ndarray | jax.Array):
        return f"an array of {value.dtype}"
    kind = type(value).__name__
    article = "an" if kind[0] in "aeioAEIO" else "a"
    return f"{article} {kind}" + (f" ({value!r})" if isinstance(value, str) else "")
