"""The methods for equations that go by a name."""

from jaxqn.quasi_newton.inverse_jacobian import (
    InverseJacobian,
    broyden_jacobian,
    newton_jacobian,
)
from jaxqn.quasi_newton.secant_memory import newton_krylov, secant_memory

__all__ = ["ROOT_METHODS", "root_method"]

ROOT_METHODS = (
    "anderson",
    "broyden",
    "broyden-bad",
    "lbroyden",
    "lbroyden-bad",
    "newton",
    "newton-krylov",
)
"""Names that :func:`jaxqn.root` knows."""


def root_method(name: str, memory: int) -> InverseJacobian:
    """The method of that name, with so many pairs if it has limited memory."""
    if name not in ROOT_METHODS:
        known = ", ".join(ROOT_METHODS)
        raise ValueError(f"unknown method {name!r}; the known ones are {known}")
    if name.startswith("broyden"):
        return broyden_jacobian(bad=name == "broyden-bad")
    if name == "anderson":
        return secant_memory(memory, form="anderson")
    if name.startswith("lbroyden"):
        return secant_memory(memory, form="bad" if name == "lbroyden-bad" else "good")
    return newton_jacobian() if name == "newton" else newton_krylov()
