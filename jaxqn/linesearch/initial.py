"""Where a search begins: the first step length that it tries."""

import jax.numpy as jnp

from jaxqn._typing import Array

__all__ = ["AGAIN", "AT_MOST", "expected_decrease", "parabola_step", "stopped_short"]

AGAIN = 1.01
"""What part of the last decrease to expect again: more than 1, so that the step that repeats it can
be 1 again once a method converges superlinearly (Nocedal & Wright, 2006, after eq. 3.60)."""

AT_MOST = 10.0
"""How many times |f|, or the last decrease where that is more, a step may promise to decrease f by.
A model that promises more has scaled H out of all proportion."""


def parabola_step(decrease: Array, slope: Array) -> Array:
    """The minimiser of a parabola with that slope at 0 and that decrease to its minimum; at most 1.

        min(1, 2 decrease/|slope|)

    A search along −g, in units of length, begins with the decrease |f|: whatever the scale of f,
    that is where a parabola bottoms out at 0; any other with :func:`expected_decrease`.

    References:
      Nocedal & Wright, 2006, eq. 3.60.
    """
    alpha = 2 * decrease / jnp.abs(slope)
    return jnp.where(alpha > 0, jnp.minimum(alpha, 1), jnp.ones_like(alpha))


def expected_decrease(f: Array, decrease: Array, short: Array) -> Array:
    """What a quasi-Newton step may promise, after one with that decrease to f.

    After a step that stopped short, ``AGAIN`` times its decrease. After any other, so much that the
    first trial is 1 unless the model is wild: ``AT_MOST`` times |f|, or that decrease.
    """
    return jnp.where(short, AGAIN * decrease, AT_MOST * jnp.maximum(jnp.abs(f), decrease))


def stopped_short(alpha: Array, dphi0: Array, dphi: Array) -> Array:
    """Whether a step is shorter than 1, and so is the way to the minimiser by the slopes.

    That way is alpha dphi0/(dphi0 − dphi), for dphi0 < 0.
    """
    return (alpha < 1) & (alpha * dphi0 > dphi0 - dphi)
