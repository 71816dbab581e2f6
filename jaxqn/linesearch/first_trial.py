"""Where a search begins: the first step length that it tries."""

import jax.numpy as jnp

from jaxqn._typing import Array

__all__ = [
    "LARGEST_PROMISE",
    "REPEATED_DECREASE",
    "expected_decrease",
    "parabola_step",
    "stopped_short",
]

REPEATED_DECREASE = 1.01
"""The part of the last decrease to expect again. It exceeds 1: the first trial can then be 1 once a
method converges superlinearly (Nocedal & Wright, 2006, after eq. 3.60)."""

LARGEST_PROMISE = 10.0
"""The largest decrease of f that a first trial may promise, over |f| or over the last decrease if
that is more. A model that promises more has scaled H out of proportion."""


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
    """The decrease that a quasi-Newton step may promise, given that of the last step.

    After a step that stopped short: ``REPEATED_DECREASE`` times its decrease. After any other:
    ``LARGEST_PROMISE`` times |f| or that decrease, so that the first trial is 1 unless the model is
    out of proportion.
    """
    return jnp.where(
        short, REPEATED_DECREASE * decrease, LARGEST_PROMISE * jnp.maximum(jnp.abs(f), decrease)
    )


def stopped_short(alpha: Array, dphi0: Array, dphi: Array) -> Array:
    """Whether a step is shorter than 1, and so is the way to the minimiser by the slopes.

    That way is alpha dphi0/(dphi0 − dphi), for dphi0 < 0.
    """
    return (alpha < 1) & (alpha * dphi0 > dphi0 - dphi)
