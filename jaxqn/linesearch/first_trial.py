"""The first step length that a search tries."""

import jax.numpy as jnp

from jaxqn._typing import Array

__all__ = [
    "LARGEST_PROMISE",
    "REPEATED_DECREASE",
    "expected_decrease",
    "parabola_step",
    "stopped_short",
    "trial_along_gradient",
]

REPEATED_DECREASE = 1.01
"""The part of the last decrease to expect again. A factor above 1 lets the first trial be 1 once a
method converges superlinearly (Nocedal & Wright, 2006, after eq. 3.60)."""

LARGEST_PROMISE = 10.0
"""The largest decrease of f that a first trial may promise, over |f| or over the last decrease if
that is more. A model that promises more has scaled H out of proportion."""


def parabola_step(decrease: Array, slope: Array) -> Array:
    """The minimiser of a parabola with that slope at 0 and that decrease to its minimum; at most 1.

        min(1, 2 decrease/|slope|)

    A search along a quasi-Newton direction takes the decrease from :func:`expected_decrease`; a
    search along −g begins with :func:`trial_along_gradient`.

    References:
      Nocedal & Wright, 2006, eq. 3.60.
    """
    alpha = 2 * decrease / jnp.abs(slope)
    return jnp.where(alpha > 0, jnp.minimum(alpha, 1), jnp.ones_like(alpha))


def trial_along_gradient(decrease: Array, slope: Array, length: Array) -> Array:
    """The first trial along −g, or along a multiple d of −g: a step of length 1 at most.

        min(1/‖d‖, 2 |f|/|φ'(0)|),   φ'(0) = slope · ‖d‖

    The decrease is |f|: a parabola with that decrease has its minimum at 0 for f > 0, and the trial
    follows the scale of f. ``decrease`` and ``slope`` may both be divided by one positive number.

    Args:
      decrease: |f| at the start.
      slope: the slope of f per unit of length along d.
      length: ‖d‖.

    Example:
      >>> f, length = jnp.float32(2.0), jnp.float32(5.0)  # d = −g
      >>> round(float(trial_along_gradient(f, length, length)), 6)  # 2 |f|/‖g‖² < 1/‖g‖
      0.16
    """
    return parabola_step(decrease, slope) / length


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
    """Whether a step is shorter than 1, and the minimiser is nearer than 1 by the slopes.

    The slopes put the minimiser at alpha dphi0/(dphi0 − dphi), for dphi0 < 0.
    """
    return (alpha < 1) & (alpha * dphi0 > dphi0 - dphi)
