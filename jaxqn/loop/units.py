"""Parameters in units of their sizes: a run over z where x = x_scale z, entry by entry.

The parameters of one model may be 500 and 1e-4. In float32 a sum or a comparison over both then
sees only the larger. All units are powers of two, so that dividing by them changes no digit; a
``x_scale`` of ``None`` stands for 1.

A point, a gradient and an inverse Hessian change their units in different ways:

    z = x / x_scale,    ∂f/∂z = x_scale ∂f/∂x,    H_z = diag(x_scale)⁻¹ H_x diag(x_scale)⁻¹.
"""

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, ArrayTree
from jaxqn.linalg import eps, pooled, power_of_two, vectors

__all__ = [
    "MAX_AUTOMATIC",
    "automatic",
    "from_scaled",
    "gradient_from_scaled",
    "gradient_to_scaled",
    "inverse_hessian_to_scaled",
    "to_scaled",
    "units_of_zeros",
]

MAX_AUTOMATIC = 256
"""Entries up to which x may be the parameters of a model, each with a size of its own. More entries
are the weights of a network."""

ROUNDED_ZERO = 2e-16
"""An entry of at most this fraction of the largest counts as zero: cos(π/2) is such an entry."""


LEAST_SPREAD = 0.9
"""The standard deviation of log10|x| above which entries have units of their own. Random or evenly
spread entries of one unit have about 0.5; 200, −1 and 5 have 0.95."""


def automatic(x: ArrayTree) -> ArrayTree:
    """The powers of two next to |x| if log10|x| has a standard deviation above 0.9, else 1.

    A zero says nothing of its unit, and gets 1.
    """
    largest = vectors.inf_norm(x)

    def known(a: Array) -> Array:
        return jnp.abs(a) > ROUNDED_ZERO * largest

    def moments(a: Array) -> Array:
        """How many entries are known, and the sums of their logarithms and of the squares."""
        logs = jnp.log10(jnp.where(known(a), jnp.abs(a), 1))
        return jnp.sum(jnp.stack([known(a).astype(a.dtype), logs, logs**2]), axis=1)

    count, total, squares = jnp.sum(jnp.stack([moments(a.ravel()) for a in pooled(x)]), axis=0)
    spread = count * squares - total**2 > (LEAST_SPREAD * count) ** 2
    return jax.tree.map(lambda a: jnp.where(spread & known(a), power_of_two(jnp.abs(a)), 1), x)


def units_of_zeros(z: ArrayTree, f: Array, g: ArrayTree) -> ArrayTree:
    """Units, over those of z, for entries whose value says nothing of their size; else 1.

    A change of such an entry by |f/∂f/∂z| changes f by all of its value. Where that is below √eps,
    and z not above 100 times it, the unit of z says nothing: z is the amplitude 0 of a signal of
    size 1e-15.
    """

    def of_leaf(z: Array, g: Array) -> Array:
        size = jnp.abs(f).astype(z.dtype) / jnp.where(g == 0, 1, jnp.abs(g))
        tiny = (g != 0) & (size <= eps(z.dtype) ** 0.5) & (jnp.abs(z) <= 100 * size)
        return jnp.where(tiny, power_of_two(size), 1)

    return jax.tree.map(of_leaf, z, g)


def to_scaled(x: ArrayTree, x_scale: ArrayTree | None) -> ArrayTree:
    """Z = x / x_scale, for a point or a step."""
    return x if x_scale is None else jax.tree.map(jnp.divide, x, x_scale)


def from_scaled(z: ArrayTree, x_scale: ArrayTree | None) -> ArrayTree:
    """X = x_scale z, for a point or a step."""
    return z if x_scale is None else jax.tree.map(jnp.multiply, z, x_scale)


def gradient_to_scaled(g: ArrayTree, x_scale: ArrayTree | None) -> ArrayTree:
    """∂f/∂z = x_scale ∂f/∂x."""
    return from_scaled(g, x_scale)


def gradient_from_scaled(g: ArrayTree, x_scale: ArrayTree | None) -> ArrayTree:
    """∂f/∂x = ∂f/∂z / x_scale."""
    return to_scaled(g, x_scale)


def inverse_hessian_to_scaled(H: ArrayTree, x_scale: ArrayTree | None, *, dense: bool) -> ArrayTree:
    """H_z from H_x: a matrix for a ``dense`` method, else a diagonal like x."""
    if dense:
        return H if x_scale is None else H / jnp.outer(x_scale, x_scale)
    return to_scaled(to_scaled(H, x_scale), x_scale)
