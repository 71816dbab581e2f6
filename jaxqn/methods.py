"""The methods that go by a name."""

from jaxqn.memory import lbfgs_memory
from jaxqn.newton import corrected_newton
from jaxqn.quasi_newton import METHODS as QUASI_NEWTON_METHODS
from jaxqn.quasi_newton import QuasiNewton

__all__ = ["METHODS", "method_by_name"]

METHODS: dict[str, QuasiNewton] = {
    **QUASI_NEWTON_METHODS,
    "lbfgs": lbfgs_memory(),
    "newton": corrected_newton(),
}
"""The methods :func:`jaxqn.minimize` knows by name."""


def method_by_name(name: str) -> QuasiNewton:
    """The method of that name; an unknown name is an error that lists the known ones."""
    try:
        return METHODS[name]
    except KeyError:
        known = ", ".join(sorted(METHODS))
        raise ValueError(f"unknown method {name!r}; the known ones are {known}") from None
