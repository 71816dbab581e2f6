"""The line-search protocol."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxqn._typing import Array


class LineSearch(NamedTuple):
    """A search along phi(alpha) = f(x + alpha d), as a value.

    Every state has the fields ``alpha`` (the next trial, or the accepted one once ``done``),
    ``done`` (the last trial is acceptable), ``failed`` (give up) and ``improved`` (the last trial
    has the lowest value so far, below phi(0): a host that keeps it loses nothing on failure).

    Attributes:
      init: ``(phi0, dphi0, alpha0) -> state``; the slope ``dphi0`` is negative.
      step: ``(state, phi, dphi) -> state``, given value and slope at ``state.alpha``. A non-finite
        value or slope means "too far".
    """

    init: Callable[[Array, Array, Array], Any]
    step: Callable[[Any, Array, Array], Any]


class Trial(NamedTuple):
    """A point of the line function: ``alpha``, ``phi(alpha)`` and ``phi'(alpha)``."""

    alpha: Array
    phi: Array
    dphi: Array
