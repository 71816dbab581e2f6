"""Newton's method with the spectral correction, as a quasi-Newton approximation."""

import functools
from typing import Any, Literal

import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.formulas import SpectralCorrection, check_choices, spectral_correction
from jaxqn.linalg import dot, eps, power_of_two
from jaxqn.quasi_newton.dense import dense
from jaxqn.quasi_newton.dense_state import DenseState, with_inverse
from jaxqn.quasi_newton.protocol import QuasiNewton

__all__ = ["corrected_newton"]


@functools.cache
def corrected_newton(
    *, rank: int | Literal["all"] = "all", floor: float | None = None, mode: str = "reflect"
) -> QuasiNewton:
    """The corrected inverse of the exact Hessian, for :func:`jaxqn.minimize` and small n.

    At every new point H is :func:`jaxqn.spectral_inverse` of the Hessian there, in units in which
    its diagonal is near ±1, so that −H g is a direction of descent whatever the Hessian is:
    singular, indefinite or zero. From a stationary point that is no minimum the run leaves along
    eigenvectors with negative eigenvalues. Pairs are ignored. H is the identity where the Hessian
    has entries that are not finite.

    Args:
      rank: how many eigenvalues may be corrected; see :func:`jaxqn.spectral_inverse`.
      floor: smallest eigenvalue left alone, as a fraction of the largest magnitude; by default
        max(8 eps, 1e-12), little above the rounding of a Hessian in those units.
      mode: "reflect" (saddle-free Newton), "clip" (modified Newton) or "drop".

    Returns:
      A :class:`jaxqn.QuasiNewton` over flat vectors that asks its host for the Hessian. Memory: n².

    Raises:
      ValueError: ``rank`` or ``mode`` is none of these; a ``floor`` out of (0, 1], when it is used.

    Cost: one Hessian (n Hessian-vector products) and one eigendecomposition, O(n³), per iteration.

    Example:
      >>> from jaxqn import minimize
      >>> saddle = lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4
      >>> result = minimize(saddle, jnp.zeros(2), method=corrected_newton())
      >>> [round(abs(float(v)), 3) for v in result.x]
      [0.0, 0.707]

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, section 3.4; Dauphin et al., NeurIPS
      2014, for "reflect".
    """
    check_choices(rank, mode)

    def renew(state: DenseState, s: Array, y: Array, B: Array) -> tuple[DenseState, Array]:
        del s, y  # the Hessian says more
        units = units_of_diagonal(B)
        lowest = max(8 * eps(B.dtype), 1e-12) if floor is None else floor
        correction, finite = spectrum_of(_in_units(B, units), rank=rank, floor=lowest, mode=mode)
        needed = (correction.rank + correction.uncorrected > 0) | ~finite
        H = _in_units(correction.inverse, units)
        new = with_inverse(state, H, finite, needed)
        return new, _negative_direction(B, H, correction.eigenvalues)

    return dense(panel=0)._replace(needs="hessian", renew=renew)


def units_of_diagonal(B: Array) -> Array:
    """The powers of two next to 1/√|Bᵢᵢ|, in which the diagonal is near ±1; 1 for all zeros.

    An entry below eps times the largest is rounding of that, and gets its unit.
    """
    sizes = jnp.abs(jnp.diag(B))
    sizes = jnp.where(jnp.isfinite(sizes), sizes, 0)
    largest = jnp.max(sizes)
    known = sizes > eps(B.dtype) * largest
    return power_of_two(1 / jnp.sqrt(jnp.where(known, sizes, jnp.where(largest > 0, largest, 1))))


def _in_units(matrix: Array, units: Array) -> Array:
    """diag(units) · matrix · diag(units)."""
    return matrix * units[:, None] * units[None, :]


def _negative_direction(B: Array, H: Array, eigenvalues: Array) -> Array:
    """A vector v with vᵀB v = −1 among eigenvectors with negative eigenvalues; 0 without any.

    B H is 1 along directions that needed no correction, and at most 0 along negative ones, so that
    w − B H w has no part along the former. Eigenvalues above −√eps times the largest count as 0.
    """
    w = jnp.cos(jnp.arange(1, len(B) + 1, dtype=B.dtype))
    v = dot(H, w - dot(B, dot(H, w)))
    curvature = -dot(v, dot(B, v))
    least = eps(B.dtype) ** 0.5 * jnp.max(jnp.abs(eigenvalues))
    bends_down = (eigenvalues[0] < -least) & (curvature > 0) & jnp.isfinite(curvature)
    return jnp.where(bends_down, v / jnp.sqrt(jnp.where(bends_down, curvature, 1)), 0)


def spectrum_of(B: Array, **options: Any) -> tuple[SpectralCorrection, Array]:
    """The correction of a Hessian, and whether the Hessian is finite; if not, it is meaningless."""
    entries = jnp.isfinite(B)
    return spectral_correction(jnp.where(entries, B, 0), **options), jnp.all(entries)
