"""Newton's method within a trust region: the exact Hessian as a quadratic model."""

import functools

import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.checks import check_number
from jaxqn.quasi_newton.protocol import QuasiNewton
from jaxqn.quasi_newton.sr1_region import RegionState, sr1_trust_region

__all__ = ["newton_trust_region"]


def newton_trust_region(radius: float | None = None) -> QuasiNewton:
    """Newton's method within a trust region, for small n.

        min gᵀp + ½ pᵀB p  over  ‖p‖ ≤ Δ,    B = ∇²f(x)

    B is made at every new point, and may be indefinite: a step then goes along negative curvature
    as far as the radius, also from a stationary point that is no minimum. A trial that is refused
    costs no Hessian, except under ``vmap``. Where the Hessian is not finite B is 0, and the step
    goes along −g to the border. :func:`jaxqn.corrected_newton`, which is "newton", makes B positive
    definite instead, and takes bounds.

    Args:
      radius: as in :func:`jaxqn.sr1_trust_region`.

    Returns:
      A :class:`jaxqn.QuasiNewton` over flat vectors, for :func:`jaxqn.minimize` and its kin.

    Raises:
      TypeError, ValueError: ``radius`` is no positive number.

    Cost: per new point one Hessian (n Hessian-vector products); per evaluation what a step of
    :func:`jaxqn.sr1_trust_region` costs. Memory: n².

    Example:
      >>> from jaxqn import minimize
      >>> saddle = lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4
      >>> result = minimize(saddle, jnp.zeros(2), method=newton_trust_region())
      >>> [round(abs(float(value)), 3) for value in result.x]
      [0.0, 0.707]

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, algorithms 4.1 and 4.3; Moré &
      Sorensen, SIAM J. Sci. Stat. Comput. 4 (1983).
    """
    return _verbs(None if radius is None else check_number("radius", radius, "positive"))


@functools.cache
def _verbs(radius: float | None) -> QuasiNewton:
    return sr1_trust_region(radius)._replace(needs="hessian", renew=_renew)


def _renew(state: RegionState, s: Array, y: Array, B: Array) -> tuple[RegionState, Array]:
    usable = jnp.all(jnp.isfinite(B))
    tally = jnp.stack([usable, ~usable]).astype(jnp.int32)
    known = jnp.where(usable, state.counts, state.counts * jnp.array([0, 1], jnp.int32))
    del y  # the Hessian says more
    return RegionState(jnp.where(usable, 0.5 * (B + B.T), 0), known + tally), jnp.zeros_like(s)
