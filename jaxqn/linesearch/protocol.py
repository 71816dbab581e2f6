"""The line-search protocol."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxqn._typing import Array
from jaxqn.checks import check_count, described

__all__ = ["Bend", "LineSearch", "check_linesearch", "check_options"]


class Bend(NamedTuple):
    """What a search sees of a trial on a path x(alpha) that bends at bounds.

    Where the path bends phi has a kink, and Wolfe's conditions may hold nowhere near it.

    Attributes:
      promised: gᵀ(x(alpha) − x), which replaces alpha phi'(0): variables at bounds stay behind.
      clips: whether the trial holds a variable at a bound that moved there.
      landed: ``(lo, alpha, wanted) -> alpha``: the last bend before alpha, if that is well beyond
        lo; whether it is ``wanted`` at all.
      endless: ``() -> `` whether some variable moves on for ever along the path.
    """

    promised: Array
    clips: Array
    landed: Callable[[Array, Array, Array], Array]
    endless: Callable[[], Array]


class LineSearch(NamedTuple):
    """A search along phi(alpha) = f(x + alpha d), as a value.

    Attributes:
      init: ``(phi0, dphi0, alpha0) -> state``; the slope ``dphi0`` is negative. Every state has
        the field ``alpha``, the next step length to try, and may have the field ``noise``: by how
        much values contradict slopes where noise beyond rounding shows, else 0.
      step: ``(state, phi, dphi) -> (state, done, failed)``, given value and slope at
        ``state.alpha``: whether that step is acceptable, and whether to give up. A non-finite
        value or slope means "too far". On a path that bends it is also given a :class:`Bend`.
      bends: whether ``step`` takes that.
    """

    init: Callable[[Array, Array, Array], Any]
    step: Callable[..., tuple[Any, Array, Array]]
    bends: bool = False


def check_options(max_trials: int, **options: tuple[float, float, float]) -> None:
    """Raise unless every value is in its interval [low, high), and there is at least one trial."""
    for name, (value, low, high) in options.items():
        if not low <= value < high:
            raise ValueError(f"{name} must be at least {low} and below {high}, but it is {value}")
    check_count("max_trials", max_trials)


def check_linesearch(linesearch: Any, *, bends: bool = False) -> None:
    """Raise unless ``linesearch`` is a :class:`LineSearch`, and fit for bounds if it ``bends``."""
    if not isinstance(linesearch, LineSearch):
        raise TypeError(
            "linesearch must be a jaxqn.LineSearch such as jaxqn.wolfe() or "
            f"jaxqn.backtracking(), but it is {described(linesearch)}"
        )
    if bends and not linesearch.bends:
        raise TypeError(
            "bounds need a linesearch whose step takes a Bend, such as jaxqn.wolfe() or "
            "jaxqn.backtracking(), but this one has bends=False: leave one of them out"
        )
