"""Units of the parameters: a run over z where x = u z, entry by entry.

Parameters of a model may be 500 and 1e-4 at once. In float32 a step or a test of convergence that
adds or compares what belongs to the one and to the other then sees the one alone. All units are
powers of two, so that measuring in them changes no digit.
"""

import jax
import jax.numpy as jnp

from jaxqn import _stacks
from jaxqn._numerics import power_of_two
from jaxqn._packing import pooled
from jaxqn._typing import Array, ArrayTree

__all__ = ["MODEL", "automatic", "in_units", "out_of_units"]

MODEL = 256
"""Entries up to which x may be the parameters of a model, each with a meaning; more are weights."""

ROUNDED_ZERO = 2e-16
"""An entry of no more than this beside the largest counts as zero: cos(π/2) is one."""


def automatic(x: ArrayTree) -> ArrayTree:
    """Units next to |x|, where x spreads over decades: where log10|x| has a deviation above 1.

    Entries that are random, or evenly spread, and of one unit have about 0.5. A zero tells nothing
    of its unit; that is 1.
    """
    largest = _stacks.inf_norm(x)

    def known(a: Array) -> Array:
        return jnp.abs(a) > ROUNDED_ZERO * largest

    def moments(a: Array) -> Array:
        """How many entries are known, and the sums of their logarithms and of the squares."""
        logs = jnp.log10(jnp.where(known(a), jnp.abs(a), 1))
        return jnp.sum(jnp.stack([known(a).astype(a.dtype), logs, logs**2]), axis=1)

    count, total, squares = jnp.sum(jnp.stack([moments(a.ravel()) for a in pooled(x)]), axis=0)
    spread = count * squares - total**2 > count**2
    return jax.tree.map(lambda a: jnp.where(spread & known(a), power_of_two(jnp.abs(a)), 1), x)


def in_units(x: ArrayTree, x_scale: ArrayTree | None) -> ArrayTree:
    """What x is in these units, z = x / u; also what H g is."""
    return x if x_scale is None else jax.tree.map(jnp.divide, x, x_scale)


def out_of_units(z: ArrayTree, x_scale: ArrayTree | None) -> ArrayTree:
    """What z is outside of them, x = u z; also what a gradient by x is by z."""
    return z if x_scale is None else jax.tree.map(jnp.multiply, z, x_scale)
