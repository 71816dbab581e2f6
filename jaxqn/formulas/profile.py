"""Where a profile reaches a level: trials of a root search, and the level itself."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxqn._typing import Array, compiled

__all__ = ["ProfilePoint", "normal_quantile", "profile_trial", "student_quantile"]

GROWTH = 4.0
"""The largest ratio of a trial to the one before, while nothing is above the level."""

HALVINGS = 70


class ProfilePoint(NamedTuple):
    """A point of a profile t(tau), or a batch of them.

    Attributes:
      tau: distance from the minimum, in standard errors; infinite for a point that is not known.
      t: the root of twice the rise of f; infinite where f is not finite.
      slope: dtau/dt.
    """

    tau: Array
    t: Array
    slope: Array


@compiled
def profile_trial(level: Array, low: ProfilePoint, high: ProfilePoint, halve: Array) -> Array:
    """The next trial of the search for t(tau) = level.

    Between two points it is the cubic of Hermite for tau as a function of t, which for the profile
    of a likelihood is nearly a straight line; the middle where that is none. With nothing above the
    level yet, it is Newton's step from below, within four times the distance.

    Args:
      level: what t is to reach.
      low: the farthest point with t < level.
      high: the nearest point with t ≥ level.
      halve: whether to take the middle all the same.

    Returns:
      tau, shape ``()``.

    Example:
      >>> low = ProfilePoint(*map(jnp.asarray, (0.0, 0.0, 1.0)))  # tau = t + t²/10
      >>> high = ProfilePoint(*map(jnp.asarray, (5.6, 4.0, 1.8)))
      >>> round(float(profile_trial(jnp.asarray(2.0), low, high, jnp.asarray(False))), 4)
      2.4

    References:
      Press et al., Numerical Recipes, 3rd ed., 2007, section 9.2, for a bracket and a model.
    """
    h = jnp.where(jnp.isfinite(high.t), high.t, low.t + 1) - low.t
    u = (level - low.t) / h
    cubic = (
        (1 + 2 * u) * (1 - u) ** 2 * low.tau
        + u * (1 - u) ** 2 * h * low.slope
        + u**2 * (3 - 2 * u) * high.tau
        - u**2 * (1 - u) * h * high.slope
    )
    within = (cubic > low.tau) & (cubic < high.tau) & jnp.isfinite(high.t) & ~halve
    between = jnp.where(within, cubic, 0.5 * (low.tau + high.tau))
    newton = low.tau + (level - low.t) * low.slope
    useful = (newton > low.tau) & (newton <= GROWTH * low.tau)
    beyond = jnp.where(useful, newton, GROWTH * low.tau)
    return jnp.where(jnp.isfinite(high.tau), between, beyond)


@compiled
def normal_quantile(level: Array) -> Array:
    """The number within which a standard normal one falls with this probability.

    Example:
      >>> round(float(normal_quantile(0.95)), 3)
      1.96
    """
    return jax.scipy.special.ndtri(0.5 * (1 + level))


@compiled
def student_quantile(level: Array, dof: Array) -> Array:
    """The number within which Student's t falls with this probability.

    P(|t| ≤ q) = I(q²/(dof + q²); 1/2, dof/2) with the incomplete beta function I, inverted by
    halving.

    Example:
      >>> round(float(student_quantile(0.95, 10.0)), 3)
      2.228
    """
    level, dof = jnp.asarray(level), jnp.asarray(dof)

    def inside(z: Array) -> Array:
        """The probability that 1 − dof/(dof + t²) is within 1 − z."""
        return 1 - jax.scipy.special.betainc(0.5 * dof, jnp.full_like(dof, 0.5), z)

    def halved(_: int, log_bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = log_bounds
        middle = 0.5 * (low + high)
        too_far = inside(jnp.exp(middle)) > level
        return jnp.where(too_far, middle, low), jnp.where(too_far, high, middle)

    tiny = jnp.log(jnp.full_like(dof, 2 * jnp.finfo(dof.dtype).tiny))
    low, high = jax.lax.fori_loop(0, HALVINGS, halved, (tiny, jnp.zeros_like(dof)))
    return jnp.sqrt(dof * jnp.expm1(-0.5 * (low + high)))
