"""Where a search begins: the first step length that it tries."""

import jax.numpy as jnp

from jaxqn._typing import Array

__all__ = ["first_step", "next_step"]


def first_step(f: Array, g_length: Array) -> Array:
    """Length of the first step along −g: min(1, 2 |f|/‖g‖), whatever the scale of f.

    2 |f|/‖g‖ is where a parabola with this slope that bottoms out at 0 has its minimum.
    """
    distance = 2 * jnp.abs(f) / g_length
    return jnp.where(distance > 0, jnp.minimum(distance, 1), jnp.ones_like(distance))


def next_step(alpha: Array, dphi0: Array, dphi: Array, decrease: Array, slope: Array) -> Array:
    """Step length that the search after one along a quasi-Newton direction tries first.

    It is 1, unless the last search had to stop short of that, as did the minimiser on its line by
    the slopes at both ends. Then it is where a parabola with the new slope repeats the decrease:

        min(1, 1.01 · 2 decrease/|slope|)

    The factor 1.01 lets the step be 1 again once the method converges superlinearly.

    Args:
      alpha: step length that the last search accepted.
      dphi0: its slope at 0.
      dphi: its slope at alpha.
      decrease: what it took off the objective.
      slope: the slope at 0 along the new direction.

    References:
      Nocedal & Wright, 2006, eq. 3.60 and the paragraph after it.
    """
    minimiser = alpha * dphi0 / (dphi0 - dphi)
    short = (alpha < 1) & (minimiser > 0) & (minimiser < 1)
    repeated = 2.02 * decrease / jnp.abs(slope)
    return jnp.where(short & (repeated > 0), jnp.minimum(repeated, 1), jnp.ones_like(alpha))
