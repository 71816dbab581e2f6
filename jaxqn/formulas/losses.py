"""Robust losses rho(z) of squared residuals, z = (r/C)², by SciPy's names and definitions.

A loss is rho with rho(0) = 0 and rho'(0) = 1. It costs ½ C² Σ rho(z), and its weights
rho'(z) say how much of every residual counts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxqn._typing import Array

__all__ = ["LOSSES", "Loss", "rho_and_weight"]

Loss = Callable[[Array], Array]
"""``z -> rho(z)``, entry by entry."""


def huber(z: Array) -> Array:
    """Z up to 1, then 2 √z − 1: squares near 0, absolute values far out."""
    return jnp.where(z <= 1, z, 2 * jnp.sqrt(jnp.where(z <= 1, 1, z)) - 1)


def soft_l1(z: Array) -> Array:
    """2 (√(1 + z) − 1), a smooth form of :func:`huber`."""
    return 2 * z / (jnp.sqrt(1 + z) + 1)


def cauchy(z: Array) -> Array:
    """log(1 + z): outliers lose most of their weight."""
    return jnp.log1p(z)


def arctan(z: Array) -> Array:
    """Arctan z: a residual costs π/2 at most."""
    return jnp.arctan(z)


LOSSES: dict[str, Loss | None] = {
    "linear": None,
    "huber": huber,
    "soft_l1": soft_l1,
    "cauchy": cauchy,
    "arctan": arctan,
}
"""The losses by name; "linear" is rho(z) = z."""


def rho_and_weight(loss: Loss | None, z: Array) -> tuple[Array, Array | None]:
    """Rho(z), and the weights rho'(z), not negative; ``None`` for the weights 1 of "linear"."""
    if loss is None:
        return z, None
    rho, weight = jax.jvp(loss, (z,), (jnp.ones_like(z),))
    return rho, jnp.maximum(weight, 0)
