"""The part of a Hessian that a Gauss-Newton matrix leaves out, learned from pairs.

Of ½ ‖r(x)‖² the Hessian is JᵀJ + S with S = Σ rᵢ ∇²rᵢ. JᵀJ is known where J is; S is corrected by
the change of the gradient that JᵀJ does not explain.
"""

import chex
import jax.numpy as jnp

from jaxqn._typing import Array, compiled
from jaxqn.linalg import inner, matvec, safe_divide

__all__ = ["structured_update"]

LEAST_CURVATURE = 1e-3
"""The least sᵀy over the lengths of s and y for which y shapes the correction."""


@compiled
def structured_update(
    S: Array,
    s: Array,
    y: Array,
    y_sharp: Array,
    tau: Array | float | None = None,
    weights: Array | None = None,
) -> Array:
    """Dennis, Gay and Welsch's sized rank-2 correction of S, after which S₊ s = y#.

        S₊ = τ S + (e vᵀ + v eᵀ)/(sᵀv) − (sᵀe) v vᵀ/(sᵀv)²,    e = y# − τ S s,

    with v = y, or v = W s (Powell's symmetric Broyden update) where sᵀy is not clearly positive:
    sᵀy ≤ 10⁻³ √(sᵀW s) √(yᵀW⁻¹y). The zero pair changes nothing, bit for bit.

    Args:
      S: symmetric matrix, shape ``(n, n)``; it need not be definite.
      s: step, new point minus old, shape ``(n,)``.
      y: gradient change, new minus old, shape ``(n,)``.
      y_sharp: the part of y that JᵀJ does not explain, shape ``(n,)``: (J₊ − J)ᵀr₊, or
        y − J₊ᵀJ₊ s, which asks for no Jacobian of before.
      tau: the size of what is kept of S, shape ``()``; by default min(1, |sᵀy#|/|sᵀS s|).
      weights: the diagonal of W, positive, shape ``(n,)``, which makes the correction independent
        of the units of x; 1 by default.

    Returns:
      The corrected matrix, shape ``(n, n)``. Cost: one product with S and one pass over it.

    Example:
      >>> S, s = jnp.zeros((2, 2)), jnp.array([1.0, 0.0])
      >>> structured_update(S, s, jnp.array([2.0, 1.0]), jnp.array([0.5, 0.25])).tolist()
      [[0.5, 0.25], [0.25, 0.125]]

    References:
      Dennis, Gay & Welsch, ACM Trans. Math. Softw. 7 (1981), eqs. 2.6 to 2.8; Nocedal & Wright,
      Numerical Optimization, 2nd ed., 2006, section 10.3.
    """
    chex.assert_rank(s, 1)
    chex.assert_equal_shape([s, y, y_sharp])
    chex.assert_shape(S, (s.shape[0], s.shape[0]))
    weighted = s if weights is None else weights * s
    lighter = y if weights is None else y / weights
    Ss = matvec(S, s)
    ss, sSs, sy, sWs, yWy, s_sharp = inner(
        (s, s), (s, Ss), (s, y), (s, weighted), (y, lighter), (s, y_sharp)
    )
    least = LEAST_CURVATURE * jnp.sqrt(sWs) * jnp.sqrt(yWy)
    v = jnp.where(sy > least, y, weighted)
    sv = jnp.where(sy > least, sy, sWs)
    usable = sv > 0
    if tau is None:
        tau = safe_divide(jnp.abs(s_sharp), jnp.abs(sSs), sSs != 0)
        tau = jnp.where(sSs != 0, jnp.minimum(tau, 1), 1)
    e = jnp.where(usable, y_sharp - tau * Ss, 0)
    se = jnp.where(usable, s_sharp - tau * sSs, 0)
    v = safe_divide(v, sv, usable)
    kept = jnp.where(ss > 0, tau, 1)
    return kept * S + (jnp.outer(e, v) + jnp.outer(v, e - se * v))
