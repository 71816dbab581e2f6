"""Corrections of the inverse of a Hessian that is singular, nearly so, or indefinite.

With H = Σ λᵢ vᵢ vᵢᵀ and delta = floor · max|λ|, k eigenvalues below delta are corrected at rank k,

    H⁻¹ + E,   E = Σ (1/f(λᵢ) − 1/λᵢ) vᵢ vᵢᵀ,   f(λ) ≥ delta   (0 for 1/λᵢ where λᵢ = 0),

and the result is positive semidefinite and bounded by 1/delta for every symmetric H: the direction
−(H⁻¹ + E) g never climbs and is no longer than ‖g‖/delta. In this module H is the Hessian itself,
and H_inv its inverse.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxqn._typing import Array
from jaxqn.formulas.arguments import floating, square_matrix
from jaxqn.linalg import dot, eps, magnitude

__all__ = [
    "SpectralCorrection",
    "check_choices",
    "correct_inverse",
    "spectral_correction",
    "spectral_inverse",
]

# f(λ) of a corrected eigenvalue; an infinite f(λ) drops its direction.
_MODES: dict[str, Callable[[Array, Array], Array]] = {
    "reflect": lambda values, delta: jnp.maximum(jnp.abs(values), delta),
    "clip": jnp.maximum,
    "drop": lambda values, _: jnp.full_like(values, jnp.inf),
}


class SpectralCorrection(NamedTuple):
    """A corrected inverse, and what was corrected.

    Attributes:
      inverse: the corrected inverse, shape ``(n, n)``, symmetric bit for bit.
      eigenvalues: eigenvalues λ of H, shape ``(n,)``, ascending.
      corrected: f(λ), shape ``(n,)``, in that order: the reciprocals of the corrected inverse's
        eigenvalues; infinite where the direction was dropped.
      rank: how many eigenvalues were corrected, int32.
      uncorrected: how many needed it beyond ``rank`` and were dropped instead, int32.
      condition: largest over smallest positive eigenvalue of ``inverse``; infinite without any.
    """

    inverse: Array
    eigenvalues: Array
    corrected: Array
    rank: Array
    uncorrected: Array
    condition: Array


def spectral_correction(
    H: Array, *, rank: int | str = 2, floor: Array | float | None = None, mode: str = "reflect"
) -> SpectralCorrection:
    """Inverse of a symmetric matrix, made positive and bounded; and a report.

        Σ vᵢ vᵢᵀ / f(λᵢ),   H = Σ λᵢ vᵢ vᵢᵀ,   delta = floor · max|λ|.

    Eigenvalues λ ≥ delta are inverted unchanged. Of those below delta, which include the negative
    ones of any size, the ``rank`` smallest in magnitude are corrected,

        "reflect"   f(λ) = max(|λ|, delta)   saddle-free Newton
        "clip"      f(λ) = max(λ, delta)     modified Newton
        "drop"      1/f(λ) = 0               pseudo-inverse of the positive part

    and the others dropped, never inverted. So every eigenvalue of the result is 0 or in
    [1/max|λ|, 1/delta]. None is 0 where at most ``rank`` need correction, as always with ``"all"``,
    unless the mode drops them. The computed eigenvalues have errors of about n eps/delta: small
    against 1/delta, and against 1/max|λ| as well while floor is well above n eps.

    Where the symmetric part of H is zero, max|λ| sets no scale, and the inverse is by definition
    the identity, with rank 0, in every mode. A NaN or an infinity in H, and a traced ``floor`` out
    of range, give NaN throughout and counts of 0.

    Args:
      H: matrix, shape ``(n, n)``, of any scale; its symmetric part is used.
      rank: how many eigenvalues to correct at most, or ``"all"``.
      floor: smallest eigenvalue to invert, over max|λ|: in (0, 1], default √eps. May be traced.
      mode: ``"reflect"``, ``"clip"`` or ``"drop"``.

    Returns:
      The inverse and the report. Cost: one symmetric eigendecomposition and one product, O(n³).

    Raises:
      TypeError: H is not float32 or float64.
      ValueError: H is not square, or an option is not one of the above.

    Example:
      >>> fixed = spectral_correction(jnp.diag(jnp.array([4.0, 0.0, -2.0])), floor=0.25)
      >>> fixed.inverse.round(6).tolist()
      [[0.25, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.5]]
      >>> fixed.eigenvalues.tolist(), fixed.corrected.tolist(), int(fixed.rank)
      ([-2.0, 0.0, 4.0], [2.0, 1.0, 4.0], 2)

    References:
      Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, section 3.4, for "clip"; Dauphin et
      al., NeurIPS 2014, arXiv:1406.2572, for "reflect".
    """
    H = square_matrix("H", H)
    check_choices(rank, mode)
    limit = len(H) if rank == "all" else min(int(rank), len(H))
    return _spectral_correction(H, _relative(floor, H.dtype), limit, mode)


@functools.partial(jax.jit, static_argnames=("limit", "mode"))
def _spectral_correction(H: Array, floor: Array, limit: int, mode: str) -> SpectralCorrection:
    n, unit = H.shape[0], magnitude(H)
    half = H / (2 * unit)
    values, vectors = jnp.linalg.eigh(half + half.T, symmetrize_input=False)
    largest = jnp.max(jnp.abs(values))
    delta = floor * largest
    needs = values < delta
    chosen = needs
    if limit < n:
        _, smallest = jax.lax.top_k(-jnp.where(needs, jnp.abs(values), jnp.inf), limit)
        chosen = needs & jnp.zeros(n, bool).at[smallest].set(True)
    f = jnp.where(chosen, _MODES[mode](values, delta), jnp.where(needs, jnp.inf, values))
    bad = jnp.where(jnp.isfinite(delta), 0.0, jnp.nan)
    f = jnp.where(largest > 0, f, 1) + bad
    unit = jnp.where(largest > 0, unit, 1)
    widest = jnp.max(jnp.where(jnp.isfinite(f), f, 0))
    half = dot(vectors * (1 / f)[None, :], vectors.T) / (2 * unit)
    return SpectralCorrection(
        inverse=half + half.T,
        eigenvalues=values * unit + bad,
        corrected=f * unit,
        rank=jnp.sum(chosen, dtype=jnp.int32),
        uncorrected=jnp.sum(needs & ~chosen, dtype=jnp.int32),
        condition=jnp.where(widest > 0, widest / jnp.min(f), jnp.inf) + bad,
    )


def spectral_inverse(
    H: Array, *, rank: int | str = 2, floor: Array | float | None = None, mode: str = "reflect"
) -> Array:
    """The corrected inverse alone, shape ``(n, n)``; see :func:`jaxqn.spectral_correction`.

    Example:
      >>> spectral_inverse(jnp.array([[0.0, 2.0], [2.0, 0.0]])).round(6).tolist()  # 2 and −2
      [[0.5, 0.0], [0.0, 0.5]]
    """
    return spectral_correction(H, rank=rank, floor=floor, mode=mode).inverse


def correct_inverse(
    H_inv: Array,
    eigenvalues: Array,
    eigenvectors: Array,
    *,
    floor: Array | float | None = None,
    mode: str = "reflect",
    largest: Array | float | None = None,
) -> Array:
    """Correct a given inverse, or pseudo-inverse, along given eigenpairs of H.

        H_inv + Σ (1/f(λᵢ) − vᵢᵀ H_inv vᵢ) vᵢ vᵢᵀ,   over the pairs with λᵢ < delta,

    f and delta = floor · largest as in :func:`jaxqn.spectral_correction`. For exact pairs of H,
    vᵢᵀ H_inv vᵢ is 1/λᵢ, or 0 where a pseudo-inverse left vᵢ out; the result is then the spectral
    inverse, if all eigenvalues below delta are given. For other vectors only the curvature along
    them is set, vᵢᵀ H₊ vᵢ = 1/f(λᵢ), and H₊ may be indefinite.

    The rounding error of H_inv, eps/|λᵢ| in all its entries, stays. Where |λᵢ| is below about
    √eps · delta, start from a pseudo-inverse. Pairs that need no correction or are not finite
    contribute nothing, and no pair does where ``largest`` is zero. A traced ``floor`` out of range
    gives NaN.

    Args:
      H_inv: inverse or pseudo-inverse of H, shape ``(n, n)``, symmetric.
      eigenvalues: k eigenvalues of H, shape ``(k,)``, in any order.
      eigenvectors: their orthonormal eigenvectors as columns, shape ``(n, k)``.
      floor: smallest eigenvalue to leave alone, relative to ``largest``, in (0, 1]; default √eps.
      mode: ``"reflect"``, ``"clip"`` or ``"drop"``.
      largest: largest magnitude in the whole spectrum; by default the largest of those given.

    Returns:
      The corrected inverse, shape ``(n, n)``. Cost: O(k n²).

    Example:
      >>> H_inv = jnp.diag(jnp.array([0.25, 0.0]))  # pseudo-inverse of diag(4, 0)
      >>> pair = jnp.array([0.0]), jnp.array([[0.0], [1.0]])
      >>> correct_inverse(H_inv, *pair, floor=0.25, largest=4.0).tolist()
      [[0.25, 0.0], [0.0, 1.0]]
    """
    H_inv, values = square_matrix("H_inv", H_inv), floating("eigenvalues", eigenvalues)
    vectors = floating("eigenvectors", eigenvectors)
    if values.ndim != 1 or vectors.shape != (H_inv.shape[0], values.size):
        raise ValueError(
            f"eigenvalues and eigenvectors must have shapes (k,) and ({H_inv.shape[0]}, k), a "
            f"column for a vector, but they have {values.shape} and {vectors.shape}"
        )
    check_choices("all", mode)
    return _correct_inverse(H_inv, values, vectors, _relative(floor, H_inv.dtype), largest, mode)


@functools.partial(jax.jit, static_argnames="mode")
def _correct_inverse(
    H_inv: Array, values: Array, vectors: Array, floor: Array, largest: Any, mode: str
) -> Array:
    if largest is None:
        largest = jnp.max(jnp.where(jnp.isfinite(values), jnp.abs(values), 0), initial=0)
    delta = floor * jnp.asarray(largest, H_inv.dtype)
    excess = 1 / _MODES[mode](values, delta) - jnp.sum(vectors * dot(H_inv, vectors), axis=0)
    used = (values < delta) & (delta > 0) & jnp.isfinite(values) & jnp.isfinite(excess)
    basis = jnp.where(used[None, :], vectors, 0)
    half = dot(basis * (jnp.where(used, excess, 0) / 2 + 0 * floor)[None, :], basis.T)
    return H_inv + (half + half.T)


def check_choices(rank: Any, mode: Any) -> None:
    """How many eigenvalues may be corrected, and how."""
    every = isinstance(rank, str) and rank == "all"
    if not every and (isinstance(rank, bool) or not isinstance(rank, int | np.integer) or rank < 0):
        raise ValueError(f"rank must be a static int of at least 0, or 'all', but it is {rank!r}")
    if mode not in _MODES:
        raise ValueError(f"mode must be one of {', '.join(_MODES)}, but it is {mode!r}")


def _relative(floor: Any, dtype: Any) -> Array:
    """The floor relative to max|λ|, √eps by default; NaN if traced and out of range."""
    floor = eps(dtype) ** 0.5 if floor is None else floor
    known = not isinstance(floor, jax.core.Tracer)
    if jnp.shape(floor) != () or (known and not 0 < np.asarray(floor, dtype) <= 1):
        raise ValueError(f"floor, relative to max|λ|, must be a number in (0, 1], not {floor!r}")
    if known:
        return jnp.asarray(floor, dtype)
    return jnp.where((floor > 0) & (floor <= 1), floor, jnp.nan).astype(dtype)
