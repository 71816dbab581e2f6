"""L-BFGS: a limited memory of pairs, and BFGS in its inverse compact form."""

from typing import Any

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from jaxqn._typing import Array
from jaxqn.linalg import dot, inner
from jaxqn.quasi_newton.compact_form import CompactForm, Grams
from jaxqn.quasi_newton.limited_memory import limited_memory
from jaxqn.quasi_newton.protocol import QuasiNewton

__all__ = ["lbfgs_memory"]


def lbfgs_memory(m: int = 10, *, history_dtype: Any = None) -> QuasiNewton:
    """L-BFGS: the inverse BFGS matrix of the newest m pairs, from H₀ = gamma I.

        H = H₀ + [S  H₀Y] [[R⁻ᵀ(D + YᵀH₀Y)R⁻¹, −R⁻ᵀ], [−R⁻¹, 0]] [S  H₀Y]ᵀ,
        R = triu(SᵀY),   D = diag(SᵀY),   gamma = sᵀy/yᵀy of the newest pair.

    The method refuses a pair without enough curvature (``has_curvature``), so that H is positive
    definite. If H g is out of the range of the dtype, the product is H₀ g. An H0 given to ``init``
    is a positive diagonal like the parameters; it is not rescaled, and ``reset`` returns to it.
    ``apply`` and ``advance`` also take a keyword ``H0``, which replaces H₀ for that product: such a
    diagonal, or any linear, positive definite function of a vector.

    Args:
      m: pairs to keep.
      history_dtype: dtype of the pairs in memory, for instance ``jnp.bfloat16`` to halve it; by
        default that of the parameters. H is the matrix of the rounded pairs.

    Returns:
      A :class:`jaxqn.QuasiNewton` over pytrees. Memory: 2 m n numbers.

    Raises:
      TypeError: ``m`` is not a whole number, or ``history_dtype`` is no floating dtype.
      ValueError: ``m`` is less than 1; at ``init``, H0 is not like the parameters.

    Cost: ``apply`` reads the history twice. So does ``advance``, where y is the change since the
    gradient of the last ``advance``; otherwise, or with a rounded history, it reads it three times.
    An ``H0`` for one product adds half a read to ``advance``. Sharded, an ``advance`` is one round
    of reductions; with such an ``H0``, two.

    Example:
      >>> qn = lbfgs_memory(m=5)
      >>> s, y = jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])
      >>> state = qn.update(qn.init(s), s, y)
      >>> qn.apply(state, jnp.array([2.0, 2.0])).tolist()
      [1.0, 1.0]

    References:
      Byrd, Nocedal & Schnabel, Mathematical Programming 63 (1994), theorem 2.2; Nocedal & Wright,
      Numerical Optimization, 2nd ed., 2006, section 7.2.
    """
    return limited_memory(_FORM, m, history_dtype)


def _accepts(grams: Grams, curved: Array) -> Array:
    del grams
    return curved


def _triangle(grams: Grams) -> Array:
    """R, with ones on the diagonal for missing pairs."""
    return grams.sy + jnp.diag((~grams.valid).astype(grams.sy.dtype))


def _first(grams: Grams, a: Array) -> Array:
    """R⁻¹ Sᵀg = p."""
    return solve_triangular(_triangle(grams), a)


def _second(grams: Grams, p: Array, b: Array) -> Array:
    """R⁻ᵀ(D p − YᵀH₀(g − Y p)) = w."""
    return solve_triangular(_triangle(grams), jnp.diagonal(grams.sy) * p - b, trans=1)


def _coefficients(grams: Grams, a: Array, b: Array, gg: Array) -> tuple[Array, Array]:
    """Both p and w, from YᵀH₀Y; zero where gᵀH g is not positive, or H g is out of range."""
    p = _first(grams, a)
    w = _second(grams, p, b - dot(grams.yy, p))
    # Norms of the terms that add up to H g: that of H₀⁻¹ for steps, that of H₀ for changes.
    sizes = jnp.sqrt(grams.ss), jnp.sqrt(jnp.diagonal(grams.yy))
    aw, bp, *terms = inner((a, w), (b, p), (jnp.abs(w), sizes[0]), (jnp.abs(p), sizes[1]))
    gHg = gg + (aw - bp)
    usable = (gHg > 0) & jnp.isfinite(gHg) & jnp.isfinite(terms[0] + terms[1])
    return jnp.where(usable, p, 0), jnp.where(usable, w, 0)


_FORM = CompactForm(1.0, _accepts, _coefficients, (_first, _second))
