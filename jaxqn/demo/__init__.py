"""The fits behind ``python -m jaxqn``."""

from jaxqn.demo import iris, petals

__all__ = [
    "iris",
    "petals",
]
