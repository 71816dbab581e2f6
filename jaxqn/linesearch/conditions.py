"""Conditions on a step length. The searches, the loop and the tests share this module.

Value and slope are phi0 and dphi0 at 0, phi and dphi at alpha.
"""

import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.linalg import eps

__all__ = [
    "agreement",
    "approximate_wolfe",
    "armijo",
    "noise_shown",
    "quasi_wolfe",
    "rounding_noise",
    "strong_curvature",
    "strong_wolfe",
]


def armijo(phi0: Array, dphi0: Array, alpha: Array, phi: Array, c1: float) -> Array:
    """Sufficient decrease: phi ≤ phi0 + c1 alpha dphi0 (Nocedal & Wright, eq. 3.4)."""
    return phi <= phi0 + c1 * alpha * dphi0


def strong_curvature(dphi0: Array, dphi: Array, c2: float) -> Array:
    """|dphi| ≤ c2 |dphi0| (Nocedal & Wright, eq. 3.7b)."""
    return jnp.abs(dphi) <= c2 * jnp.abs(dphi0)


def strong_wolfe(
    phi0: Array, dphi0: Array, alpha: Array, phi: Array, dphi: Array, c1: float, c2: float
) -> Array:
    """Sufficient decrease and a small slope (Nocedal & Wright, eq. 3.7)."""
    return armijo(phi0, dphi0, alpha, phi, c1) & strong_curvature(dphi0, dphi, c2)


def approximate_wolfe(
    phi0: Array, dphi0: Array, phi: Array, dphi: Array, c1: float, c2: float
) -> Array:
    """The Wolfe conditions in terms of slopes, for values at their rounding noise.

        (2 c1 − 1) dphi0 ≥ dphi ≥ c2 dphi0   and   phi ≤ phi0 + rounding_noise(phi0)

    References:
      Hager & Zhang, SIAM J. Optim. 16 (2005), eq. 4.1.
    """
    slopes = ((2 * c1 - 1) * dphi0 >= dphi) & (dphi >= c2 * dphi0)
    return slopes & (phi <= phi0 + rounding_noise(phi0))


def quasi_wolfe(dphi0: Array, dphi: Array, c2: float) -> Array:
    """What remains of the curvature condition where the path bends: dphi ≥ c2 dphi0.

    A minimum at a kink leaves a slope far from 0 on either side.

    References:
      Ferry, Gill, Wong & Zhang, projected-search methods for bound-constrained optimization, 2020.
    """
    return dphi >= c2 * dphi0


def rounding_noise(phi: Array) -> Array:
    """The change of a value that rounding alone can cause: 10 eps |phi|."""
    return 10 * eps(phi.dtype) * jnp.abs(phi)


def agreement(phi0: Array, phi: Array, change: Array, noise: Array) -> Array:
    """Whether the difference of two values agrees with ``change``, the slopes' prediction of it.

    The trapezoidal rule predicts alpha (dphi0 + dphi) / 2. Rounding, or ``noise`` if that is more,
    and half of the difference are allowed for.
    """
    error = jnp.abs(phi - phi0 - change)
    return error <= jnp.maximum(rounding_noise(phi0), noise) + 0.5 * jnp.abs(phi - phi0)


def noise_shown(phi0: Array, near: Array, far: Array, slopes: Array) -> Array:
    """Whether noise beyond rounding is what values contradict their slopes by.

    The disagreement of values and slopes of a smooth function falls as the cube of the distance: to
    an eighth at half the distance. Noise does not fall, and exceeds what both slopes could explain.

    Args:
      phi0: value at 0.
      near: the disagreement of a trial.
      far: that of one about twice as far.
      slopes: what both slopes change the value by over the way to the nearer trial, |dphi0| alpha +
        |dphi| alpha.
    """
    beyond = (near > 2 * rounding_noise(phi0)) & (near > slopes)
    modest = near <= eps(phi0.dtype) ** 0.5 * jnp.abs(phi0)
    return (near >= 0.7 * far) & beyond & modest
