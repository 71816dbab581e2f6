"""Checks of arguments that rooms at any height need."""

from typing import Any

__all__ = ["check_count"]


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number that a program is compiled for: pairs, trials, lanes."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, but it is {value!r}")
    return int(value)
