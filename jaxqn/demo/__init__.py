"""The fit behind ``python -m jaxqn``."""

from jaxqn.demo import iris

__all__ = [
    "iris",
]
