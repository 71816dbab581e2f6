"""A word to callers who compile the same code again and again."""

import warnings
import weakref
from types import CodeType, FunctionType
from typing import Any

__all__ = ["notice_function"]

TIMES = 3
"""New function objects of the same code after which there is a word."""

_KNOWN: weakref.WeakSet[FunctionType] = weakref.WeakSet()
_COUNT: dict[CodeType, int] = {}


def notice_function(fun: Any) -> None:
    """Warn once where a third function object is made from the same code, as by a lambda in a loop.

    Programs are found again by the function object: another one of the same code compiles anew.
    """
    if not isinstance(fun, FunctionType) or fun in _KNOWN:
        return
    _KNOWN.add(fun)
    code = fun.__code__
    _COUNT[code] = _COUNT.get(code, 0) + 1
    if _COUNT[code] == TIMES:
        warnings.warn(
            f"{fun.__qualname__} ({code.co_filename}, line {code.co_firstlineno}) has been handed "
            f"over as {TIMES} new function objects, and each of them was compiled: define it once, "
            "outside of the loop or function that calls jaxqn, and pass its data through args",
            stacklevel=4,
        )
