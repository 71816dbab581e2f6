"""Checks of arguments that rooms at any height need."""

from typing import Any

import jax

__all__ = ["check_count", "check_number"]

_RANGES = {
    "a fraction in [0, 1)": lambda number: 0 <= number < 1,
    "a fraction in (0, 1]": lambda number: 0 < number <= 1,
    "between 0 and 1": lambda number: 0 < number < 1,
    "positive": lambda number: number > 0,
    "at least 0": lambda number: number >= 0,
}


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number that a program is compiled for: pairs, trials, lanes."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, but it is {value!r}")
    return int(value)


def check_number(name: str, value: Any, expected: str) -> Any:
    """A hyperparameter as a float; what is traced, as in a schedule, is believed as it is."""
    if isinstance(value, jax.core.Tracer):
        return value
    if not _RANGES[expected](value):
        raise ValueError(f"{name} must be {expected}, but it is {value}")
    return float(value)
