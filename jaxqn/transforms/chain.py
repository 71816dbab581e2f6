"""The chain of every alias: a transformation, the learning rate with the sign, a line search."""

from types import EllipsisType
from typing import TypeAlias

import optax

from jaxqn.linesearch import LineSearch
from jaxqn.transforms.linesearch import scale_by_linesearch

__all__ = ["LinesearchOption", "chain"]

LinesearchOption: TypeAlias = LineSearch | optax.GradientTransformation | EllipsisType | None


def chain(
    scale_by: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule | None,
    linesearch: LinesearchOption,
    has_aux: bool,
) -> optax.GradientTransformationExtraArgs:
    """``scale_by``, the learning rate with the sign, and the search if there is one.

    The other arguments are those of :func:`jaxqn.bfgs`.
    """
    rate = (
        optax.scale(-1.0) if learning_rate is None else optax.scale_by_learning_rate(learning_rate)
    )
    if linesearch is ...:
        linesearch = scale_by_linesearch(has_aux=has_aux) if learning_rate is None else None
    elif isinstance(linesearch, LineSearch):
        linesearch = scale_by_linesearch(linesearch, has_aux=has_aux)
    elif not isinstance(linesearch, optax.GradientTransformation | None):
        raise TypeError(
            "linesearch must be a jaxqn line search such as jaxqn.wolfe(), an optax transformation "
            f"such as optax.scale_by_zoom_linesearch(20), or None, but it is a "
            f"{type(linesearch).__name__}"
        )
    return optax.chain(scale_by, rate, *([] if linesearch is None else [linesearch]))
