"""L-SR1: symmetric rank one in limited memory, in its compact form.

    H = H₀ + Ψ M⁻¹ Ψᵀ,   Ψ = S − H₀ Y,   M = R + Rᵀ − D − Yᵀ H₀ Y,   R = triu(SᵀY),   D = diag(SᵀY).

M need not be definite, and may be singular. Its factors without pivoting, M = L diag(d) Lᵀ, are the
recursion itself: dⱼ = vⱼᵀyⱼ with vⱼ = sⱼ − H yⱼ for the H of the pairs before the j-th, and the vⱼ
are the columns of Ψ L⁻ᵀ. A pivot that fails SR1's test is left out, just as the recursion leaves
out the pair.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxqn._typing import Array
from jaxqn.formulas import in_range
from jaxqn.linalg import dot, eps, safe_divide
from jaxqn.quasi_newton.compact_form import CompactForm, Grams
from jaxqn.quasi_newton.limited_memory import limited_memory
from jaxqn.quasi_newton.memory_state import SR1MemoryState
from jaxqn.quasi_newton.protocol import QuasiNewton

__all__ = ["lsr1_memory", "pivots"]


def lsr1_memory(m: int = 10, *, history_dtype: Any = None) -> QuasiNewton:
    """L-SR1: the symmetric rank-one matrix of the newest m pairs, from H₀ = gamma I.

        H = H₀ + Σⱼ vⱼ vⱼᵀ/(vⱼᵀyⱼ),   vⱼ = sⱼ − H yⱼ for the H of the pairs before the j-th.

    gamma is half of sᵀy/yᵀy of the newest pair with sᵀy > 0: the whole would make that pair's
    s − H₀ y orthogonal to y. H may be indefinite. The method refuses a pair unless

        |vᵀy| > √eps ‖y‖ Σ,

    where Σ ≥ ‖v‖ adds up the norms of the vectors that v is a combination of: SR1's own test then
    holds, and vᵀy is more than rounding. A pair that passed may fail once an older one is dropped
    or gamma has changed; the recursion then leaves the pair out.

    Args:
      m: pairs to keep.
      history_dtype: as in :func:`jaxqn.lbfgs_memory`, like H0 at ``init``; there is no ``H0`` for
        one product.

    Returns:
      A :class:`jaxqn.QuasiNewton` over pytrees. Memory: 2 m n numbers.

    Raises:
      TypeError, ValueError: as :func:`jaxqn.lbfgs_memory`.

    Cost: that of :func:`jaxqn.lbfgs_memory`.

    Example:
      >>> qn = lsr1_memory(m=5)
      >>> s, y = jnp.array([-1.0, 0.0]), jnp.array([2.0, 0.0])
      >>> qn.apply(qn.update(qn.init(s), s, y), y).tolist()
      [-1.0, 0.0]

    References:
      Byrd, Nocedal & Schnabel, Mathematical Programming 63 (1994), section 5, by duality; Nocedal &
      Wright, Numerical Optimization, 2nd ed., 2006, section 6.2.
    """
    return limited_memory(_FORM, m, history_dtype)


def pivots(grams: Grams) -> tuple[Array, Array, Array]:
    """The recursion in terms of inner products.

    Returns T, unit lower triangular, with v = Ψ Tᵀ; the denominators vⱼᵀyⱼ; which of them count.
    The norm is that of H₀ for y, and that of H₀⁻¹ for s and v.
    """
    m, dtype = grams.ss.size, grams.ss.dtype
    M = grams.sy + jnp.triu(grams.sy, 1).T - grams.yy
    y_sizes = jnp.sqrt(jnp.diagonal(grams.yy))
    sizes = jnp.sqrt(grams.ss) + y_sizes

    def step(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        T, d, counts = carry
        T = T.at[j].add(-dot(safe_divide(dot(T, M[:, j]), d, counts), T))
        pivot = dot(T[j], M[:, j])
        least = eps(dtype) ** 0.5 * y_sizes[j] * dot(jnp.abs(T[j]), sizes)
        return T, d.at[j].set(pivot), counts.at[j].set(jnp.abs(pivot) > least)

    nothing = (jnp.eye(m, dtype=dtype), jnp.zeros((m,), dtype), jnp.zeros((m,), bool))
    return jax.lax.fori_loop(0, m, step, nothing)


def _accepts(grams: Grams, curved: Array) -> Array:
    del curved
    return pivots(grams)[2][-1] & in_range(grams.ss[-1], grams.yy[-1, -1])


def _coefficients(grams: Grams, a: Array, b: Array, gg: Array) -> tuple[Array, Array]:
    """Both are M⁻¹Ψᵀg; zero where that is not finite."""
    del gg
    T, d, counts = pivots(grams)
    u = dot(safe_divide(dot(T, a - b), d, counts), T)
    u = jnp.where(jnp.all(jnp.isfinite(u)), u, 0)
    return u, u


_FORM = CompactForm(0.5, _accepts, _coefficients, state=SR1MemoryState)
