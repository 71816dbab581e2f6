"""Newton's method with the spectral correction, as a quasi-Newton approximation."""

import functools
from typing import Any, Literal

import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.formulas import SpectralCorrection, check_choices, spectral_correction
from jaxqn.quasi_newton.dense import DenseState, dense, with_inverse
from jaxqn.quasi_newton.protocol import QuasiNewton

__all__ = ["corrected_newton"]


@functools.cache
def corrected_newton(
    *, rank: int | Literal["all"] = "all", floor: float | None = None, mode: str = "reflect"
) -> QuasiNewton:
    """The corrected inverse of the exact Hessian, for :func:`jaxqn.minimize` and small n.

    At every new point H is :func:`jaxqn.spectral_inverse` of the Hessian there, so that −H g is a
    direction of descent whatever the Hessian is: singular, indefinite or zero. Pairs are ignored. H
    is the identity where the Hessian has entries that are not finite.

    Args:
      rank: how many eigenvalues may be corrected; see :func:`jaxqn.spectral_inverse`.
      floor: smallest eigenvalue left alone, as a fraction of the largest magnitude.
      mode: "reflect" (saddle-free Newton), "clip" (modified Newton) or "drop".

    Returns:
      A :class:`jaxqn.QuasiNewton` over flat vectors that asks its host for the Hessian. Memory: n².

    Raises:
      ValueError: ``rank`` or ``mode`` is none of these; a ``floor`` out of (0, 1], when it is used.

    Cost: one Hessian (n Hessian-vector products) and one eigendecomposition, O(n³), per iteration.

    Example:
      >>> from jaxqn import minimize
      >>> saddle = lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4
      >>> result = minimize(saddle, jnp.array([1.0, 1e-3]), method=corrected_newton())
      >>> [round(abs(float(v)), 3) for v in result.x]
      [0.0, 0.707]

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, section 3.4; Dauphin et al., NeurIPS
      2014, for "reflect".
    """
    check_choices(rank, mode)

    def renew(state: DenseState, s: Array, y: Array, B: Array) -> DenseState:
        del s, y  # the Hessian says more
        correction, finite = spectrum_of(B, rank=rank, floor=floor, mode=mode)
        needed = (correction.rank + correction.uncorrected > 0) | ~finite
        return with_inverse(state, correction.inverse, finite, needed)

    return dense(panel=0)._replace(needs="hessian", renew=renew)


def spectrum_of(B: Array, **options: Any) -> tuple[SpectralCorrection, Array]:
    """The correction of a Hessian, and whether the Hessian is finite; if not, it is meaningless."""
    entries = jnp.isfinite(B)
    return spectral_correction(jnp.where(entries, B, 0), **options), jnp.all(entries)
