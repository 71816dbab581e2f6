"""Where a search begins: the first step length that it tries."""

import jax.numpy as jnp

from jaxqn._typing import Array

__all__ = ["first_step", "next_step", "stopped_short"]


def first_step(f: Array, g_length: Array) -> Array:
    """Length of the first step along −g: min(1, 2 |f|/‖g‖), whatever the scale of f.

    2 |f|/‖g‖ is where a parabola with this slope that bottoms out at 0 has its minimum.
    """
    distance = 2 * jnp.abs(f) / g_length
    return jnp.where(distance > 0, jnp.minimum(distance, 1), jnp.ones_like(distance))


def stopped_short(alpha: Array, dphi0: Array, dphi: Array) -> Array:
    """Whether a step is shorter than 1, and so is the way to the minimiser by the slopes."""
    minimiser = alpha * dphi0 / (dphi0 - dphi)
    return (alpha < 1) & (minimiser > 0) & (minimiser < 1)


def next_step(decrease: Array, dphi0: Array) -> Array:
    """Step length at which a parabola with slope dphi0 at 0 repeats the last decrease, if below 1.

        min(1, 1.01 · 2 decrease/|dphi0|)

    What to try first after a quasi-Newton step that stopped short; after any other it is 1. The
    factor 1.01 lets it be 1 again once the method converges superlinearly.

    References:
      Nocedal & Wright, 2006, eq. 3.60 and the paragraph after it.
    """
    alpha = 2.02 * decrease / jnp.abs(dphi0)
    return jnp.where(alpha > 0, jnp.minimum(alpha, 1), jnp.ones_like(alpha))
