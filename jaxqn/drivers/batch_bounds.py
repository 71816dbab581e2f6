"""Bounds of a batch: the same for all problems, or with an axis that runs over them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import ArrayTree
from jaxqn.checks import check_bounds, check_x0
from jaxqn.drivers.in_axes import axes_of, spread_axes
from jaxqn.loop import Box, MinimizeOptions

__all__ = ["with_box"]


def with_box(
    options: MinimizeOptions, in_axes: Any, x0: ArrayTree, args: tuple[Any, ...]
) -> tuple[Any, tuple[Any, ...]]:
    """``in_axes`` and the arguments ``(x0, *args)``; with bounds, their box comes last in both."""
    arguments, bounds = (x0, *args), options["bounds"]
    if bounds is None:
        return in_axes, arguments
    several, own = isinstance(in_axes, tuple | list), None
    if several and len(in_axes) == len(arguments) + 1:
        *in_axes, own = in_axes
    leaves, structure = jax.tree.flatten(x0)
    of_x0 = axes_of(in_axes, arguments)[: len(leaves)]
    first = [_first(leaf, axis) for leaf, axis in zip(leaves, of_x0, strict=True)]
    one = check_x0(jax.tree.unflatten(structure, first))[0]
    if own is None:
        box, axis = Box(*check_bounds(bounds, one)), None
    else:
        sides = own if isinstance(own, tuple | list) and len(own) == 2 else (own, own)
        axes = [spread_axes(side, one) for side in sides]
        box, axis = Box(*check_bounds(bounds, one, axes)), 0
    prefixes = in_axes if several else (in_axes,) * len(arguments)
    return (*prefixes, axis), (*arguments, box)


def _first(leaf: Any, axis: int | None) -> Any:
    """The first problem's part of an array."""
    if axis is None or not -jnp.ndim(leaf) <= axis < jnp.ndim(leaf) or 0 in jnp.shape(leaf):
        return leaf  # what is wrong with it, others say
    return (np if isinstance(leaf, np.ndarray) else jnp).take(leaf, 0, axis=axis)
